"""Special tokens around raw prompts, as `tokenizers` puts them there for a tokenizer whose template begins with BOS."""

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer

from llm import LLM, SamplingParams
from llm.inference import Session, load_engine
from llm.inference.scoring import embed
from llm.serving.prompts import chat_prompts, completion_prompts
from llm.serving.protocol.chat import ChatCompletionRequest
from llm.serving.protocol.completions import CompletionRequest

PARAMS = SamplingParams(seed=3, max_tokens=8, ignore_eos=True)
BOS = "<|endoftext|>"
MESSAGES = [{"role": "user", "content": "What news?"}]


@pytest.fixture(scope="module")
def bos_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with BOS in both templates, that of texts and that of chats, as Llama 3.1 and Gemma have."""
    directory = tmp_path_factory.mktemp("bos") / "model"
    shutil.copytree(tiny_checkpoint, directory)
    document = json.loads((directory / "tokenizer.json").read_text())
    [bos_id] = [token["id"] for token in document["added_tokens"] if token["content"] == BOS]
    piece, text = {"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [piece, text],
        "pair": [piece, text, text],
        "special_tokens": {BOS: {"id": BOS, "ids": [bos_id], "tokens": [BOS]}},
    }
    (directory / "tokenizer.json").write_text(json.dumps(document))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    config |= {"bos_token": BOS, "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    return directory


def ids_of(directory: Path, text: str, *, add_special_tokens: bool = True) -> list[int]:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return tokenizer.encode(text, add_special_tokens=add_special_tokens).ids


def test_a_text_begins_with_bos_unless_asked_and_token_ids_are_taken_as_they_are(bos_checkpoint: Path) -> None:
    model = LLM(bos_checkpoint)
    with_bos = ids_of(bos_checkpoint, "To be")
    plain = ids_of(bos_checkpoint, "To be", add_special_tokens=False)
    assert with_bos == [model.tokenizer.bos_id, *plain]
    assert model.generate("To be", PARAMS) == model.generate([with_bos], PARAMS)[0]
    assert model.generate("To be", PARAMS, add_special_tokens=False) == model.generate([plain], PARAMS)[0]
    streamed = "".join(delta.text for delta in model.stream("To be", PARAMS))
    assert streamed == model.generate("To be", PARAMS).text
    assert np.array_equal(model.embed(["To be"]), embed(model.engine.runner.model, [with_bos], "mean", 4096))
    assert model.score(["To"], [" be"])[0].token_ids == tuple(model.tokenizer.encode(" be"))
    assert model.score([""], ["To be"])[0].token_ids == tuple(plain)


def test_the_server_adds_bos_to_text_and_never_twice(bos_checkpoint: Path) -> None:
    session = Session(load_engine(bos_checkpoint))
    with_bos = ids_of(bos_checkpoint, "To be")

    def completion(**fields: object) -> list[list[int]]:
        request = CompletionRequest(model="m", **fields)  # type: ignore[arg-type]
        return [prompt.token_ids for prompt in completion_prompts(request, session)]

    assert completion(prompt="To be") == completion(prompt="To be", add_special_tokens=True) == [with_bos]
    assert completion(prompt=["To be", "To be"]) == [with_bos] * 2
    assert completion(prompt="To be", add_special_tokens=False) == [with_bos[1:]]
    assert completion(prompt=with_bos[1:]) == [with_bos[1:]]
    for asked in (None, False, True):
        request = msgspec.convert(
            {"model": "m", "messages": MESSAGES, "add_special_tokens": asked}, ChatCompletionRequest
        )
        [prompt] = chat_prompts(request, session)
        assert prompt.token_ids == ids_of(bos_checkpoint, "What news?")
