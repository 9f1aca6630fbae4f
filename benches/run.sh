#!/usr/bin/env bash
# Runs the criterion and the pytest-benchmark suite of each subject and keeps their results under benches/results/.
set -euo pipefail
python="${1:?usage: benches/run.sh PYTHON}"
cd "$(dirname "$0")/.."
results=benches/results
mkdir -p "$results"
for subject in tokenizer sampling scheduler; do
    cargo bench --quiet --features bench --bench "$subject" -- --noplot --quiet | tee "$results/$subject.criterion.txt"
    [ "$subject" = sampling ] && continue  # not a pytest-benchmark suite: contenders take turns there
    "$python" -m pytest "benches/bench_$subject.py" -q --benchmark-only --benchmark-disable-gc \
        --benchmark-json="$results/$subject.full.json"
    "$python" benches/keep.py "$results/$subject.full.json" "$results/$subject.pytest-benchmark.json"
done
for threads in 1 2; do
    "$python" benches/bench_sampling.py --threads "$threads"
done
