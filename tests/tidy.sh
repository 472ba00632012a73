#!/bin/sh
# tidy.sh [ROOT]: the laws of the house, each violation as file:line: rule. Exit code 1 if there is
# any. Tree, text and README laws are here, those for C files in tidy.awk, and test_tidy.sh plants
# one violation of each. Plain sh and awk, bytes throughout (LC_ALL=C).
set -u
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd) || exit 1
cd "${1:-$here/..}" || exit 1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
found=$work/found
: >"$found"

# ---- The files: what git would commit, or, where there is no git, everything but build/. --------
if ! { [ -e .git ] && git ls-files -co --exclude-standard 2>/dev/null; } >"$work/listed"; then
    find . \( -name .git -o -path ./build \) -prune -o -type f -print | sed 's|^\./||' \
        >"$work/listed"
fi
sort -u "$work/listed" | while IFS= read -r path; do
    [ -f "$path" ] && printf '%s\n' "$path"
done >"$work/files"

data='^(tests/data|examples/models)/'
grep -Ev "$data" "$work/files" >"$work/own"
grep -E '\.(c|h|inc)$' "$work/own" >"$work/c"
grep -E '(\.(c|h|inc|awk|sh|py|map)|^Makefile|/Makefile|^\.ci/run)$' "$work/own" >"$work/source"
grep -E '(\.(c|h|inc|awk|sh|py|map|md|txt|yml|json|toml)|Makefile|^\.ci/run|^LICENSE)$' \
    "$work/own" >"$work/text"
[ -s "$work/c" ] || { echo "tidy: no C file found in $(pwd)"; exit 1; }

# Runs awk (program first) over the files of a list.
each() {
    list=$1
    shift
    tr '\n' '\0' <"$list" | xargs -0 -r awk "$@" >>"$found"
}

# ---- C files ------------------------------------------------------------------------------------
each "$work/c" -f "$here/tidy.awk"

# ---- Text: columns, tabs, blanks, length of files, words that have no place here ----------------
# A column is a character: bytes 0x80..0xBF only continue one.
# shellcheck disable=SC2016
each "$work/source" '
    FNR == 1 { generated = 0 }
    FNR <= 5 && /[Gg]enerated( by|,)/ { generated = 1 }
    FNR == 601 && !generated { print FILENAME ":601: file: more than 600 lines" }
    {
        line = $0
        gsub(/[\200-\277]/, "", line)
        columns = length(line)
        if (columns > 100) print FILENAME ":" FNR ": columns: " columns ", the limit is 100"
    }
    /\t/ && FILENAME !~ /Makefile$/ { print FILENAME ":" FNR ": tab" }'
# A brace or bracket splits the words, so that these lines do not find themselves.
# shellcheck disable=SC2016
each "$work/text" '
    /[ \t\r]$/ { print FILENAME ":" FNR ": blank at the end of the line" }
    /(^|[^A-Za-z])(TO[D]O|FIX[M]E|X[X]X)([^A-Za-z]|$)/ {
        print FILENAME ":" FNR ": unfinished: " $0
    }
    /(^|[^A-Za-z0-9_.~)}>*-])\/(work|root|home)(\/|[^A-Za-z0-9_\/-]|$)/ {
        print FILENAME ":" FNR ": path of one machine: " $0
    }
    /pypi[.]org|pythonhosted[.]org|npmjs[.]|crates[.]io|rubygems[.]org|proxy[.]golang/ ||
    /maven[.]org|repo[.]maven|anaconda[.]org|deb[.]debian|archive[.]ubuntu|(^|[^a-z])mirrors[.]/ {
        print FILENAME ":" FNR ": package registry: " $0
    }'

# The last byte of every file, in the order of the list.
while IFS= read -r path; do
    if [ -s "$path" ]; then printf '%s\n' "$path"; else echo "$path:1: empty file" >>"$found"; fi
done <"$work/text" >"$work/filled"
tr '\n' '\0' <"$work/filled" | xargs -0 -r tail -q -c 1 | od -An -v -tx1 -w1 >"$work/last"
paste -d ' ' "$work/last" "$work/filled" |
    awk '$1 != "0a" { print $2 ":1: no newline at the end of the file" }' >>"$found"

