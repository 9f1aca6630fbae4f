"""A model that people use, SmolLM2-135M-Instruct as llama.cpp's file, beside `transformers` reading the same file."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from llm import LLM, SamplingParams
from llm.checkpoint import load_model
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.models.gguf import read_config, read_tensors
from llm.settings.engine import EngineConfig
from llm.tokenization import encode_chat, load_tokenizer
from tests.fetch_data import CACHE

FILE = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
LLM_COMMAND = str(Path(sys.executable).parent / "llm")
QUESTION = "What is the capital of France?"
PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):",
    "Water boils at",
    "To be, or not to be,",
    "The three primary colours are",
    "import numpy as np\n\n",
    "Q: How many legs does a spider have?\nA:",
    "Dear Sir or Madam,",
    "The Pythagorean theorem says that",
    "Ingredients for pancakes:\n-",
    "1, 1, 2, 3, 5, 8,",
    "Le chat est sur",
    "SELECT name FROM users WHERE",
    "In 1969, Neil Armstrong",
    "A haiku about rain:",
    "<html>\n<head>",
    "The opposite of hot is",
    "Photosynthesis is the process by which",
    "Roses are red,",
]


@pytest.fixture(scope="module")
def theirs() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(CACHE, gguf_file=FILE.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ours() -> DecoderModel:
    model = load_model(FILE, "float32")
    assert isinstance(model, DecoderModel)
    return model


def test_the_file_holds_what_transformers_reads(theirs: Any) -> None:
    wanted, tensors = theirs.state_dict(), read_tensors(FILE)
    assert set(wanted) - set(tensors) == {"lm_head.weight"}
    for name, tensor in tensors.items():
        assert tensor.shape == tuple(wanted[name].shape)
        assert torch.equal(tensor.load(torch.float32), wanted[name]), name
    assert {tensor.type_name for tensor in tensors.values()} == {"F32", "Q4_1", "Q8_0"}


def test_the_file_has_the_config_that_transformers_reads(theirs: Any) -> None:
    wanted, values = theirs.config.to_dict(), read_config(FILE)
    assert values.pop("architectures") == ["LlamaForCausalLM"]
    assert values.pop("rope_theta") == wanted["rope_parameters"]["rope_theta"]
    assert np.float32(values.pop("rms_norm_eps")) == np.float32(wanted["rms_norm_eps"])
    assert values == {key: wanted[key] for key in values}
    assert "head_dim" in values


@torch.no_grad()
@pytest.mark.parametrize("prompt", [*PROMPTS[:4], "\n\n".join(PROMPTS)])
def test_logits_equal_transformers(theirs: Any, ours: DecoderModel, prompt: str) -> None:
    ids = torch.tensor(load_tokenizer(FILE).encode(prompt))
    wanted = theirs(ids[None]).logits[0]
    logits = ours(ids, positions_of((len(ids),)), ForwardContext.for_sequences((len(ids),)))
    assert (logits - wanted).abs().max() <= 1e-3


@torch.no_grad()
def test_64_greedy_tokens_equal_transformers_on_20_prompts(theirs: Any) -> None:
    model = LLM(FILE, "float32", config=EngineConfig(packed_weights=False))
    outputs = model.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True))
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        # Its greedy answer is the one in which each token is its likeliest after all tokens before.
        ids = torch.tensor([*model.tokenizer.encode(prompt), *output.token_ids])
        likeliest = theirs(ids[None]).logits[0].argmax(-1)
        assert output.token_ids == tuple(likeliest[-65:-1].tolist()), prompt


def test_a_chat_has_the_ids_that_the_template_means() -> None:
    tokenizer = load_tokenizer(FILE)
    text = tokenizer.decode(encode_chat(tokenizer, [{"role": "user", "content": QUESTION}]))
    assert text.endswith(f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n")
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")


def run(*arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        [LLM_COMMAND, *arguments], input=stdin, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line_knows_the_capital_of_france() -> None:
    assert "Paris" in run("generate", str(FILE), "The capital of France is", "--max-tokens", "8", "--temperature", "0")
    # The first two tokens are 0.08 nats apart: rounding by packed weights' inputs turns them.
    asked = ("chat", str(FILE), "--temperature", "0", "--max-tokens", "32", "--packed-weights", "false")
    assert "Paris" in run(*asked, stdin=QUESTION + "\n")
    assert "134,515,008" in run("info", str(FILE))
