"""What `llm quantize` writes of SmolLM2, opened by transformers: the same greedy start, in an environment of its own.

For each scheme, 16 greedy tokens after 4 prompts are drawn by this package from the expanded weights, and the logits of
transformers, which decompresses them by compressed-tensors, are compared along the way. `w8a8` rounds activations there
and not here, so its probabilities may diverge by 0.2 nats a token there, and the first token has to be among the five
likeliest.
"""

import tempfile
from pathlib import Path

import torch
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM

from llm import quantize
from llm.checkpoint import load_model
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.tokenization import load_tokenizer
from tests.fetch_data import CACHE

SMOLLM = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = ["The capital of France is", "Once upon a time there was a", "def fibonacci(n):", "Water boils at"]
METHODS = {"int4": ("gptq", "rtn", "awq"), "int8": ("rtn",), "w8a8": ("rtn",)}
NEW, MOST, MOST_NATS = 16, 1e-3, 0.2


@torch.no_grad()
def ours(model: DecoderModel, ids: list[int]) -> torch.Tensor:
    """Logits after each token, `[T, V]`."""
    tokens = torch.tensor(ids)
    found: torch.Tensor = model(tokens, positions_of((len(ids),)), ForwardContext.for_sequences((len(ids),)))
    return found


def compare(scheme: str, method: str, place: Path) -> None:
    """Quantises SmolLM2 and compares both readers."""
    target = place / f"{scheme}-{method}"
    quick = {"calibration_tokens": 2048, "heldout_tokens": 512, "progress": False}
    quantize(SMOLLM, target, scheme=scheme, method=method, **quick)
    model, tokenizer = load_model(target, "float32"), load_tokenizer(target)
    theirs = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    furthest = 0.0
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        start = len(ids)
        for _ in range(NEW):
            ids.append(int(ours(model, ids)[-1].argmax()))
        with torch.no_grad():
            logits = theirs(torch.tensor([ids])).logits[0]
        expected = ours(model, ids)
        if scheme == "w8a8":
            divergence = float(kl_div(logits.log_softmax(-1), expected.softmax(-1), reduction="batchmean"))
            furthest = max(furthest, divergence)
            assert ids[start] in logits[start - 1].topk(5).indices, f"{scheme}: {prompt!r}"
            continue
        furthest = max(furthest, float((logits - expected).abs().max()))
        assert logits[start - 1 : -1].argmax(-1).tolist() == ids[start:], f"{scheme} by {method}: {prompt!r}"
    most, what = (MOST_NATS, "nats a token") if scheme == "w8a8" else (MOST, "between logits")
    assert furthest <= most, f"{scheme} by {method}: {furthest} {what}, allowed {most}"
    print(f"{scheme} by {method}: opened, at most {furthest:.1e} {what}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for each, methods in METHODS.items():
            for way in methods:
                compare(each, way, Path(temporary))
