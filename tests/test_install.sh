#!/bin/sh
# test_install.sh: make install into an empty tree; a stranger's program is built against it with
# pkg-config alone, shared and static, and answers; make uninstall leaves nothing behind.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
cc=${CC:-cc}
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
failed=0
fail() {
    echo "FAILED  $*"
    failed=$((failed + 1))
}
command -v pkg-config >/dev/null || fail "no pkg-config here: run sh tools/setup.sh test"

# A make of its own: not a part of the one that runs the tests.
plain_make() { env -u MAKEFLAGS -u MAKELEVEL make -j1 BUILD="$build" CC="$cc" "$@"; }
version=$("$build/dsinfer" --version)
version=${version#dsinfer }
prefix=/opt/dsinfer
root=$work/root

# ---- What is where, and with which rights -------------------------------------------------------
SOURCE_DATE_EPOCH=1700000000 plain_make install DESTDIR="$root" PREFIX=$prefix >"$work/out" 2>&1 ||
    fail "make install: $(cat "$work/out")"
built=$(grep -m 1 -E '^(CC|LD|AR) ' "$work/out")
[ -z "$built" ] || fail "make install built something: $built"
is() { # mode, path below the prefix
    [ -f "$root$prefix/$2" ] || { fail "$2 was not installed"; return; }
    mode=$(stat -c %a "$root$prefix/$2")
    [ "$mode" = "$1" ] || fail "$2 has mode $mode, not $1"
}
is 755 bin/dsinfer
is 644 lib/libdsinfer.a
is 755 "lib/libdsinfer.so.$version"
is 644 lib/pkgconfig/dsinfer.pc
for header in include/deepseek/*.h; do
    is 644 "$header"
    cmp -s "$header" "$root$prefix/$header" || fail "$header differs"
done
for page in dsinfer dsinfer-run dsinfer-doctor; do
    is 644 share/man/man1/$page.1
    is 644 share/man/zh_CN/man1/$page.1
done
is 644 share/bash-completion/completions/dsinfer
is 644 share/zsh/site-functions/_dsinfer
is 644 share/fish/vendor_completions.d/dsinfer.fish
for file in README.md README.zh.md LICENSE SECURITY.md; do
    [ ! -f $file ] || is 644 share/doc/libdsinfer/$file
done
soname=libdsinfer.so.${version%%.*}
[ "$(readlink "$root$prefix/lib/$soname")" = "libdsinfer.so.$version" ] || fail "link $soname"
[ "$(readlink "$root$prefix/lib/libdsinfer.so")" = "$soname" ] || fail "link libdsinfer.so"
[ "$("$root$prefix/bin/dsinfer" --version)" = "dsinfer $version" ] || fail "bin/dsinfer"
[ -z "$(find "$root" ! -type d -newermt @1700000001)" ] || fail "SOURCE_DATE_EPOCH is ignored"
[ -z "$(find "$root" ! -type d ! -newermt @1699999999)" ] || fail "SOURCE_DATE_EPOCH is ignored"
grep -rlF -e "$work" -e "$(pwd)" "$root$prefix/lib/pkgconfig" "$root$prefix/share" |
    sed 's/^/FAILED  a path of this machine in /' >"$work/paths"
[ -s "$work/paths" ] && { cat "$work/paths"; failed=$((failed + 1)); }

# Twice the same: a second install over the first, and one elsewhere, are equal.
for other in "$root" "$work/a second root"; do
    SOURCE_DATE_EPOCH=1700000000 plain_make install DESTDIR="$other" PREFIX=$prefix \
        >"$work/out" 2>&1 || fail "make install, again: $(cat "$work/out")"
done
diff -r "$root" "$work/a second root" >"$work/out" 2>&1 || fail "$(head -3 "$work/out")"

# ---- A stranger builds against it ---------------------------------------------------------------
export PKG_CONFIG_SYSROOT_DIR="$root" PKG_CONFIG_LIBDIR="$root$prefix/lib/pkgconfig"
[ "$(pkg-config --modversion dsinfer)" = "$version" ] || fail "pkg-config --modversion"
grep -qx "prefix=$prefix" "$PKG_CONFIG_LIBDIR/dsinfer.pc" || fail "the prefix in dsinfer.pc"
mkdir "$work/stranger"
cp examples/01_generate.c "$work/stranger/first.c"
here=$(pwd)
ticket='工单分拨：
我要举报，南山区文化路，外地户口能不能在这里读书。望尽快解决。'
answers() { # what, program
    answer=$("$2" "$here/examples/models/tiny-gov" "$ticket" 2>"$work/err") ||
        fail "$1: $(cat "$work/err")"
    case $answer in
    *'"部门": "教育局"'*) ;;
    *) fail "$1 answered: $answer" ;;
    esac
}
cd "$work/stranger" || exit 1
# shellcheck disable=SC2046,SC2086
$cc -std=c11 first.c $(pkg-config --cflags --libs dsinfer) -o shared >"$work/out" 2>&1 ||
    fail "shared: $(cat "$work/out")"
LD_LIBRARY_PATH="$root$prefix/lib" answers "the shared library" ./shared
LD_LIBRARY_PATH="$work/nowhere" ./shared >/dev/null 2>&1 && fail "shared: found without its folder"

# Where there is no shared library, -ldsinfer is the archive, and --static names what it needs.
rm "$root$prefix"/lib/libdsinfer.so*
# shellcheck disable=SC2046,SC2086
$cc -std=c11 first.c $(pkg-config --static --cflags --libs dsinfer) -o static >"$work/out" 2>&1 ||
    fail "static: $(cat "$work/out")"
answers "the static library" ./static
case " $(pkg-config --static --libs dsinfer) " in
*" -lm "*) ;;
*) fail "pkg-config --static does not name -lm" ;;
esac
case " $(pkg-config --libs dsinfer) " in
*" -lm "*) fail "pkg-config names -lm for the shared library" ;;
esac
cd "$here" || exit 1
unset PKG_CONFIG_SYSROOT_DIR PKG_CONFIG_LIBDIR

# ---- Other folders, and away with all of it -----------------------------------------------------
for folder in root "a second root"; do
    echo mine >"$work/$folder$prefix/include/other.h"
    plain_make uninstall DESTDIR="$work/$folder" PREFIX=$prefix >"$work/out" 2>&1 ||
        fail "make uninstall: $(cat "$work/out")"
    left=$(find "$work/$folder" ! -type d ! -name other.h)
    [ -z "$left" ] || fail "left by make uninstall: $left"
    left=$(find "$work/$folder" -type d \( -name deepseek -o -name libdsinfer \))
    [ -z "$left" ] || fail "a folder left by make uninstall: $left"
    [ -f "$work/$folder$prefix/include/other.h" ] || fail "make uninstall took a stranger's file"
done
# Folders given one by one, as distributions do.
plain_make install DESTDIR="$work/third" PREFIX=/usr libdir=/usr/lib64 mandir=/man \
    >"$work/out" 2>&1 || fail "libdir: $(cat "$work/out")"
[ -f "$work/third/usr/lib64/libdsinfer.a" ] || fail "libdir was not followed"
[ -f "$work/third/man/man1/dsinfer.1" ] || fail "mandir was not followed"
# shellcheck disable=SC2016 # the text of the file
grep -qx 'libdir=${prefix}/lib64' "$work/third/usr/lib64/pkgconfig/dsinfer.pc" ||
    fail "dsinfer.pc: $(cat "$work/third/usr/lib64/pkgconfig/dsinfer.pc")"
plain_make uninstall DESTDIR="$work/third" PREFIX=/usr libdir=/usr/lib64 mandir=/man >/dev/null
[ -z "$(find "$work/third" ! -type d)" ] || fail "left: $(find "$work/third" ! -type d)"
plain_make install DESTDIR="$work/fourth" PREFIX=not/whole >"$work/out" 2>&1 &&
    fail "a prefix without / was accepted"
grep -q 'must begin with a /' "$work/out" || fail "no reason for the prefix: $(cat "$work/out")"

echo "install: $failed failed"
[ "$failed" = 0 ]
