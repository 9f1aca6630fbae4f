#!/usr/bin/env bash
# The inner loop of development: what takes seconds to a minute, each step with its time. `make check` calls this.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
step() {
    local what="$1" from=$SECONDS
    shift
    "$@" || { echo "error: $what failed: $*" >&2; exit 1; }
    echo "» $what · $((SECONDS - from)) s"
}
step "formatters" bash -c 'cargo fmt --check && ruff format --check --quiet .'
step "linters" bash -c 'ruff check --quiet . && cargo clippy --quiet --all-targets --features bench,python -- -D warnings'
step "types" mypy --no-error-summary
step "Rust tests" bash -c 'cargo test --quiet --lib --test core 2>&1 | grep -v "^$" | tail -n 3; exit "${PIPESTATUS[0]}"'
step "unit tests" python -m pytest -q -m "not long" tests/unit
echo "» everything passed in $((SECONDS - started)) s"
