#!/bin/sh
# support_matrix.sh: the table of kernels and instruction sets in README.md, from a test run.
#
#   build/check_kernels --json | sh tools/support_matrix.sh [README.md README.zh.md ...]
#
# Without files the table goes to stdout; with files it replaces what stands between their lines
# <!-- support matrix: begin --> and <!-- support matrix: end -->. A cell says what happened in this
# run: "run N" (N kernels passed on this CPU), "EMULATED N" (passed through a double of the missing
# instructions), "not run" (this CPU lacks the instructions), "FAIL"; "-": there is no such kernel.
# Exit codes: 0 ok, 1 a kernel failed, 2 no results in the input.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
table=$work/table

# Keys are picked by name: a new key in the JSON lines changes nothing here.
awk '
    function value(key,    text) {
        if (!match($0, "\"" key "\": *(\"[^\"]*\"|true|false)")) return ""
        text = substr($0, RSTART + length(key) + 3, RLENGTH - length(key) - 3)
        gsub(/[ "]/, "", text)
        return text
    }
    !/^\{"kernel"/ { next }
    {
        op = value("stem"); isa = tolower(value("isa")); state = value("state")
        while (sub(/_(fp8|bf16|f16|f32|i8|i4|a8|interleaved|half)$/, "", op)) continue
        if (!(op in known)) { known[op] = 1; ops[++n_ops] = op }
        rank = state == "FAIL" ? 4 : state == "skipped" ? 1 : value("emulated") == "true" ? 2 : 3
        if (rank == 4) failed = 1
        if (rank > best[op, isa]) { best[op, isa] = rank; count[op, isa] = 0 }
        if (rank == best[op, isa]) count[op, isa]++
        n++
    }
    END {
        if (!n) exit 2
        n_isas = split("ref avx2 avx512 avx512vnni avx512bf16 amx", isas, " ")
        print "| kernel | reference | AVX2 | AVX-512 | AVX-512 VNNI | AVX-512 BF16 | AMX |"
        print "|---|---|---|---|---|---|---|"
        for (i = 1; i <= n_ops; i++) {
            line = "| `" ops[i] "` |"
            for (k = 1; k <= n_isas; k++) {
                rank = best[ops[i], isas[k]]
                number = " " count[ops[i], isas[k]]
                line = line (rank == 4 ? " FAIL" number : rank == 3 ? " run" number \
                    : rank == 2 ? " EMULATED" number : rank == 1 ? " not run" : " -") " |"
            }
            print line
        }
        exit failed
    }' >"$table" && code=0 || code=$?

if [ "$code" = 2 ]; then
    echo "support_matrix: no kernel in the input; pipe 'build/check_kernels --json' into it" >&2
    exit 2
fi
[ $# -gt 0 ] || cat "$table"
for file; do
    grep -q '<!-- support matrix: end -->' "$file" || {
        echo "support_matrix: $file has no lines '<!-- support matrix: begin/end -->'" >&2
        exit 2
    }
    awk -v table="$table" '
        /<!-- support matrix: end -->/ { inside = 0 }
        !inside { print }
        /<!-- support matrix: begin -->/ {
            inside = 1
            while ((getline line <table) > 0) print line
        }' "$file" >"$work/new"
    cat "$work/new" >"$file"
done
exit "$code"
