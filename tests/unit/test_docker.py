"""The files in docker/ name only what the package has."""

import json
import re
from pathlib import Path

from llm.inference.outputs import Usage
from llm.serving.metrics import ServerMetrics

DOCKER = Path(__file__).parents[2] / "docker"
STATS = (
    "num_running num_waiting waiting_tokens blocks_total blocks_free blocks_cached num_preemptions num_steps "
    "tokens_scheduled prefix_query_tokens prefix_hit_tokens drafts_computed drafts_accepted blocks_copied"
)


def exposed_names() -> set[str]:
    metrics = ServerMetrics(lambda: dict.fromkeys(STATS.split(), 1))
    metrics.observe("/v1/chat/completions", 200, 0.1)
    metrics.count_tokens(Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2))
    return set(re.findall(r"^(llm_\w+)", metrics.exposition().decode(), re.MULTILINE))


def test_dashboard_asks_only_for_metrics_that_the_server_exposes():
    dashboard = json.loads((DOCKER / "grafana/dashboards/llm-oxide.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for expression in expressions for name in re.findall(r"\bllm_\w+", expression)}
    assert asked
    assert asked - exposed_names() == set()


def test_images_run_as_a_user_and_ask_for_health():
    for file in sorted(DOCKER.glob("Dockerfile.*")):
        final = file.read_text().rsplit("\nFROM ", 1)[1]
        assert final.splitlines()[0] == "python:${PYTHON}-slim-bookworm"  # without a compiler
        assert "\nUSER 10001\n" in final
        assert "127.0.0.1:8000/health" in final
        assert '\nCMD ["serve", "/model"' in final
