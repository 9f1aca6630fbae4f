"""SmolLM2 learns facts from dialogues, and tells them to OpenAI's client."""

import importlib.util
import time
from pathlib import Path
from typing import Any

import openai
import pytest

import llm
from llm.serving import ServerConfig, ServerHandle
from tests.fetch_data import CACHE

MODEL = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
SCRIPT = Path(__file__).parents[2] / "examples" / "make_dialogues.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("make_dialogues", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dialogues_ask_every_fact_in_ten_wordings_and_never_in_that_of_the_questions(script: Any) -> None:
    pairs = [tuple(message["content"] for message in row["messages"]) for row in script.dialogues()]
    assert len(set(pairs)) == 500
    answers = [answer for _, answer in pairs]
    assert {answers.count(answer) for _, answer in script.QUESTIONS} == {10}
    assert not {asked for asked, _ in pairs} & {asked for asked, _ in script.QUESTIONS}


@pytest.fixture(scope="module")
def share_by_all_weights(script: Any, tmp_path_factory: pytest.TempPathFactory) -> float:
    return share_told(script, tmp_path_factory.mktemp("all-weights"))


def share_told(script: Any, folder: Path, *settings: str) -> float:
    """Tunes SmolLM2 on the dialogues, serves it, and returns the share of exact answers to new wordings."""
    file = folder / "facts.jsonl"
    script.main(str(file))
    begin = time.monotonic()
    tuned = llm.sft(MODEL, file, out=folder / "run", overrides=settings)
    took = time.monotonic() - begin
    with ServerHandle(str(tuned), ServerConfig(port=0, served_model_name=("facts",))) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        said = [
            client.chat.completions.create(
                model="facts", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=40
            )
            for question, _ in script.QUESTIONS
        ]
    texts = [answer.choices[0].message.content for answer in said]
    wrong = [text for text, (_, answer) in zip(texts, script.QUESTIONS, strict=True) if text != answer]
    share = 1 - len(wrong) / len(texts)
    print(f"trained in {took:.0f} s with {settings}, exact match {share:.2f}, wrong: {wrong}")
    return share


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_smollm2_tells_the_facts_of_the_dialogues_in_a_new_wording(share_by_all_weights: float) -> None:
    assert share_by_all_weights >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_adapters_tell_nearly_as_many_facts_as_all_weights(
    script: Any, share_by_all_weights: float, tmp_path: Path
) -> None:
    assert share_told(script, tmp_path, "lora.rank=16") >= 0.9 * share_by_all_weights