# Functions of Python files: from "def" to the next line that is not deeper.
grep '\.py$' "$work/source" >"$work/python"
# shellcheck disable=SC2016
each "$work/python" '
    function close_until(depth) {
        while (n && indent[n] >= depth) {
            if (last - start[n] + 1 > 70)
                print name ":" start[n] ": function: " last - start[n] + 1 " lines, the limit is 70"
            n--
        }
    }
    FNR == 1 { close_until(0); name = FILENAME; last = 0 }
    /^[ ]*$/ { next }
    { match($0, /^ */); close_until(/^[ ]*[)\]}]/ ? RLENGTH + 1 : RLENGTH) }
    /^ *(async )?def / { match($0, /^ */); n++; indent[n] = RLENGTH; start[n] = FNR }
    { last = FNR }
    END { close_until(0) }'

# ---- The tree -----------------------------------------------------------------------------------
root='^(Makefile|README\.md|README\.zh\.md|LICENSE|SECURITY\.md|\..*)$'
grep -v / "$work/files" | grep -Ev "$root" |
    sed 's/$/:1: root: only Makefile, READMEs, LICENSE, SECURITY.md, dotfiles here/' >>"$found"

# A folder is described by its own README.md or by a line of the one above, which names it "base/".
grep -E '\.(c|h|py|sh|go|java)$' "$work/own" | grep / | sed 's|/[^/]*$||' | sort -u |
    while IFS= read -r folder; do
        [ "$folder" = include/deepseek ] && continue # the headers are their own chapter
        [ -f "$folder/README.md" ] && continue
        grep -qF "${folder##*/}/" "$(dirname "$folder")/README.md" 2>/dev/null && continue
        echo "$folder:1: readme: no README.md here, and none above that names ${folder##*/}/"
    done >>"$found"

tr '\n' '\0' <"$work/own" | xargs -0 -r ls -ln |
    awk '$5 > 1048576 { print $9 ":1: size: " $5 " bytes; the limit is 1 MiB outside the data" }' \
        >>"$found"

if [ -f README.md ] && [ -f README.zh.md ]; then
    for readme in README.md README.zh.md; do
        awk '/^```/ { fences++; inside = !inside } !inside && /^#+ / { headings++ }
            END { printf "%d headings and %d code fences\n", headings, fences }' $readme
    done | awk 'NR == 1 { en = $0 } NR == 2 && $0 != en {
        print "README.zh.md:1: readme: " $0 "; README.md has " en }' >>"$found"
fi

# ---- kernels.inc: a kernel stands in the file its stem and instruction set demand ---------------
# K(matmul, matmul_fp8_bf16, AVX512, dsi_matmul_fp8_bf16__avx512, c) -> kernels/matmul/fp8_avx512.c
if [ -f kernels/kernels.inc ]; then
    awk -F '[(), ]+' '
        /^K\(/ {
            type = $2; stem = $3; isa = tolower($4); symbol = $5; format = stem
            where = "kernels/kernels.inc:" FNR ": kernel: "
            if (symbol != "dsi_" stem "__" isa) print where symbol " should be dsi_" stem "__" isa
            if (type == "matmul" || type == "matmul_t" || type == "attend" ||
                type == "decode") {
                sub("^" type "_", "", format)
                sub(/_.*/, "", format)
                file = type "/" format
            } else if (type == "rms_norm") file = "norm/rms"
            else if (type == "swiglu" || type == "cast" || type == "quantize") file = "act/" type
            else if (type == "decode_blocks") file = "decode/blocks"
            else if (type == "rope") file = "rope/rope"
            else if (type == "route") file = "moe/route"
            else if (type == "index") file = "attend/index"
            else { print where "type " type " has no folder in tidy.sh"; next }
            file = "kernels/" file "_" isa ".c"
            found = 0
            while ((getline line <file) > 0)
                if (index(line, symbol "(") || index(line, symbol ",")) found = 1
            close(file)
            if (!found) print where symbol " does not stand in " file
        }' kernels/kernels.inc >>"$found"
fi

sort -t: -k1,1 -k2,2n "$found"
violations=$(wc -l <"$found")
echo "tidy: $(wc -l <"$work/files") files, $((violations)) violations"
[ "$violations" -eq 0 ]
