#!/bin/sh
# test_examples.sh: every example does what its README says, with the model of the repository.
set -u
cd "$(dirname "$0")/.." || exit 1
examples=${BUILD:-build}/examples
model=examples/models/tiny-gov
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
failed=0
fail() {
    echo "FAILED  $*"
    failed=$((failed + 1))
}

for source in examples/*.c; do
    name=$(basename "$source" .c)
    [ -x "$examples/$name" ] || fail "$source was not built"
    grep -q "$name" "$0" || fail "$source has no test here"
    grep -q "$name" examples/README.md || fail "$source is not in examples/README.md"
done

# The first C program of both READMEs is 01_generate.c without its first comment.
for readme in README.md README.zh.md; do
    [ "$(sed -n '/^#include/,$p' examples/01_generate.c)" = \
        "$(awk '/^```/ { inside = /^```c$/ && !n++; next } inside' $readme)" ] ||
        fail "$readme: its first program is not examples/01_generate.c"
done

# 01_generate: one answer on stdout; an error in words and exit code 1.
ticket='工单分拨：
我要举报，南山区文化路，外地户口能不能在这里读书。望尽快解决。'
answer=$("$examples/01_generate" $model "$ticket" 2>/dev/null) || fail "01_generate: exit code $?"
case $answer in
'{"类别": "'*'"部门": "教育局"'*'}') ;;
*) fail "01_generate answered: $answer" ;;
esac
message=$("$examples/01_generate" no-such-folder hello 2>&1 >/dev/null)
[ $? = 1 ] || fail "01_generate: a missing folder must end with 1"
case $message in
*no-such-folder*) ;;
*) fail "01_generate: the message does not name the folder: $message" ;;
esac

# Every example: words on stderr and exit code 1 if there is no model, 2 if the call is wrong.
for name in 02_stream 03_sessions 04_event_loop; do
    "$examples/$name" >/dev/null 2>&1 </dev/null
    [ $? = 2 ] || fail "$name: without arguments it must end with 2"
    second=hello
    [ $name = 04_event_loop ] && second=
    # shellcheck disable=SC2086
    message=$("$examples/$name" no-such-folder $second 2>&1 >/dev/null </dev/null)
    [ $? = 1 ] || fail "$name: a missing folder must end with 1"
    case $message in
    *no-such-folder*) ;;
    *) fail "$name: the message does not name the folder: $message" ;;
    esac
done

# 02_stream: the same answer as 01_generate; progress and figures on stderr.
figures=$work/figures
streamed=$("$examples/02_stream" $model "$ticket" 2>"$figures") || fail "02_stream: exit code $?"
[ "$streamed" = "$answer" ] || fail "02_stream answered: $streamed"
grep -Eq '^prompt: ([0-9]+) of \1 tokens$' "$figures" ||
    fail "02_stream: no progress: $(cat "$figures")"
rate='[0-9]+ tokens, [0-9]+/s'
grep -Eq "^first token after [0-9.]+ s; prompt: $rate; answer: $rate$" "$figures" ||
    fail "02_stream: no figures: $(cat "$figures")"

# 03_sessions: for each ticket three categories, the likeliest first.
light='工单分拨：您好，南山区人民路路灯不亮，走路看不清，请尽快处理。'
words=$("$examples/03_sessions" $model "$ticket" "$light") || fail "03_sessions: exit code $?"
[ "$(echo "$words" | grep -c ' % ')" = 6 ] || fail "03_sessions: not 6 words: $words"
first=$(echo "$words" | awk '/ % / && ++n % 3 == 1 { if ($1 < 90) print "unsure:"; print $3 }')
[ "$first" = "$(printf '入学咨询\n路灯故障')" ] || fail "03_sessions: the categories are: $first"

# 04_event_loop: a line for every question, more of them than places; in the order they end.
printf '%s\n\n%s\n%s\n%s\n%s\n%s' "$light" 你好 你能做什么 "$light" 你好 "$light" |
    "$examples/04_event_loop" $model >"$work/loop" 2>&1 || fail "04_event_loop: exit code $?"
[ "$(wc -l <"$work/loop")" = 6 ] || fail "04_event_loop: not 6 lines: $(cat "$work/loop")"
[ "$(grep -c '"类别": "路灯故障"' "$work/loop")" = 3 ] ||
    fail "04_event_loop answered: $(cat "$work/loop")"

# Ctrl-C ends the running answers and not the program.
mkfifo "$work/questions"
"$examples/04_event_loop" $model <"$work/questions" >"$work/loop" 2>"$work/talk" &
loop=$!
exec 8>"$work/questions"
tries=0
while ! grep -q cancelled "$work/talk" && [ $tries -lt 200 ]; do
    printf '%s\n%s\n%s\n%s\n' "$light" "$light" "$light" "$light" >&8
    sleep 0.05
    kill -INT $loop
    tries=$((tries + 1))
done
grep -q cancelled "$work/talk" || fail "04_event_loop: $tries signals cancelled nothing"
echo "$light" >&8
exec 8>&-
wait $loop || fail "04_event_loop: exit code $? after signals"
tail -n 1 "$work/loop" | grep -q '^{"类别": "路灯故障".*}$' ||
    fail "04_event_loop: its last answer is: $(tail -n 1 "$work/loop")"

echo "examples: $failed failed"
[ "$failed" = 0 ]
