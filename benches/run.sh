#!/usr/bin/env bash
# Runs the criterion and pytest-benchmark suites and keeps one result file each under benches/results/.
set -euo pipefail
python="${1:?usage: benches/run.sh PYTHON}"
cd "$(dirname "$0")/.."
results=benches/results
mkdir -p "$results"
cargo bench --quiet --bench tokenizer --bench sampling --bench scheduler -- --output-format bencher | tee "$results/criterion.txt"
"$python" -m pytest benches --benchmark-only --benchmark-json="$results/pytest-benchmark.json" \
    --override-ini=python_files='bench_*.py' --override-ini=testpaths=benches -q
"$python" benches/summary.py "$results"
