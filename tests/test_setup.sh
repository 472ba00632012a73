#!/bin/sh
# test_setup.sh: tools/setup.sh on ten systems that are not here. Each system is an os-release
# file and a PATH that holds only fake package managers, a fake id and the plain tools.
set -u
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
failed=0
n=0

fake() { # name, body
    printf '#!/bin/sh\n%s\n' "$2" >"$bin/$1"
    chmod +x "$bin/$1"
}

# A fresh machine: os-release ID, ID_LIKE, package managers (words), user id.
machine() {
    n=$((n + 1))
    bin=$work/$n
    mkdir "$bin"
    for tool in sh sed tr cat rm; do
        ln -s "$(command -v "$tool")" "$bin/$tool"
    done
    printf 'PRETTY_NAME="%s test"\nID="%s"\nID_LIKE=%s\n' "$1" "$1" "$2" >"$bin/os-release"
    for manager in $3; do
        fake "$manager" "echo \"$manager \$*\" >>$work/$n/calls; echo 'Need to get 5 MB'"
    done
    fake id "echo $4"
    fake make "exit 0"
}

setup() { # arguments of setup.sh, run with the machine's PATH; output in $out, exit code in $code
    out=$(PATH=$bin DSINFER_OS_RELEASE=$bin/os-release DSINFER_SETUP_DRYRUN=${dry:-1} \
        DSINFER_LIBRARIES="$bin/none $bin/lib" CC=${compiler:-} "$bin/sh" tools/setup.sh "$@" 2>&1)
    code=$?
}

expect() { # what, expected exit code, pieces that must stand in the output
    what=$1
    want=$2
    shift 2
    bad=
    [ "$code" = "$want" ] || bad="exit code $code, not $want"
    for piece; do
        case $out in
        *"$piece"*) ;;
        *) bad="$bad; no \"$piece\"" ;;
        esac
    done
    if [ -n "$bad" ]; then
        failed=$((failed + 1))
        printf 'FAILED  %s: %s\n%s\n' "$what" "$bad" "$out"
    else
        printf 'ok      %s\n' "$what"
    fi
}

apt_test="gcc binutils libc6-dev g++ gawk findutils diffutils libcmocka-dev libpcre2-dev openssl \
pkg-config"
rpm_test="gcc binutils glibc-devel gcc-c++ gawk findutils diffutils 'pkgconfig(cmocka)' \
'pkgconfig(libpcre2-8)' openssl-libs /usr/bin/pkg-config"

# Every system: the right manager, the right names, as root.
for row in debian::apt-get ubuntu:debian:apt-get linuxmint:ubuntu:apt-get kylin:debian:apt-get \
    kylin::apt-get uos:debian:apt-get; do
    id=${row%%:*}
    machine "$id" "$(echo "$row" | cut -d: -f2)" apt-get 0
    setup test
    expect "$row: tests" 0 "apt-get update" "noninteractive apt-get -o" "install -y" "$apt_test"
    setup build
    expect "$row: build" 0 "gcc binutils libc6-dev"
done
for row in openEuler::dnf openEuler::yum kylin:centos:yum kylin::dnf uos::yum uos:fedora:dnf \
    fedora::dnf centos:rhel:yum; do
    id=${row%%:*}
    machine "$id" "$(echo "$row" | cut -d: -f2)" "${row##*:}" 0
    setup test
    expect "$row: tests" 0 "${row##*:} install -y" "$rpm_test"
    setup build
    expect "$row: build" 0 "${row##*:} install -y gcc binutils glibc-devel"
done

# Two managers on one machine: the family decides.
machine debian '' "apt-get dnf" 0
setup build
expect "debian with a dnf" 0 "apt-get -o DPkg"
machine openEuler '' "apt-get dnf yum" 0
setup build
expect "openEuler with an apt-get" 0 "dnf install"

# Not root: one line to run, nothing is called, exit 3.
dry=0
machine debian '' apt-get 1000
setup test
expect "debian, not root" 3 "sudo sh -c \"apt-get update && apt-get -o" "$apt_test"
[ -e "$bin/calls" ] && out="a package manager was called" && code=1
expect "debian, not root: nothing called" 3
machine openEuler '' dnf 1000
setup test
expect "openEuler, not root" 3 "sudo sh -c \"dnf install -y gcc" "'pkgconfig(cmocka)'"

# No manager, a compiler the user named that is not there, a wrong argument.
machine alpine '' '' 0
setup build
expect "no known manager" 3 "alpine test" "cc ar libc" "no apt-get, dnf or yum"
compiler=icx
setup build
expect "CC=icx is not there" 3 "CC=icx"
compiler=
setup everything
expect "wrong argument" 2 "usage"

# A real run: the manager is called, fails or leaves things missing, and both are said.
machine debian '' apt-get 0
setup build
expect "installed, but the compiler is still missing" 3 "Need to get 5 MB" "still missing: cc"
case $(cat "$bin/calls") in
"apt-get update"*"apt-get -o DPkg"*"gcc binutils libc6-dev"*) ;;
*) code=1 out="calls: $(cat "$bin/calls")" ;;
esac
expect "update, then install" 3
machine debian '' apt-get 0
fake apt-get 'echo "E: Unable to fetch some archives"; exit 100'
setup build
expect "a failing apt-get" 3 "E: Unable to fetch" "update failed; going on" "installation failed"

# An old compiler is named with its version.
machine kylin '' yum 0
fake gcc 'case $* in *-dumpversion*) echo 7.3.0 ;; esac; exit 0'
fake ar 'exit 0'
setup build
expect "gcc 7.3" 3 "gcc is version 7.3.0; version 10 or newer"

# Everything there: silent, at once, no manager called.
fake gcc 'case $* in *-dumpversion*) echo 12 ;; esac; exit 0'
mkdir "$bin/lib"
: >"$bin/lib/libcrypto.so.1.1"
for tool in g++ awk find cmp pkg-config; do
    fake "$tool" "exit 0"
done
setup test
expect "nothing missing" 0
[ -n "$out" ] || [ -e "$bin/calls" ] && out="not silent: $out" && code=1
expect "nothing missing: silent, nothing called" 0

echo "setup: $failed failed"
[ "$failed" = 0 ]
