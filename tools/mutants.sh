#!/usr/bin/env bash
# Changes code in small ways, one at a time, and lists the changes that no test notices: `make mutants PART=blocks`.
# What was found of late is in tests/mutants.md.
# Usage: tools/mutants.sh sampling|blocks|tokenizer|schedules [options of cargo-mutants, or names for mutmut]
set -euo pipefail
part="${1:?usage: tools/mutants.sh sampling|blocks|tokenizer|schedules [options]}"
shift
cd "$(dirname "$0")/.."
out="$PWD/.cache/mutants/$part"
mkdir -p "$out"

mutate_schedules() {
    rm -rf "$out"
    mkdir -p "$out/tests/unit"
    cp -r python/llm "$out/llm"
    cp tests/__init__.py "$out/tests/"
    cp tests/unit/__init__.py tests/unit/test_training_schedules.py "$out/tests/unit/"
    cat >"$out/pyproject.toml" <<'END'
[tool.mutmut]
source_paths = ["llm"]
only_mutate = ["llm/training/schedules.py"]
pytest_add_cli_args_test_selection = ["tests/unit/test_training_schedules.py"]
pytest_add_cli_args = ["-p", "no:cacheprovider", "--hypothesis-profile=ci"]
END
    cd "$out"
    # Elsewhere PYTHONPATH may name the package that is not changed.
    env -u PYTHONPATH "${MUTMUT:-mutmut}" run --max-children 2 "$@" | tr '\r' '\n' | tee run.log | grep -v Generating | tail -n 2
    local names name
    names=$("${MUTMUT:-mutmut}" results | sed -n 's/^ *\(.*__mutmut_[0-9]*\): .*/\1/p')
    for name in $names; do "${MUTMUT:-mutmut}" show "$name"; done
    echo "» $(wc -w <<<"$names") changes that no test notices"
}

case "$part" in
    sampling) files=('rust/src/sampling/*.rs') tests=sampling:: ;;
    blocks) files=(rust/src/scheduler/{block_pool,block_index,block_events,hash,slots}.rs) tests=scheduler:: ;;
    tokenizer) files=('rust/src/tokenizer/**/*.rs') tests=tokenizer:: ;;
    schedules) mutate_schedules "$@"; exit ;;
    *) echo "error: \`PART\` must be sampling, blocks, tokenizer or schedules, got $part" >&2; exit 2 ;;
esac
if ! cargo mutants --version >/dev/null 2>&1; then
    tools/step.sh "installing cargo-mutants" cargo install --locked cargo-mutants
fi
# No part that is changed here uses the kernels, which take most of the time to compile; fuzzing leaves them out too.
export RUSTFLAGS="--cfg fuzzing" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target/mutants}"
export CARGO_PROFILE_TEST_DEBUG=none CARGO_PROFILE_TEST_OPT_LEVEL=0 CARGO_PROFILE_TEST_INCREMENTAL=true
# A property that fails need not look for a smaller example.
export PROPTEST_MAX_SHRINK_ITERS=0
# The tokenizer's tests take a minute without optimization: most changes fail in a few cases, which end a run of nextest.
if [ "$part" = tokenizer ]; then
    export PROPTEST_CASES="${PROPTEST_CASES:-32}"
fi
tool=cargo
if cargo nextest --version >/dev/null 2>&1; then
    tool=nextest
fi
cargo mutants "${files[@]/#/--file=}" --output "$out" --test-tool "$tool" --no-shuffle --colors never \
    --cargo-arg=--config='profile.test.package."*".opt-level=2' --minimum-test-timeout 20 --timeout-multiplier 2 "$@" \
    -- --lib --test core "$tests"
