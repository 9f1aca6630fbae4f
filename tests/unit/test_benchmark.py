"""The load, the figures and the comparison of `llm bench serve`; `tests/integration/test_bench_serve.py` runs it."""

import itertools
import json
import random

import msgspec
import pytest

from llm.benchmark import Repeat, Report, compare, comparison_table, plot_report, read_report
from llm.benchmark.compare import rank_sum_p
from llm.benchmark.load import planned
from llm.benchmark.report import Measured, summarized
from llm.errors import ConfigError, DataError
from llm.settings.benchmark import ServingBenchmark
from llm.settings.merge import validated


def bodies(load):
    return [json.loads(request.body) for request in load]


def test_poisson_arrivals_have_the_rate_and_depend_on_the_seed_only():
    benchmark = ServingBenchmark(rate=50.0, requests=2000, prompt_words=3, seed=4)
    load = planned(benchmark, "m", 0)
    arrivals = [request.arrival_s for request in load]
    assert arrivals[0] == 0.0
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] / 2000 == pytest.approx(1 / 50, rel=0.1)
    gaps = [after - before for before, after in itertools.pairwise(arrivals)]
    assert sum(gap > 1 / 50 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.05)  # e⁻¹: exponential
    assert planned(benchmark, "m", 0) == load
    assert planned(benchmark, "m", 1) != load


def test_made_up_prompts_have_their_words_and_differ():
    load = bodies(planned(ServingBenchmark(requests=3, prompt_words=7, output_tokens=5), "m", 0))
    texts = [body["messages"][0]["content"] for body in load]
    assert [len(text.split()) for text in texts] == [7, 7, 7]
    assert len(set(texts)) == 3
    assert load[0]["max_tokens"] == 5
    assert load[0]["stream_options"] == {"include_usage": True}
    assert load[0]["ignore_eos"] is True


def test_prompts_come_from_files_over_and_over(tmp_path):
    text, lines = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    text.write_text("one\n\ntwo\n")
    lines.write_text('{"messages": [{"role": "user", "content": "hi"}], "output_tokens": 9}\n')
    load = bodies(planned(ServingBenchmark(endpoint="completions", prompts=str(text), requests=3), "m", 0))
    assert [body["prompt"] for body in load] == ["one", "two", "one"]
    [body] = bodies(planned(ServingBenchmark(prompts=str(lines), requests=1, ignore_eos=False), "m", 0))
    assert (body["messages"][0]["content"], body["max_tokens"], "ignore_eos" in body) == ("hi", 9, False)


def test_trace_gives_arrivals_in_order(tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"arrival_s": 2.5, "prompt": "late"}\n{"arrival_s": 0, "prompt_words": 2, "output_tokens": 3}\n')
    load = planned(ServingBenchmark(trace=str(trace)), "m", 0)
    assert [request.arrival_s for request in load] == [0.0, 2.5]
    assert bodies(load)[0]["max_tokens"] == 3
    assert len(bodies(load)[0]["messages"][0]["content"].split()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no requests"),
        ('{"prompt": 1}\n', "line 1 of .* is no request"),
        ('{"prompt": "a"}\n', "request 1 of .* has no `arrival_s`"),
        ('{"arrival_s": -1}\n', "line 1 of .* is no request"),
    ],
)
def test_wrong_traces_are_named(tmp_path, text, message):
    trace = tmp_path / "trace.jsonl"
    trace.write_text(text)
    with pytest.raises(DataError, match=message):
        planned(ServingBenchmark(trace=str(trace)), "m", 0)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="`trace` and `rate`"):
        ServingBenchmark(trace="a", rate=1.0)
    with pytest.raises(ConfigError, match="`url`"):
        validated(ServingBenchmark(url="localhost:8000"))


def answer(ttft_s, e2e_s, tokens):
    return Measured(ttft_s=ttft_s, e2e_s=e2e_s, gaps_s=[e2e_s - ttft_s], prompt_tokens=3, output_tokens=tokens)


def test_figures_of_a_repeat():
    requests = [answer(0.1, 1.1, 11), answer(0.3, 2.3, 5), answer(0.2, 0.2, 1), Measured(error="status 503: busy")]
    benchmark = ServingBenchmark(max_ttft_s=0.25, max_tpot_s=0.2)
    repeat = summarized(requests, 2.0, benchmark)
    assert repeat.metrics["ttft_p50_s"] == pytest.approx(0.2)
    assert repeat.metrics["ttft_p90_s"] == pytest.approx(0.28)
    assert repeat.metrics["tpot_mean_s"] == pytest.approx((0.1 + 0.5) / 2)  # an answer of one token has none
    assert repeat.metrics["requests_per_s"] == pytest.approx(1.5)
    assert repeat.metrics["output_tokens_per_s"] == pytest.approx(8.5)
    assert repeat.metrics["goodput_per_s"] == pytest.approx(1.0)
    assert repeat.errors == {"status 503: busy": 1}


def report(values, **settings):
    repeats = [Repeat(duration_s=1, metrics={"ttft_p50_s": value}, errors={}, requests=[]) for value in values]
    return Report(model="m", settings={"url": "http://a", "rate": 1.0} | settings, repeats=repeats)


def test_rank_sum_p_of_known_samples():
    assert rank_sum_p([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(2 / 252)
    assert rank_sum_p([1, 2, 3], [4, 5, 6]) == pytest.approx(0.1)
    assert rank_sum_p([1, 2, 3, 4], [1, 2, 3, 4]) == 1
    assert rank_sum_p([5], [7]) == 1
    many = random.Random(1)
    left = [many.gauss(0, 1) for _ in range(30)]
    assert rank_sum_p(left, [value + 2 for value in left]) < 0.001


def test_rank_sum_p_calls_few_equal_servers_different():
    noise = random.Random(3)
    found = [rank_sum_p([noise.random() for _ in range(5)], [noise.random() for _ in range(5)]) for _ in range(300)]
    assert sum(p < 0.01 for p in found) <= 9  # 1 % are expected


def test_compare_names_a_difference_only_beyond_the_noise():
    [real] = compare(report([1.0, 1.1, 1.2, 1.1, 1.0]), report([0.5, 0.6, 0.5, 0.55, 0.5], url="http://b"))
    assert real.is_shown
    assert real.verdict == "54.5 % lower"
    [noise] = compare(report([1.0, 1.1, 1.2, 1.1, 1.0]), report([1.1, 1.0, 1.15, 0.9, 1.0]))
    assert noise.verdict == "no difference shown"
    [few] = compare(report([1.0, 1.0, 1.0]), report([9.0, 9.0, 9.0]))
    assert few.verdict == "no difference shown"
    assert "3 repeats can't show a difference" in str(comparison_table([few], 3).caption)
    assert comparison_table([real], 5).caption is None


def test_compare_refuses_different_loads():
    with pytest.raises(ConfigError, match=r"different loads: `rate` is 1\.0 and 2\.0"):
        compare(report([1.0]), report([1.0], rate=2.0))


def test_report_is_read_back_and_drawn(tmp_path):
    whole = Report(
        model="m",
        settings={"url": "http://a"},
        repeats=[summarized([answer(0.1, 1.1, 11)], 1.0, ServingBenchmark()), summarized([], 1.0, ServingBenchmark())],
    )
    file = tmp_path / "report.json"
    file.write_bytes(msgspec.json.encode(whole))
    assert read_report(file) == whole
    plot_report(whole, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    file.write_text("{}")
    with pytest.raises(DataError, match="can't be read as a report"):
        read_report(file)
