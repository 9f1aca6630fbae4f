"""The files in docker/ name only what the package has."""

import json
import re
from pathlib import Path

from llm.inference import Collector, Delta, Prompt
from llm.serving.answer_metrics import ServedModel
from llm.serving.metrics import Meter, ServerMetrics
from llm.settings.sampling import SamplingParams

DOCKER = Path(__file__).parents[2] / "docker"
STATS = (
    "num_running num_waiting waiting_tokens blocks_total blocks_free blocks_cached num_preemptions num_steps "
    "tokens_scheduled prefix_query_tokens prefix_hit_tokens drafts_computed drafts_accepted blocks_copied "
    "grammars_compiled"
)


# What the dashboards that vLLM's documentation ships ask for and this server measures.
VLLM_DASHBOARD = """
    e2e_request_latency_seconds_bucket e2e_request_latency_seconds_sum e2e_request_latency_seconds_count
    prompt_tokens_total generation_tokens_total
    inter_token_latency_seconds_bucket inter_token_latency_seconds_sum inter_token_latency_seconds_count
    time_per_output_token_seconds_bucket time_per_output_token_seconds_sum request_time_per_output_token_seconds_bucket
    num_requests_running num_requests_waiting kv_cache_usage_perc gpu_cache_usage_perc
    time_to_first_token_seconds_bucket time_to_first_token_seconds_sum time_to_first_token_seconds_count
    request_prompt_tokens_bucket request_generation_tokens_bucket request_success_total request_decode_time_seconds_sum
    request_queue_time_seconds_sum request_prefill_time_seconds_sum request_inference_time_seconds_bucket
    prefix_cache_queries_total prefix_cache_hits_total num_preemptions_total
    spec_decode_num_draft_tokens_total spec_decode_num_accepted_tokens_total
"""


def exposition() -> str:
    served = ServedModel(name="tiny", block_tokens=32, adapters=lambda: ["poems", "tables"])
    metrics = ServerMetrics(lambda: dict.fromkeys(STATS.split(), 1), served)
    metrics.observe("/v1/chat/completions", 200, 0.1)
    answer = Collector([Prompt(token_ids=(1, 2), params=SamplingParams(n=2))])
    deltas = [(0, Delta("a", (1, 2, 3), "stop", scheduled_at=2.5)), (1, Delta("b", (4,)))]
    answer.add(deltas)
    meter = Meter(metrics, 0.0)
    meter.start(deltas)
    meter.end(answer)
    return metrics.exposition().decode()


def exposed_names() -> set[str]:
    return set(re.findall(r"^(llm_\w+)", exposition(), re.MULTILINE))


def test_dashboard_asks_only_for_metrics_that_the_server_exposes():
    dashboard = json.loads((DOCKER / "grafana/dashboards/llm-oxide.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for expression in expressions for name in re.findall(r"\bllm_\w+", expression)}
    assert asked
    assert asked - exposed_names() == set()


def test_page_on_monitoring_names_only_metrics_that_the_server_exposes():
    page = (DOCKER.parent / "docs/monitoring.md").read_text()
    asked = set(re.findall(r"\bllm_\w+", page))
    assert len(asked) > 8
    assert asked - exposed_names() == {"llm_time_to_first_token_seconds", "llm_inter_token_seconds"}  # have suffixes


def test_vllms_dashboards_find_their_metrics_under_its_labels():
    found = set(re.findall(r'^vllm:(\w+)\{engine="0",.*?model_name="tiny"', exposition(), re.MULTILINE))
    assert set(VLLM_DASHBOARD.split()) - found == set()


def test_gateways_find_the_size_of_blocks_and_the_adapters():
    page = exposition()
    cache = re.search(r"^vllm:cache_config_info\{(.*)\} 1.0$", page, re.MULTILINE)[1]
    assert 'block_size="32"' in cache
    assert 'num_gpu_blocks="1"' in cache
    adapters = re.search(r"^vllm:lora_requests_info\{(.*)\} [\d.e+]+$", page, re.MULTILINE)[1]
    assert 'max_lora="2"' in adapters
    assert 'running_lora_adapters="poems,tables"' in adapters
    assert 'waiting_lora_adapters=""' in adapters


def test_tokens_count_with_the_mean_time_between_them():
    page = exposition()
    assert 'vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny"} 1.0' in page
    assert 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="tiny"} 1.0' in page
    assert re.search(r"^llm_inter_token_seconds_count 2.0$", page, re.MULTILINE)  # four tokens, two answers
    assert re.search(r'^llm_inter_token_seconds_bucket\{le="\+Inf"\} 2.0$', page, re.MULTILINE)
    assert re.search(r"^llm_time_per_output_token_seconds_count 1.0$", page, re.MULTILINE)
    assert re.search(r"^llm_request_generation_tokens_sum 4.0$", page, re.MULTILINE)


def test_times_in_the_queue_and_of_prefill_add_up_to_that_of_the_first_token():
    page = exposition()
    queue, prefill, first = (
        float(re.search(rf"^vllm:{name}_seconds_sum\{{.*\}} (.*)$", page, re.MULTILINE)[1])
        for name in ("request_queue_time", "request_prefill_time", "time_to_first_token")
    )
    assert queue == 2.5
    assert abs(queue + prefill - first) < 1e-6


def test_images_run_as_a_user_and_ask_for_health():
    for file in sorted(DOCKER.glob("Dockerfile.*")):
        final = file.read_text().rsplit("\nFROM ", 1)[1]
        assert final.splitlines()[0] == "python:${PYTHON}-slim-bookworm"  # without a compiler
        assert "\nUSER 10001\n" in final
        assert "127.0.0.1:8000/health" in final
        assert '\nCMD ["serve", "/model"' in final
