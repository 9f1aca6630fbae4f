"""llama.cpp opens what is exported here, and says the same."""

import json
import subprocess
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from benches.peers.environments import python_of

from llm import LLM, SamplingParams, quantize
from llm.checkpoint import atomic_directory, load_model, write_model
from llm.export import export
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.models.families import family_of
from llm.tokenization import BPETokenizer
from tests.fetch_data import CACHE
from tests.small_families import FAMILIES, small

pytestmark = pytest.mark.peers
SMOLLM = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = ["The capital of France is", "Once upon a time there was a", "def fibonacci(n):", "Water boils at"]
SCRIPT = """
import json, sys
from llama_cpp import Llama
file, tokens, cache, *prompts = sys.argv[1:]
cache = {"f32": 0, "f16": 1}[cache]
model = Llama(file, n_ctx=256, n_threads=1, verbose=False, logits_all=True, type_k=cache, type_v=cache)
answers = []
for prompt in json.loads(prompts[0]):
    model.reset()
    ids = model.tokenize(prompt.encode(), add_bos=False, special=False)
    model.eval(ids)
    found = []
    for _ in range(int(tokens)):
        row = model.scores[model.n_tokens - 1]
        found.append(int(row.argmax()))
        model.eval(found[-1:])
    answers.append([ids, found])
print(json.dumps(answers))
"""


def greedy_in_llama_cpp(
    file: Path, prompts: list[str], num_tokens: int, cache: str = "f16"
) -> list[tuple[list[int], list[int]]]:
    """Ids of each prompt and the likeliest next ones, by llama.cpp, with keys and values in the type `cache`."""
    python = python_of("llama-cpp")
    assert python is not None, "run `make test-peers`"
    command = [python, "-c", SCRIPT, file, str(num_tokens), cache, json.dumps(prompts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[tuple[list[int], list[int]]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_smollm2_written_as_f16_says_the_same(tmp_path: Path) -> None:
    file = export(SMOLLM, tmp_path / "a.gguf", "gguf", quantization="f16")
    model = LLM(file, "float32")
    outputs = model.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True))
    for prompt, output, (ids, found) in zip(PROMPTS, outputs, greedy_in_llama_cpp(file, PROMPTS, 32), strict=True):
        assert model.tokenizer.encode(prompt) == ids
        assert list(output.token_ids) == found


@pytest.mark.parametrize("name", FAMILIES)
def test_small_models_of_each_family_say_the_same(tmp_path: Path, tiny_tokenizer: BPETokenizer, name: str) -> None:
    torch.manual_seed(1)
    config = small(name)
    assert family_of(config).model_type == name
    model = DecoderModel(config)
    for parameter_name, parameter in model.named_parameters():  # these start alike: move them so that a mix-up shows
        if parameter.dim() == 1 or parameter_name.endswith("bias"):
            parameter.data += 0.1 * torch.randn_like(parameter)
    with atomic_directory(tmp_path / "a") as directory:
        write_model(directory, model, tiny_tokenizer)
    file = export(tmp_path / "a", tmp_path / "a.gguf", "gguf", quantization="f32")
    prompts = ["To be, or not", "My lord,"]
    outputs = LLM(file).generate(prompts, SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True))
    # As here: in fp16, near ties of experts turn.
    for output, (_, found) in zip(outputs, greedy_in_llama_cpp(file, prompts, 12, "f32"), strict=True):
        assert list(output.token_ids) == found


@pytest.mark.parametrize("quantization", ["q8_0", "q4_0"])
def test_quantised_files_open(tmp_path: Path, quantization: str) -> None:
    file = export(SMOLLM, tmp_path / "a.gguf", "gguf", quantization=quantization)
    model = load_model(file)
    for ids, found in greedy_in_llama_cpp(file, PROMPTS, 1):
        with torch.no_grad():
            logits = model(torch.tensor(ids), positions_of((len(ids),)), ForwardContext.for_sequences((len(ids),)))
        # llama.cpp rounds activations too, so near ties may turn.
        assert found[0] in logits[-1].topk(4).indices.tolist()


@pytest.mark.parametrize("scheme", ["q4_0", "q8_0", "q4_k", "q6_k"])
def test_files_of_quantize_start_the_same(tmp_path: Path, scheme: str) -> None:
    quick = {"calibration_tokens": 2048, "heldout_tokens": 512, "progress": False}
    quantize(SMOLLM, tmp_path / "a.gguf", scheme=scheme, **quick)
    outputs = LLM(tmp_path / "a.gguf").generate(
        PROMPTS, SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    )
    equal = [
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(output.token_ids, found, strict=True)))
        for output, (_, found) in zip(outputs, greedy_in_llama_cpp(tmp_path / "a.gguf", PROMPTS, 16), strict=True)
    ]
    # Both round activations, each in its own way, so an answer may turn at a near tie.
    assert min(equal) >= 4, equal
    assert sum(equal) >= 48, equal
