#!/bin/sh
# test_security.sh: SECURITY.md names tests that are there and limits that the code has.
set -u
cd "$(dirname "$0")/.." || exit 1
failed=0
fail() {
    echo "FAILED  $*"
    failed=$((failed + 1))
}
n=0
for name in $(grep -oE '`(test_[a-z0-9_]+|check_kernels)`' SECURITY.md | tr -d '`' | sort -u); do
    n=$((n + 1))
    [ -f "tests/$name.c" ] || [ -f "tests/$name.sh" ] || fail "tests/$name is not there"
done
[ "$n" -gt 15 ] || fail "SECURITY.md names $n tests only"
for target in $(grep -oE '`make [a-z-]+`' SECURITY.md | tr -d '`' | sed 's/make //' | sort -u); do
    grep -q "^$target:" Makefile || fail "make $target is not there"
done
# Rows "| what | 4096 | `DSI_MAX_SHARDS` |" against "DSI_MAX_SHARDS = 4096", "... UINT64_C(4096)".
work=$(mktemp) || exit 1
trap 'rm -f "$work"' EXIT
grep -E '^\|.*\| [0-9]+ \| `DSI_[A-Z_]+` \|$' SECURITY.md >"$work"
rows=0
while IFS='|' read -r _ what value constant _; do
    value=$(echo "$value" | tr -d ' ')
    constant=$(echo "$constant" | tr -d ' `')
    rows=$((rows + 1))
    grep -rhE "(#define )?$constant( =)? (UINT64_C\()?$value\b" lib/*/*.h >/dev/null ||
        fail "$constant is not $value in lib/ ($what)"
done <"$work"
[ "$rows" -ge 8 ] || fail "SECURITY.md has $rows limits only"
for readme in README.md README.zh.md; do
    grep -q 'SECURITY\.md' $readme || fail "$readme does not name SECURITY.md"
done
echo "security: $n tests and $rows limits named, $failed failed"
[ "$failed" = 0 ]
