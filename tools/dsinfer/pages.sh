#!/bin/sh
# pages.sh BUILD: BUILD/dsinfer writes its own man pages and completion scripts.
#
#   BUILD/man/dsinfer.1, dsinfer-run.1 ...        English
#   BUILD/man/zh_CN/dsinfer.1, dsinfer-run.1 ...  Chinese
#   BUILD/completion/dsinfer.bash, _dsinfer, dsinfer.fish
#   BUILD/man/made                                last, when all is there
set -eu
build=$1
dsinfer=$build/dsinfer
mkdir -p "$build/man/zh_CN" "$build/completion"
# Built for another machine: it cannot run here, and the program is whole without its pages.
if ! "$dsinfer" --version >/dev/null 2>&1; then
    echo "pages.sh: $dsinfer does not run on this machine; no man pages, no completion" >&2
    exit 0
fi
rm -f "$build"/man/*.1 "$build"/man/zh_CN/*.1
for page in $("$dsinfer" man --list); do
    "$dsinfer" man "$page" --lang en >"$build/man/$page.1"
    "$dsinfer" man "$page" --lang zh >"$build/man/zh_CN/$page.1"
done
"$dsinfer" completion bash --lang en >"$build/completion/dsinfer.bash"
"$dsinfer" completion zsh --lang en >"$build/completion/_dsinfer"
"$dsinfer" completion fish --lang en >"$build/completion/dsinfer.fish"
touch "$build/man/made"
