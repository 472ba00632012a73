/* main.c: dsinfer, the command: reads the command line and calls one command. */
#include "cli.h"
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

/* A closed standard stream would give its number to the next file opened, a model perhaps. It is
 * filled with a file that refuses the stream's direction, so its use fails as it should. */
static void hold_standard_streams(void) {
    for (int fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) != -1) continue;
        int held = open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
        if (held != fd && held >= 0) close(held);
    }
}

static int dispatch(const cli_options *options) {
    const cli_command *command = &cli_overview;
    for (size_t i = 0; i < cli_n_commands; i++) {
        if (cli_command_table[i].bit == options->command) command = &cli_command_table[i];
    }
    if (options->version) {
        if (options->json) {
            cli_json_begin(stdout);
            printf(", \"version\": \"%s\"}\n", dsi_version());
        } else {
            printf("dsinfer %s\n", dsi_version());
        }
        return CLI_OK;
    }
    if (options->help) return cli_print_help(stdout, command, options);
    if (command->run != NULL) return command->run(options);
    cli_print_help(stderr, command, options);
    cli_error(cli_tr("no command was given", "没有给出命令"));
    cli_hint(cli_tr("one of the list above, e.g. dsinfer help run",
                    "请从上表选择，例如 dsinfer help run"));
    return CLI_USAGE;
}

int main(int argc, char **argv) {
    hold_standard_streams();
    signal(SIGPIPE, SIG_IGN); /* a reader that left is seen as a failed write */
    signal(SIGXFSZ, SIG_IGN); /* and so is the limit of a file's size */
    cli_ui_init(argc, argv);
    cli_options options;
    int code = cli_parse(argc, argv, &options);
    cli_ui_quiet(options.quiet);
    if (code == CLI_OK) cli_json_want(options.json);
    if (code == CLI_OK) code = dispatch(&options);
    cli_progress_clear();
    if (code != CLI_OK) cli_json_report(code);
    return cli_finish_stdout(code);
}
