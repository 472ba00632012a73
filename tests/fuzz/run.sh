#!/bin/sh
# run.sh TARGET ...: each fuzz target for FUZZ_SECONDS, one after the other; `make fuzz` calls it.
# Inputs that reach something new are kept in $BUILD/corpus/NAME, those of the repository in
# tests/fuzz/corpus/NAME are read and left alone. An input that fails is kept in $BUILD/found.
# One line per target with executions and coverage (edges of the whole program), then a closing
# line. Exit code 1 if an input failed.
set -u
cd "$(dirname "$0")/../.." || exit 1
build=${BUILD:-build/fuzz}
seconds=${FUZZ_SECONDS:-30}
export ASAN_OPTIONS="detect_leaks=1:allocator_may_return_null=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
export UBSAN_OPTIONS="print_stacktrace=1"
mkdir -p "$build/found" "$build/log"
total=0
failed=0
n=0
for target; do
    name=$(basename "$target")
    corpus=$build/corpus/$name
    log=$build/log/$name.log
    mkdir -p "$corpus"
    dict=
    case $name in
    *encode) ;;
    *) dict=-dict=tests/fuzz/json.dict ;;
    esac
    # A limit of its own on the length, lest megabytes of the same are all that is tried.
    # shellcheck disable=SC2086
    "$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=32768 \
        -print_final_stats=1 -artifact_prefix="$build/found/$name-" $dict \
        "$corpus" "tests/fuzz/corpus/$name" >"$log" 2>&1
    code=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)
    edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    printf '%-20s %9s executions, %5s edges, %4s inputs kept%s\n' "$name" "${runs:-?}" \
        "${edges:-?}" "$(find "$corpus" -type f | wc -l)" "$([ $code = 0 ] || echo ', FAILED')"
    total=$((total + ${runs:-0}))
    n=$((n + 1))
    [ $code = 0 ] && continue
    failed=$((failed + 1))
    grep -E 'ERROR|SUMMARY|broken promise|runtime error|Test unit written' "$log" | tail -n 6
done
echo "fuzz: $n targets, $seconds s each, $total executions, $failed failed"
[ "$failed" = 0 ]
