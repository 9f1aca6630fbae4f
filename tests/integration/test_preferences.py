"""SmolLM2 learns to answer briefly from pairs of answers, and does so for OpenAI's client."""

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest

import llm
from llm.checkpoint import Run
from llm.serving import ServerConfig, ServerHandle
from tests.fetch_data import CACHE
from tests.unit.chat_rows import write_rows

MODEL = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
SCRIPT = Path(__file__).parents[2] / "examples" / "dpo.py"
# Countries that no pair is about.
ASKED = ("Denmark", "Belgium", "Morocco", "Bolivia", "Mongolia", "Thailand", "Iceland", "Uruguay")


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("dpo_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pairs_of_the_example_differ_in_their_length_only(script: Any) -> None:
    rows = list(script.pairs())
    assert len({row["prompt"] for row in rows}) == len(rows) == 120
    assert all(row["chosen"].removesuffix(".") in row["rejected"] for row in rows)
    assert all(3 * len(row["chosen"]) < len(row["rejected"]) for row in rows)
    assert not any(country in json.dumps(rows) for country in ASKED)


@pytest.mark.slow
def test_smollm2_answers_briefly_after_pairs_of_terse_and_wordy_answers(script: Any, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "pairs.jsonl", script.pairs())
    begin = time.monotonic()
    tuned = llm.dpo(MODEL, file, out=tmp_path / "run", validation_fraction=0.1, validate_every=100, sample_tokens=0)
    accuracy = [
        line["validation_accuracy"] for line in Run(tmp_path / "run").read_log() if "validation_accuracy" in line
    ]
    print(f"trained in {time.monotonic() - begin:.0f} s, held-out accuracy {accuracy}")
    assert accuracy[-1] > 0.8
    words = []
    for path in (MODEL, tuned):
        with ServerHandle(str(path), ServerConfig(port=0, served_model_name=("model",))) as server:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
            answers = [
                client.chat.completions.create(
                    model="model",
                    messages=[{"role": "user", "content": f"What is the capital of {country}?"}],
                    temperature=0,
                    max_tokens=60,
                )
                for country in ASKED
            ]
        texts = [answer.choices[0].message.content or "" for answer in answers]
        print(texts)
        words.append(sum(len(text.split()) for text in texts) / len(texts))
    assert words[1] <= words[0] / 2
