"""The serving table: ratios point the right way, and a bar is met only where it is."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benches" / "peers"))

import serving_report


def level(rate, first_token_s, inter_token_s):
    return {
        "output_tokens_per_s": rate,
        "first_token_p50_s": first_token_s,
        "first_token_p99_s": 2 * first_token_s,
        "inter_token_p50_s": inter_token_s,
        "spread": 0.05,
        "rounds": 3,
    }


def document(**changes):
    vllm = {"vllm, cores 0-1": level(50.0, 0.080, 0.020), "vllm, cores 0": level(80.0, 0.100, 0.012)}
    server = {"rounds": 3, "start_s": 4.0, "idle_bytes": 5e8, "loaded_bytes": 6e8}
    return {
        "machine": {"cpu": "a CPU", "cores": 2, "vectors": ["avx2"], "python": "3.11"},
        "load average": {"before": 0.1, "highest between loads": 1.0},
        "command": "python benches/bench_serving.py",
        "settings": {"dtype": "bfloat16", "prompt tokens": 142, "output tokens": 128},
        "levels": {"1": {"ours": level(120.0, 0.060, 0.008)} | vllm},
        "servers": {"ours": server, "vllm, cores 0": server | {"start_s": 66.0}},
        "agreement": {"share in common with ours": {"ours": 1.0, "vllm, cores 0": 0.5}},
    } | changes


def test_table_has_our_rates_over_theirs_and_our_times_over_theirs():
    table = serving_report.throughput(document())
    assert "| 1 | ours | 120.0 | 5% | – | 60 | – | 120 | 8.0 | – |" in table
    assert "| 1 | vllm, cores 0 | 80.0 | 5% | 1.50 | 100 | 0.60 | 200 | 12.0 | 0.67 |" in table
    assert "| vllm, cores 0 | 66.0 | 500 | 600 | 50% |" in table
    alone = serving_report.throughput(document(agreement={"share in common with ours": {}}))
    assert "| vllm, cores 0 | 66.0 | 500 | 600 | – |" in alone


def test_bars_hold_us_to_the_better_variant_of_each_figure():
    bars = serving_report.bars(document())
    assert "| 1 clients, ours, beside vLLM's better | 1.50 | ≥ 1.5 yes | ≥ 1.8 **no** |" in bars
    assert "| 1 clients, ours, first token p50 | 0.75 | | ≤ 0.9 yes |" in bars
    assert "| start to first token, s | 4.0 | ≤ 10 yes | |" in bars


def test_packed_weights_and_our_floats_are_each_held_to_the_bars():
    vllm = {"vllm, cores 0-1": level(50.0, 0.080, 0.020)}
    ours = {"ours": level(150.0, 0.040, 0.008), "ours, bf16": level(100.0, 0.080, 0.008)}
    bars = serving_report.bars(document(levels={"8": ours | vllm}))
    assert "| 8 clients, beside ours, bf16 | 1.50 | | ≥ 1.4 yes |" in bars
    assert "| 8 clients, ours, beside vLLM's better | 3.00 | ≥ 1.5 yes | ≥ 2.2 yes |" in bars
    assert "| 8 clients, ours, bf16, beside vLLM's better | 2.00 | ≥ 1.5 yes | ≥ 2.2 **no** |" in bars
    assert "| 8 clients, ours, bf16, first token p50 | 1.00 | | ≤ 0.5 **no** |" in bars


def test_bars_are_for_the_standard_load_alone():
    assert serving_report.bars(document(settings={"prompt tokens": 142, "output tokens": 16})) == []


def test_shared_prefix_compares_us_with_and_without_the_cache():
    figures = {"ours": level(90.0, 0.1, 0.01), "ours, no prefix cache": level(30.0, 1.0, 0.01)}
    assert "without: 3.00 (aim ≥ 3.0: yes)" in serving_report.shared_prefix(document(levels={"16": figures}))
    alone = serving_report.shared_prefix(document(levels={"16": {"ours": figures["ours"]}}))
    assert "without:" not in alone


def test_offline_ratio_is_their_time_over_ours():
    engine = {"output_tokens": 1000, "prompt_tokens": 500, "load_s": 1.0, "peak_bytes": 1e9}
    engines = {"ours": engine | {"seconds": 10.0}, "vllm, cores 0": engine | {"seconds": 25.0}}
    table = serving_report.offline(document(engines=engines))
    assert "| ours | 10.0 | 100.0 | – | 150.0 | 1.0 | 1000 |" in table
    assert "| vllm, cores 0 | 25.0 | 40.0 | 2.50 | 60.0 | 1.0 | 1000 |" in table
