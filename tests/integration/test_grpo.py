"""A small model learns by reward to sort letters, and sorts them for OpenAI's client."""

import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest
import torch

from llm.checkpoint import Run, resolve
from llm.models import DecoderModel
from llm.serving import ServerConfig, ServerHandle
from llm.training.rollouts import RolloutEngine
from tests.fetch_data import CACHE

SCRIPT = Path(__file__).parents[2] / "examples" / "grpo.py"
UNSEEN = ["fbda", "cafe", "bead", "fade", "deaf", "abcf", "feed", "dabb", "cabe", "face"]


def test_the_engine_takes_over_smollm2s_weights_within_50_ms() -> None:
    checkpoint = resolve(CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf")
    model = checkpoint.model("float32", torch.device("cpu"))
    assert isinstance(model, DecoderModel)
    engine = RolloutEngine(checkpoint.tokenizer(), 256, 8)
    took = []
    for _ in range(5):
        engine.take_over(model)
        took.append(engine.handover_s)
    assert min(took) <= 0.050, took
    [[answer]] = engine.draw([checkpoint.tokenizer().encode("The capital of France is")], [engine.greedy(4)])
    assert "Paris" in answer.text


@pytest.mark.slow
def test_a_model_learns_to_sort_by_reward_within_ten_minutes(tmp_path: Path) -> None:
    begin = time.monotonic()
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], check=True)
    took = time.monotonic() - begin
    log = Run(tmp_path / "sorts").read_log()
    lines = [line for line in log if "reward" in line]
    validated = [line["validation_reward"] for line in log if "validation_reward" in line]
    print(f"reward {lines[0]['reward']:.3f} → {lines[-1]['reward']:.3f} in {took:.0f} s, held out {validated}")
    assert lines[0]["reward"] <= 0.2
    assert lines[-1]["reward"] >= 0.9
    assert validated[-1] >= 0.9
    assert took <= 600
    with ServerHandle(str(tmp_path / "sorts"), ServerConfig(port=0, served_model_name=("sorts",))) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        said = [
            client.completions.create(model="sorts", prompt=f"{word}>", temperature=0, max_tokens=8).choices[0].text
            for word in UNSEEN
        ]
    assert sum(text == "".join(sorted(word)) for text, word in zip(said, UNSEEN, strict=True)) >= 9, said
