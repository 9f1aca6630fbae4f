"""Decoding on a CUDA device: how much of the memory's bandwidth a step reaches, beside `transformers`.

`python benches/bench_gpu.py [--models 135m,1b,8b] [--requests 1,8,64]` builds models of known shapes with random
weights in bfloat16, prints a row each and writes `benches/results/gpu.json`. The same weights answer the same prompts
with and without CUDA graphs and in `transformers`' continuous batching, in turn; `same_tokens` is the share of greedy
tokens before answers part (in bfloat16 they do, at near-ties).
"""

import argparse
import gc
import itertools
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from llm import DecoderModel, ModelConfig, SamplingParams
from llm.inference import EngineConfig, build_engine
from llm.models.costs import kv_bytes_per_token
from llm.models.hf import config_to_hf, weights_to_hf
from llm.tokenization import SimpleCharacterTokenizer

RESULTS = Path(__file__).parent / "results"
PROMPT, NEW = 128, 64
CONTEXT = 2048
SHAPES = {
    "135m": ModelConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=CONTEXT,
    ),
    "1b": ModelConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=CONTEXT,
    ),
    "8b": ModelConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
    ),
}


def bandwidth() -> float:
    """Bytes a second of a copy of 4 GB, read and written."""
    source = torch.ones(2**31, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return 2 * source.nbytes / statistics.median(times)


def random_model(config: ModelConfig) -> DecoderModel:
    """A seeded model on the device, in bfloat16."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = DecoderModel(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def tokenizer_of(vocab_size: int) -> SimpleCharacterTokenizer:
    """One that knows as many tokens as the model."""
    characters = [chr(point) for point in range(vocab_size + 2048) if not 0xD800 <= point < 0xE000]
    return SimpleCharacterTokenizer(characters[: vocab_size - 2])


def prompts_of(num_requests: int, vocab_size: int) -> list[list[int]]:
    """Seeded token ids."""
    random = np.random.default_rng(num_requests)
    return random.integers(100, vocab_size, (num_requests, PROMPT)).tolist()


class Ours:
    """An engine, timed step by step."""

    def __init__(self, model: DecoderModel, max_requests: int, *, graphs: bool) -> None:
        config = EngineConfig(
            max_running_requests=max_requests,
            enable_cuda_graphs=graphs,
            enable_prefix_caching=False,
            max_batch_tokens=8192,
        )
        tokenizer = tokenizer_of(model.config.vocab_size)
        started = time.perf_counter()
        self.engine = build_engine(model, tokenizer, config)
        torch.cuda.synchronize()
        self.start_s = time.perf_counter() - started
        self.step_s: list[float] = []

    def __call__(self, prompts: list[list[int]]) -> list[list[int]]:
        """Greedy answers; `step_s` holds the times of the steps that only decode."""
        params = SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True)
        answers: dict[int, list[int]] = {self.engine.add_request(prompt, params): [] for prompt in prompts}
        self.step_s = []
        while self.engine.has_unfinished():
            decodes = all(answers.values())
            started = time.perf_counter()
            for request_id, delta in self.engine.step():
                if isinstance(delta, Exception):
                    raise delta
                answers[request_id].extend(delta.token_ids)
            if decodes:
                self.step_s.append(time.perf_counter() - started)
        return list(answers.values())


class Theirs:
    """`transformers`' continuous batching of the same weights."""

    def __init__(self, model: DecoderModel) -> None:
        config = transformers.AutoConfig.for_model(**config_to_hf(model.config))
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            self.model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        with model.embed_tokens.weight.device:
            rotary = type(self.model.model.rotary_emb)(config)
        self.model.load_state_dict(weights_to_hf(model.state_dict(), model.config), assign=True, strict=False)
        self.model.tie_weights()
        self.model.model.rotary_emb = rotary
        self.model.eval()

    @contextmanager
    def batching(self, num_requests: int) -> Iterator[Callable[[list[list[int]]], list[list[int]]]]:
        """Answers `num_requests` prompts together, greedily.

        Each number has a manager made for it: one made for fewer requests would answer them one after another. Its
        CUDA graphs are padded to 64 tokens a request, not to the default of 16,384 in all, of which most are masked.
        """
        manager = self.model.init_continuous_batching(
            generation_config=transformers.GenerationConfig(
                max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0
            ),
            continuous_batching_config=transformers.ContinuousBatchingConfig(
                use_cuda_graph=True,
                q_padding_interval_size=max(8, num_requests),
                kv_padding_interval_size=64 * num_requests,
                max_requests_per_batch=num_requests,
                max_batch_tokens=num_requests * PROMPT,
                num_blocks=4 * num_requests,
                allow_block_sharing=False,
            ),
        )

        def answer(prompts: list[list[int]]) -> list[list[int]]:
            request_ids = manager.add_requests(prompts, max_new_tokens=NEW)
            tokens: dict[str, list[int]] = {}
            while len(tokens) < len(request_ids):
                output = manager.get_result(timeout=60)
                if output is None or output.error is not None:
                    raise RuntimeError(f"transformers gave no answer: {output and output.error}")
                tokens[output.request_id] = list(output.generated_tokens)
            return [tokens[request_id] for request_id in request_ids]

        manager.start()
        try:
            yield answer
        finally:
            manager.stop(block=True)
            manager.destroy()


def seconds(answer: Callable[[list[list[int]]], list[list[int]]], prompts: list[list[int]]) -> tuple[float, Any]:
    """Seconds to answer all, and the answers."""
    gc.collect()
    torch.cuda.synchronize()
    started = time.perf_counter()
    answers = answer(prompts)
    torch.cuda.synchronize()
    return time.perf_counter() - started, answers


def same_share(one: list[list[int]], other: list[list[int]]) -> float:
    """The mean share of an answer's tokens before the first that differs."""
    lengths = [
        sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(mine, theirs, strict=False)))
        for mine, theirs in zip(one, other, strict=True)
    ]
    return statistics.mean(lengths) / NEW


