#!/bin/sh
# setup.sh: finds what the build (or the tests) need and this machine lacks, and installs it.
#
#   tools/setup.sh build    a C compiler and its headers
#   tools/setup.sh test     the same, and a C++ compiler, cmocka, pcre2, pkg-config (used by tests
#                           alone) and OpenSSL's libcrypto (used by manifests alone)
#
# When nothing is missing it ends at once and touches neither disk nor network. It installs only
# as root; for anybody else it prints the one line to run. CC names the compiler (default gcc).
# DSINFER_SETUP_DRYRUN=1 prints the commands instead of running them; DSINFER_OS_RELEASE names
# another /etc/os-release, DSINFER_LIBRARIES other folders of libraries. Exit codes: 0 all there,
# 2 usage, 3 something is missing.
set -u

cc=${CC:-gcc}
os_release=${DSINFER_OS_RELEASE:-/etc/os-release}
libraries=${DSINFER_LIBRARIES:-/lib /lib64 /usr/lib /usr/lib64 /usr/local/lib /lib/*-linux-gnu \
/usr/lib/*-linux-gnu}
oldest_gcc=10 # the first with -mavx512bf16

have() { command -v "$1" >/dev/null 2>&1; }
say() { printf 'setup: %s\n' "$*" >&2; }

# Can the compiler find this header? (Preprocessing alone: some milliseconds.)
have_header() {
    printf '#define PCRE2_CODE_UNIT_WIDTH 8\n#include <stdarg.h>\n#include <stddef.h>\n%s\n' \
        "#include <$1>" | $cc -E -x c - >/dev/null 2>&1
}

# One of the two libcrypto that tools/dsinfer/digest.c looks for.
have_crypto() {
    for folder in $libraries; do
        [ -e "$folder/libcrypto.so.3" ] && return
        [ -e "$folder/libcrypto.so.1.1" ] && return
    done
    return 1
}

# What is missing, as names of things, one word each.
find_missing() {
    missing=
    have make || missing="$missing make"
    have "${cc%% *}" || missing="$missing cc"
    have ar || missing="$missing ar"
    { have "${cc%% *}" && have_header stdio.h; } || missing="$missing libc"
    [ "$1" = build ] && return
    have g++ || missing="$missing c++"
    have awk || missing="$missing awk"
    have find || missing="$missing find"
    have cmp || missing="$missing diff"
    { have "${cc%% *}" && have_header cmocka.h; } || missing="$missing cmocka"
    { have "${cc%% *}" && have_header pcre2.h; } || missing="$missing pcre2"
    have_crypto || missing="$missing libcrypto"
    have pkg-config || missing="$missing pkg-config"
}

# A value of os-release without its quotes.
os_value() { sed -n "s/^$1=//p" "$os_release" 2>/dev/null | sed 1q | tr -d "\"'"; }

# Which package manager? Kylin and UOS exist with apt (desktop) and with dnf or yum (server), so
# the tool that is there decides; the family only breaks a tie.
find_manager() {
    order="apt-get dnf yum"
    case " $(os_value ID) $(os_value ID_LIKE) " in
    *" debian "* | *" ubuntu "*) ;;
    *" rhel "* | *" fedora "* | *" centos "* | *" openEuler "* | *" openeuler "* | *" anolis "*)
        order="dnf yum apt-get" ;;
    esac
    manager=
    for manager in $order; do
        have "$manager" && return
    done
    manager=
}

# The package that holds a thing. An rpm announces its pkg-config file whatever its own name is,
# which is why cmocka and pcre2 are asked for that way: the names differ between distributions.
package_of() {
    case $manager:$1 in
    *:make) echo make ;;
    *:awk) echo gawk ;;
    *:find) echo findutils ;;
    *:diff) echo diffutils ;;
    *:ar) echo binutils ;;
    *:cc) echo gcc ;;
    apt-get:libc) echo libc6-dev ;;
    apt-get:c++) echo g++ ;;
    apt-get:cmocka) echo libcmocka-dev ;;
    apt-get:pcre2) echo libpcre2-dev ;;
    apt-get:libcrypto) echo openssl ;; # whatever the library's package is called there
    *:libc) echo glibc-devel ;;
    *:c++) echo gcc-c++ ;;
    *:cmocka) echo "'pkgconfig(cmocka)'" ;;
    *:pcre2) echo "'pkgconfig(libpcre2-8)'" ;;
    *:libcrypto) echo openssl-libs ;;
    apt-get:pkg-config) echo pkg-config ;;
    *:pkg-config) echo /usr/bin/pkg-config ;; # pkgconfig or pkgconf, by the file that both have
    esac
}

install_command() {
    packages=
    for thing in $missing; do
        packages="$packages $(package_of "$thing")"
    done
    case $manager in
    # The lock may be held by a machine's first automatic update: wait for it.
    apt-get)
        echo "apt-get -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install -y" \
            "--no-install-recommends$packages" ;;
    *) echo "$manager install -y$packages" ;;
    esac
}

# Runs one command; shows errors and how much is to be fetched, and on a terminal, in one line that
# is written over, what it is doing.
run() {
    say "running: $1"
    [ "${DSINFER_SETUP_DRYRUN:-0}" = 1 ] && return 0
    terminal=0
    [ -t 2 ] && terminal=1
    {
        sh -c "$1" 2>&1
        echo "setup-exit $?"
    } | (
        code=1
        while IFS= read -r line; do
            case $line in
            "setup-exit "*) code=${line#setup-exit } ;;
            [EW]:* | *rror* | *"No match"* | *nable* | *annot* | *"ould not"* | "Need to get"* | \
                "Total download"* | "Complete!"*)
                printf '  %s\n' "$line" >&2 ;;
            Get:* | Unpacking* | "Setting up"* | *Installing*)
                [ "$terminal" = 1 ] && printf '\r\033[K  %.70s\r' "$line" >&2 ;;
            esac
        done
        [ "$terminal" = 1 ] && printf '\r\033[K' >&2
        exit "$code"
    )
}

check_compiler_age() {
    have "${cc%% *}" || return 0
    case $($cc --version 2>/dev/null) in
    *clang*) return 0 ;; # its -dumpversion speaks of gcc 4.2
    esac
    version=$($cc -dumpversion 2>/dev/null)
    case ${version%%.*} in
    '' | *[!0-9]*) return 0 ;;
    esac
    [ "${version%%.*}" -ge "$oldest_gcc" ] && return 0
    say "$cc is version $version; version $oldest_gcc or newer is needed. Install a newer one"
    say "(for example the package gcc-toolset-12-gcc) and run: make CC=/path/to/that/gcc"
    return 3
}

main() {
    case ${1:-} in
    build | test) ;;
    *)
        say "usage: tools/setup.sh build|test"
        return 2 ;;
    esac
    find_missing "$1"
    [ -z "$missing" ] && { check_compiler_age; return; }
    if [ "$cc" != gcc ] && [ "$cc" != cc ] && ! have "${cc%% *}"; then
        say "the compiler CC=$cc is not here: install it, or run make without CC="
        return 3
    fi
    find_manager
    system=$(os_value PRETTY_NAME)
    if [ -z "$manager" ]; then
        say "missing on ${system:-this system}:$missing"
        say "there is no apt-get, dnf or yum: install these with your own tool, then run make again"
        return 3
    fi
    command=$(install_command)
    update=
    [ "$manager" = apt-get ] && update="apt-get update && "
    if [ "$(id -u)" != 0 ]; then
        say "missing on ${system:-this system}:$missing. Run this, then run make again:"
        printf '  sudo sh -c "%s%s"\n' "$update" "$command" >&2
        return 3
    fi
    say "missing on ${system:-this system}:$missing"
    # A stale index is no reason to stop (the packages may be in the cache): install decides.
    [ -n "$update" ] && { run "apt-get update" || say "apt-get update failed; going on"; }
    options=
    [ "$manager" = apt-get ] && options="DEBIAN_FRONTEND=noninteractive "
    run "$options$command" || {
        say "the installation failed; when the error above is solved, run make again"
        return 3
    }
    [ "${DSINFER_SETUP_DRYRUN:-0}" = 1 ] && return 0
    [ "$cc" = cc ] && ! have cc && cc=gcc
    find_missing "$1"
    [ -z "$missing" ] || { say "installed, but still missing:$missing"; return 3; }
    check_compiler_age
}

main "$@"
