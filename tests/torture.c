/* torture.c: the program behind `make torture`; see torture.h.
 *     torture [--only SCENARIO] [--sample N] [--seed S] [--verbose] */
#include "torture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int usage(void) {
    fprintf(stderr, "torture [--only SCENARIO] [--sample N] [--seed S] [--verbose]; scenarios:");
    for (uint32_t i = 0; i < torture_n_scenarios; i++)
        fprintf(stderr, " %s", torture_scenarios[i].name);
    fprintf(stderr, "\n");
    return 2;
}

int main(int argc, char **argv) {
    torture_options options = {0};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--verbose") == 0) {
            options.verbose = true;
            continue;
        }
        if (!value) return usage();
        if (strcmp(argv[i], "--only") == 0)
            options.only = value;
        else if (strcmp(argv[i], "--sample") == 0)
            options.n_sample = strtoull(value, NULL, 10);
        else if (strcmp(argv[i], "--seed") == 0)
            options.seed = strtoull(value, NULL, 10);
        else
            return usage();
        i++;
    }
    uint64_t n_passed, n_failed;
    torture_run(&options, &n_passed, &n_failed);
    if (n_passed + n_failed == 0) return usage();
    printf("%llu passed, %llu failed\n", (unsigned long long)n_passed,
           (unsigned long long)n_failed);
    return n_failed != 0;
}
