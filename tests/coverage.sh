#!/bin/sh
# coverage.sh: lines and branches of the parsers that the tests run through, as a table. Called by
# `make coverage`, which has built everything for gcov into $BUILD. Branches of failing calls of the
# system are part of it: test_torture and test_fault take them.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}/obj
parsers="lib/base/json lib/model/safetensors lib/model/checkpoint lib/model/config
    lib/model/config_rope lib/model/weights lib/text/tokenizer_load lib/text/tokenizer_rules
    lib/text/chat lib/text/chat_templates lib/snapshot"
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
printf '%-28s %7s %9s %10s\n' file lines branches 'of them'
for parser in $parsers; do
    [ -f "$build/$parser.gcda" ] || { echo "$parser: not run: make coverage" >&2; exit 1; }
    # "taken 0" of a branch that was reached, and "never executed", are branches not taken.
    gcov -b -c -t "$build/$parser.gcda" 2>/dev/null >"$work/gcov"
    awk -v file="$parser.c" '
        /^ *-: *0:Source:/ { on = $0 ~ (file "$") }
        on && /^branch/ { n++; if ($0 !~ /taken 0( |$)|never executed/) taken++ }
        on && /^ *[0-9]+\*?:/ { run++; lines++ }
        on && /^ *(#####|=====):/ { lines++ }
        END { printf "%-28s %6.1f%% %8.1f%% %4d/%4d\n", file, 100 * run / lines, 100 * taken / n,
                  taken, n }' "$work/gcov"
done | tee "$work/table"
awk '{ split($NF, part, "/"); a = part[1]; if (NF > 4) a = $(NF - 1); sub(/\/.*/, "", a)
       taken += a; all += part[2] != "" ? part[2] : $NF }
     END { printf "%-28s %7s %8.1f%% %4d/%4d\n", "all", "", 100 * taken / all, taken, all }' \
    "$work/table"
