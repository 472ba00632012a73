#!/bin/sh
# install.sh install|uninstall|pc: what `make install` puts where, and what `make uninstall` takes
# away again; pc prints dsinfer.pc. The Makefile hands over BUILD, DESTDIR and GNU's folder names.
#
# Nothing is built or fetched here. Files are copied with fixed modes; with SOURCE_DATE_EPOCH set
# their times are that second, so that two packages of one build are equal. uninstall removes what
# install writes, even when build/ is gone, and only the folders that are the project's own.
set -eu

action=${1:-}
: "${BUILD:?}" "${prefix:?}" "${bindir:?}" "${libdir:?}" "${includedir:?}" "${mandir:?}" \
    "${docdir:?}" "${pkgconfigdir:?}" "${bashcompletiondir:?}" "${zshcompletiondir:?}" \
    "${fishcompletiondir:?}"
DESTDIR=${DESTDIR:-}
version=$(sed -n 's/^#define DSI_VERSION_TEXT "\(.*\)"/\1/p' include/deepseek/types.h)
soname=libdsinfer.so.${version%%.*}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

put() { # mode, source, target
    mkdir -p "$DESTDIR$(dirname "$3")"
    rm -f "$DESTDIR$3" # a program that runs keeps its old file
    cp "$2" "$DESTDIR$3"
    chmod "$1" "$DESTDIR$3"
    [ -z "${SOURCE_DATE_EPOCH:-}" ] || touch -d "@$SOURCE_DATE_EPOCH" "$DESTDIR$3"
}

link() { # what the link holds, target
    rm -f "$DESTDIR$2"
    ln -s "$1" "$DESTDIR$2"
    [ -z "${SOURCE_DATE_EPOCH:-}" ] || touch -h -d "@$SOURCE_DATE_EPOCH" "$DESTDIR$2"
}

# A folder below the prefix, said in a way that lets the whole tree be moved.
below() { # folder, name of the variable
    case $1 in
    "$prefix") printf '${prefix}' ;;
    "$prefix"/*) printf '${prefix}%s' "${1#"$prefix"}" ;;
    *) printf '%s' "$1" ;;
    esac
}

print_pc() {
    cat <<END
prefix=$prefix
libdir=$(below "$libdir")
includedir=$(below "$includedir")

Name: dsinfer
Description: DeepSeek mixture-of-experts models inside your own program
Version: $version
Libs: -L\${libdir} -ldsinfer
Libs.private: -lm -lpthread -ldl
Cflags: -I\${includedir}
END
}

install_all() {
    for path in "$prefix" "$bindir" "$libdir" "$includedir" "$mandir" "$docdir"; do
        case $path in
        /*) ;;
        *) fail "$path must begin with a /: give whole paths, and DESTDIR=FOLDER to collect them" ;;
        esac
    done
    for file in dsinfer libdsinfer.a "$soname"; do
        [ -f "$BUILD/$file" ] || fail "$BUILD/$file is not there: run make first"
    done
    put 755 "$BUILD/dsinfer" "$bindir/dsinfer"
    put 644 "$BUILD/libdsinfer.a" "$libdir/libdsinfer.a"
    put 755 "$BUILD/$soname" "$libdir/libdsinfer.so.$version"
    link "libdsinfer.so.$version" "$libdir/$soname"
    link "$soname" "$libdir/libdsinfer.so"
    for file in include/deepseek/*.h; do
        put 644 "$file" "$includedir/deepseek/${file##*/}"
    done
    made=$(mktemp)
    print_pc >"$made"
    put 644 "$made" "$pkgconfigdir/dsinfer.pc"
    rm -f "$made"
    for file in README.md README.zh.md LICENSE SECURITY.md; do
        [ ! -f "$file" ] || put 644 "$file" "$docdir/$file"
    done
    # Not there when the library was built for another kind of machine.
    for file in "$BUILD"/man/*.1; do
        [ ! -f "$file" ] || put 644 "$file" "$mandir/man1/${file##*/}"
    done
    for file in "$BUILD"/man/zh_CN/*.1; do
        [ ! -f "$file" ] || put 644 "$file" "$mandir/zh_CN/man1/${file##*/}"
    done
    file=$BUILD/completion
    [ ! -f "$file/dsinfer.bash" ] || put 644 "$file/dsinfer.bash" "$bashcompletiondir/dsinfer"
    [ ! -f "$file/_dsinfer" ] || put 644 "$file/_dsinfer" "$zshcompletiondir/_dsinfer"
    [ ! -f "$file/dsinfer.fish" ] || put 644 "$file/dsinfer.fish" "$fishcompletiondir/dsinfer.fish"
    echo "dsinfer $version is in $DESTDIR$prefix"
    [ -n "$DESTDIR" ] || echo "if programs do not find $soname: sudo ldconfig"
}

uninstall_all() {
    rm -f "$DESTDIR$bindir/dsinfer" "$DESTDIR$libdir/libdsinfer.a" \
        "$DESTDIR$libdir/libdsinfer.so" "$DESTDIR$libdir"/libdsinfer.so.[0-9]* \
        "$DESTDIR$pkgconfigdir/dsinfer.pc" "$DESTDIR$bashcompletiondir/dsinfer" \
        "$DESTDIR$zshcompletiondir/_dsinfer" "$DESTDIR$fishcompletiondir/dsinfer.fish"
    for folder in "$mandir/man1" "$mandir/zh_CN/man1"; do
        rm -f "$DESTDIR$folder/dsinfer.1" "$DESTDIR$folder"/dsinfer-*.1
    done
    for file in include/deepseek/*.h; do
        rm -f "$DESTDIR$includedir/deepseek/${file##*/}"
    done
    for file in README.md README.zh.md LICENSE SECURITY.md; do
        rm -f "$DESTDIR$docdir/$file"
    done
    for folder in "$DESTDIR$includedir/deepseek" "$DESTDIR$docdir"; do
        [ ! -d "$folder" ] || rmdir "$folder" 2>/dev/null ||
            echo "left: $folder holds files of somebody else" >&2
    done
    echo "dsinfer is gone from $DESTDIR$prefix"
}

case $action in
install) install_all ;;
uninstall) uninstall_all ;;
pc) print_pc ;;
*) fail "usage: install.sh install|uninstall|pc, by way of make install" ;;
esac
