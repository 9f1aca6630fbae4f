#!/usr/bin/env bash
# Fuzzes every target for so many seconds: no panic, no hang, nothing but what the targets assert.
# What the fuzzer learned stays in fuzz/corpus, what it broke in fuzz/artifacts.
set -euo pipefail
seconds="${1:?usage: fuzz/run.sh SECONDS [libFuzzer options]}"
shift
cd "$(dirname "$0")/.."
if ! cargo fuzz --version >/dev/null 2>&1; then
    tools/step.sh "installing cargo-fuzz" cargo install --locked --debug cargo-fuzz || {
        echo "error: fuzzing needs cargo-fuzz, and cargo could not install it"
        echo "hint: run \`cargo install cargo-fuzz\` once with network access; libFuzzer needs a C++ compiler"
        exit 1
    } >&2
fi
# Sanitizers are behind a switch of nightly compilers; this opens it in the stable one that builds everything else.
export RUSTC_BOOTSTRAP=1
tools/step.sh "compiling the fuzz targets" cargo fuzz build
# A target keeps one core busy, so two run at a time.
fuzz() {
    echo "» fuzzing $1 for $seconds s"
    cargo fuzz run "$1" -- -max_total_time="$seconds" -timeout=10 -len_control=0 -max_len=4096 -verbosity=0 \
        -print_pcs=0 -print_funcs=0 -print_final_stats=1 "${@:2}" 2>&1 | sed -u "s/^/$1: /"
}
export -f fuzz
export seconds
printf '%s\n' encode decode read_formats answer |
    xargs -P 2 -I {} bash -o pipefail -c 'fuzz "$@"' fuzz {} "$@"
