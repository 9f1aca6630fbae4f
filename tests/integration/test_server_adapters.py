"""Adapters behind a server: chosen by `model`, loaded and unloaded while it runs."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from llm import LLM, SamplingParams
from llm.errors import ConfigError
from llm.serving import ServerConfig, ServerHandle
from tests.adapter_files import write_adapter

PROMPT = "First Citizen:\nBefore we proceed"


@pytest.fixture(scope="module")
def adapters(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: write_adapter(folder / name, tiny_checkpoint, seed=seed) for seed, name in enumerate(("one", "two"))}


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, adapters: dict[str, Path]) -> Iterator[ServerHandle]:
    config = ServerConfig(
        port=0, served_model_name=("base",), adapters=(f"one={adapters['one']}",), adapter_loading=True
    )
    with ServerHandle(str(tiny_checkpoint), config) as handle:
        yield handle


def client_of(server: ServerHandle) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(server: ServerHandle, model: str) -> str:
    client = client_of(server)
    return client.completions.create(model=model, prompt=PROMPT, temperature=0, max_tokens=12).choices[0].text


def post(server: ServerHandle, path: str, **body: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60, trust_env=False)


def test_the_model_of_a_request_chooses_the_adapter(
    server: ServerHandle, tiny_checkpoint: Path, adapters: dict[str, Path]
) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=12)
    expected = {"base": LLM(tiny_checkpoint).generate(PROMPT, params).text}
    expected["one"] = LLM(adapters["one"]).generate(PROMPT, params).text
    assert expected["base"] != expected["one"]
    with ThreadPoolExecutor(8) as pool:
        names = ["base", "one"] * 4
        assert list(pool.map(lambda name: ask(server, name), names)) == [expected[name] for name in names]
    client = client_of(server)
    stream = client.completions.create(model="one", prompt=PROMPT, temperature=0, max_tokens=12, stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected["one"]
    assert {chunk.model for chunk in chunks} == {"one"}
    messages = [{"role": "user", "content": "Hi"}]
    body = {"messages": messages, "max_tokens": 8, "temperature": 0}
    texts = {}
    for name in ("base", "one"):
        chat = httpx.post(f"{server.url}/v1/chat/completions", json=body | {"model": name}, trust_env=False).json()
        block = httpx.post(f"{server.url}/v1/messages", json=body | {"model": name}, trust_env=False).json()
        texts[name] = chat["choices"][0]["message"]["content"]
        assert block["content"][0]["text"] == texts[name]
    assert texts["base"] != texts["one"]


def test_adapters_are_listed_with_their_parent(server: ServerHandle, adapters: dict[str, Path]) -> None:
    found = {model["id"]: model for model in httpx.get(f"{server.url}/v1/models", trust_env=False).json()["data"]}
    assert "parent" not in found["base"]
    assert (found["one"]["parent"], found["one"]["root"]) == ("base", str(adapters["one"]))
    assert client_of(server).models.retrieve("one").id == "one"
    metrics = httpx.get(f"{server.url}/metrics", trust_env=False).text
    assert "llm_adapters 1.0" in metrics


def test_adapters_are_loaded_and_unloaded_while_the_server_runs(
    server: ServerHandle, tiny_checkpoint: Path, adapters: dict[str, Path]
) -> None:
    with pytest.raises(openai.NotFoundError, match="The model `two` does not exist"):
        ask(server, "two")
    assert post(server, "load_lora_adapter", lora_name="two", lora_path=str(adapters["two"])).is_success
    expected = LLM(adapters["two"]).generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=12)).text
    assert ask(server, "two") == expected
    for name in ("two", "base"):
        taken = post(server, "load_lora_adapter", lora_name=name, lora_path=str(adapters["two"]))
        assert (taken.status_code, taken.json()["error"]["param"]) == (400, "lora_name")
    assert post(server, "unload_lora_adapter", lora_name="two").is_success
    with pytest.raises(openai.NotFoundError):
        ask(server, "two")
    assert post(server, "unload_lora_adapter", lora_name="two").status_code == 404
    assert post(server, "unload_lora_adapter", lora_name="base").status_code == 400
    wrong = post(server, "load_lora_adapter", lora_name="new", lora_path=str(tiny_checkpoint))
    assert wrong.status_code == 400
    assert "must hold an adapter" in wrong.json()["error"]["message"]


def test_embeddings_with_an_adapter_are_refused(server: ServerHandle) -> None:
    answer = post(server, "embeddings", model="one", input="Hi")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
    assert post(server, "embeddings", model="base", input="Hi").is_success


def test_adapters_are_not_loaded_unless_the_server_allows_it(tiny_checkpoint: Path, adapters: dict[str, Path]) -> None:
    with ServerHandle(str(tiny_checkpoint), ServerConfig(port=0)) as server:
        for path in ("load_lora_adapter", "unload_lora_adapter"):
            answer = post(server, path, lora_name="two", lora_path=str(adapters["two"]))
            assert answer.status_code == 403
            assert "`--adapter-loading`" in answer.json()["error"]["message"]


def test_names_of_adapters_are_their_own() -> None:
    with pytest.raises(ConfigError, match="`adapters` must have names of their own"):
        ServerConfig(adapters=("a=x", "a=y"))
