#!/bin/sh
# test_symbols.sh: what libdsinfer.so exports and needs. The exported functions are exactly those of
# tests/symbols.txt, which are exactly those that dsinfer.h marks with DSI_API; the library
# needs libc and libm alone. After a deliberate change of the API:
#   sh tests/test_symbols.sh --update
set -u
cd "$(dirname "$0")/.." || exit 1
library=${BUILD:-build}/libdsinfer.so
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
export LC_ALL=C
failed=0
fail() {
    echo "FAILED  $*"
    failed=$((failed + 1))
}

# The name before the first "(" of each DSI_API declaration.
awk '/^DSI_API/ { line = $0; sub(/\(.*/, "", line); sub(/.*[ *]/, "", line); print line }' \
    include/deepseek/dsinfer.h | sort >"$work/header"
if [ "${1:-}" = --update ]; then
    cp "$work/header" tests/symbols.txt
    echo "tests/symbols.txt: $(wc -l <tests/symbols.txt) functions"
    exit 0
fi

[ -s "$work/header" ] || fail "no DSI_API declaration found in dsinfer.h"
diff -u tests/symbols.txt "$work/header" ||
    fail "dsinfer.h and tests/symbols.txt differ (sh tests/test_symbols.sh --update)"

nm -D --defined-only "$library" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | sort \
    >"$work/so"
diff -u tests/symbols.txt "$work/so" || fail "$library exports other symbols than symbols.txt"

nm -D --defined-only "$library" | awk '$2 != "A" && $2 != "T" { print }' >"$work/data"
[ -s "$work/data" ] && fail "exported data: $(cat "$work/data")"

# No global name without our prefix in the archive either: a program links it beside its own code.
nm -g --defined-only "${library%.so}.a" |
    awk 'NF == 3 && $3 !~ /^dsi_/ { print $3 }' >"$work/foreign"
[ -s "$work/foreign" ] && fail "global names without dsi_: $(tr '\n' ' ' <"$work/foreign")"

readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' >"$work/needed"
while IFS= read -r name; do
    case $name in
    libc.so.* | libm.so.* | ld-linux*) ;;
    libpthread.so.0 | libdl.so.2) ;; # files of their own in glibc before 2.34, part of libc since
    *) fail "$library needs $name; only libc and libm are allowed" ;;
    esac
done <"$work/needed"
grep -q '^libc.so' "$work/needed" || fail "$library does not name libc: was it read at all?"

soname=$(readelf -d "$library" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')
[ "$soname" = libdsinfer.so.0 ] || fail "SONAME is $soname, not libdsinfer.so.0"

echo "symbols: $(wc -l <tests/symbols.txt) functions, $failed failed"
[ "$failed" = 0 ]
