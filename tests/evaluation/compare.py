"""Runs the harness's `hf`, `local-completions` and `llm-oxide` on the same weights and tasks, and compares them.

Runs in an environment with `lm_eval`: `python compare.py WEIGHTS TASKS URL SAMPLES`.
"""

import sys
import time
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import llm.evaluation.harness  # noqa: F401 - registers `llm-oxide`
from llm import evaluate
from tests.evaluation.data import SHOTS

TASKS = ["oxide_choices", "oxide_texts", "oxide_answers"]
TOLERANCE = 1e-4
FASTER = 3.0
BATCH_SIZES = (1, 8)


def run(model: Any, tasks: Path, names: list[str], **options: Any) -> dict[str, Any]:
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=names,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=True,
        bootstrap_iters=2,
        **options,
    )
    assert found is not None
    return found


def responses(found: dict[str, Any], task: str) -> list[list[Any]]:
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"] for sample in samples]


def check_equal(name: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Checks that metrics are the same to the last digit, and log-likelihoods within the tolerance."""
    for metric in ("acc,none", "acc_norm,none", "acc_stderr,none"):
        ours, theirs = found["results"]["oxide_choices"][metric], expected["results"]["oxide_choices"][metric]
        assert ours == theirs, (name, metric, ours, theirs)
    worst = 0.0
    for ours, theirs in zip(responses(found, "oxide_choices"), responses(expected, "oxide_choices"), strict=True):
        for (logprob, is_greedy), (their_logprob, their_greedy) in zip(ours, theirs, strict=True):
            worst = max(worst, abs(logprob - their_logprob))
            assert is_greedy == their_greedy, name
    assert worst <= TOLERANCE, (name, worst)
    rolling = zip(responses(found, "oxide_texts"), responses(expected, "oxide_texts"), strict=True)
    relative = max(abs(_number(ours) / _number(theirs) - 1) for ours, theirs in rolling)
    assert relative <= TOLERANCE, (name, relative)
    assert responses(found, "oxide_answers") == responses(expected, "oxide_answers"), name
    print(f"{name} = hf: accuracy equal, log-likelihoods of choices differ by {worst:.1e} at most, "
          f"those of texts by {relative:.1e} of their value, generated answers equal")  # fmt: skip


def _number(response: Any) -> float:
    first = response[0]
    return float(first[0] if isinstance(first, tuple | list) else first)


def compare_speed(reference: HFLM, weights: str, tasks: Path, samples: str) -> None:
    """Checks that `llm eval` scores more samples per second than the harness with `hf`; loading counts for neither."""
    [result] = evaluate(weights, samples, dtype="float32", shots=SHOTS).results
    ours = result.num_samples / result.duration_s
    theirs = 0.0
    for batch_size in BATCH_SIZES:
        reference.batch_size_per_gpu = batch_size
        began = time.perf_counter()
        found = run(reference, tasks, ["oxide_choices"])
        theirs = max(theirs, result.num_samples / (time.perf_counter() - began))
        assert found["results"]["oxide_choices"]["acc,none"] == result.metrics["accuracy"].value
    print(f"llm eval: {ours:.2f} samples/s, lm_eval with hf: {theirs:.2f} (best of batch sizes {BATCH_SIZES}), "
          f"{ours / theirs:.1f} times as many; {torch.get_num_threads()} threads")  # fmt: skip
    assert ours >= FASTER * theirs


def main() -> None:
    weights, tasks, url, samples = sys.argv[1:]
    # PyTorch's float32 softmax over 49,152 tokens alone is off by up to 1e-4 for a continuation.
    reference = HFLM(pretrained=weights, dtype="float32", softmax_dtype="float64", device="cpu", batch_size=4)
    expected = run(reference, Path(tasks), TASKS)
    print({name: value for name, value in expected["results"]["oxide_choices"].items() if "acc" in name})
    remote = f"model={Path(weights).name},base_url={url}/v1/completions,num_concurrent=4"
    for backend in (f"tokenizer_backend=huggingface,tokenizer={weights}", "tokenizer_backend=remote"):
        found = run("local-completions", Path(tasks), TASKS, model_args=f"{remote},{backend}")
        check_equal(f"local-completions ({backend.partition(',')[0]})", found, expected)
    found = run("llm-oxide", Path(tasks), TASKS, model_args=f"path={weights},dtype=float32")
    check_equal("llm-oxide", found, expected)
    compare_speed(reference, weights, Path(tasks), samples)


if __name__ == "__main__":
    main()