def measure(name: str, counts: list[int], rounds: int, peak: float, *, peers: bool) -> Iterator[dict[str, Any]]:
    """Rows of one model."""
    model = random_model(SHAPES[name])
    weights = sum(parameter.nbytes for parameter in model.parameters())
    if not model.config.tie_word_embeddings:
        weights -= model.embed_tokens.weight.nbytes
    graphs = Ours(model, max(counts), graphs=True)
    plain = Ours(model, max(counts), graphs=False)
    print(f"{name}: {weights / 1e9:.2f} GB a step, graphs ready in {graphs.start_s:.1f} s", flush=True)
    theirs = Theirs(model) if peers else None
    for count in counts:
        prompts = prompts_of(count, SHAPES[name].vocab_size)
        cached = count * (PROMPT + NEW // 2) * kv_bytes_per_token(model.config, torch.bfloat16)
        times: dict[str, list[float]] = {"graphs": [], "plain": [], "transformers": []}
        steps: dict[str, list[float]] = {"graphs": [], "plain": []}
        with nullcontext() if theirs is None else theirs.batching(count) as batching:
            others = [("plain", plain)] if batching is None else [("plain", plain), ("transformers", batching)]
            for turn in range(rounds + 1):
                taken, expected = seconds(graphs, prompts)
                found = {label: seconds(answer, prompts) for label, answer in others}
                if turn == 0:
                    shares = {label: same_share(expected, answers) for label, (_, answers) in found.items()}
                    continue
                times["graphs"].append(taken)
                for label, (other, _) in found.items():
                    times[label].append(other)
                steps["graphs"].extend(graphs.step_s)
                steps["plain"].extend(plain.step_s)
        step = statistics.median(steps["graphs"])
        yield {
            "model": name,
            "requests": count,
            "step_ms": step * 1000,
            "plain_step_ms": statistics.median(steps["plain"]) * 1000,
            "share_of_bandwidth": (weights + cached) / step / peak,
            "tokens_s": {label: count * NEW / statistics.median(taken) for label, taken in times.items() if taken},
            "same_tokens": shares,
            "start_s": graphs.start_s,
            "rounds": rounds,
        }


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="135m,1b,8b", help="of " + ", ".join(SHAPES))
    parser.add_argument("--requests", default="1,8,64", help="decoded together")
    parser.add_argument("--rounds", type=int, default=3, help="timed, after one that isn't")
    parser.add_argument("--no-peers", action="store_true", help="leave `transformers` out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where gpu.json goes")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this bench needs a CUDA device, which PyTorch doesn't see")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    peak = bandwidth()
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "copy_gb_s": peak / 1e9,
        "prompt_tokens": PROMPT,
        "new_tokens": NEW,
        "rows": [],
    }
    print(json.dumps({key: value for key, value in report.items() if key != "rows"}), flush=True)
    counts = [int(count) for count in arguments.requests.split(",")]
    for name in arguments.models.split(","):
        for row in measure(name, counts, arguments.rounds, peak, peers=not arguments.no_peers):
            print(json.dumps(row), flush=True)
            report["rows"].append(row)
            arguments.out.mkdir(parents=True, exist_ok=True)
            (arguments.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
