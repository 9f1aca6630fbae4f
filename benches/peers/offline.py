"""All of a workload at once, without a server: run in the environment of the engine that it times.

Reads `{"engine", "model", "dtype", "prompts", "lengths"}` from standard input and writes the result as JSON; what the
engine itself prints goes to standard error.
"""

import json
import os
import sys
import time
from typing import Any

CONTEXT = 4096
Workload = dict[str, Any]


def ours(work: Workload) -> dict[str, Any]:
    """Our engine, each prompt with a length of its own."""
    from llm import LLM, SamplingParams
    from llm.inference import EngineConfig

    started = time.perf_counter()
    num_sequences = len(work["prompts"])
    model = LLM(
        work["model"], work["dtype"], config=EngineConfig(max_model_len=CONTEXT, max_waiting_requests=num_sequences)
    )
    engine = model.engine
    _drain(engine, [(work["prompts"][0], SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True))])
    loaded = time.perf_counter()
    requests = [
        (prompt, SamplingParams(temperature=0.0, max_tokens=length, min_tokens=length, ignore_eos=True))
        for prompt, length in zip(work["prompts"], work["lengths"], strict=True)
    ]
    output_tokens = _drain(engine, requests)
    return _result(started, loaded, output_tokens)


def _drain(engine: Any, requests: list[tuple[list[int], Any]]) -> int:
    for prompt_ids, params in requests:
        engine.add_request(prompt_ids, params)
    count = 0
    while engine.has_unfinished():
        for _, delta in engine.step():
            if isinstance(delta, Exception):
                raise delta
            count += len(delta.token_ids)
    return count


def vllm(work: Workload) -> dict[str, Any]:
    """vLLM's own way for many prompts."""
    from vllm import LLM, SamplingParams

    started = time.perf_counter()
    model = LLM(model=work["model"], dtype=work["dtype"], max_model_len=CONTEXT, seed=0)
    prompts = [{"prompt_token_ids": prompt} for prompt in work["prompts"]]
    model.generate(prompts[:1], SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True), use_tqdm=False)
    loaded = time.perf_counter()
    params = [
        SamplingParams(temperature=0.0, max_tokens=length, min_tokens=length, ignore_eos=True)
        for length in work["lengths"]
    ]
    outputs = model.generate(prompts, params, use_tqdm=False)
    return _result(started, loaded, sum(len(output.outputs[0].token_ids) for output in outputs))


def _result(started: float, loaded: float, output_tokens: int) -> dict[str, Any]:
    return {"load_s": loaded - started, "seconds": time.perf_counter() - loaded, "output_tokens": output_tokens}


ENGINES = {"ours": ours, "vllm": vllm}


def main() -> None:
    work = json.load(sys.stdin)
    answer_to = os.dup(1)
    os.dup2(2, 1)  # engines and their children log to standard output, even after the last line here
    result = ENGINES[work["engine"]](work)
    expected = sum(work["lengths"])
    if result["output_tokens"] != expected:
        sys.exit(f"error: {expected} tokens were asked for, {result['output_tokens']} came")
    with os.fdopen(answer_to, "w") as answer:
        json.dump(result | {"prompt_tokens": sum(map(len, work["prompts"]))}, answer)


if __name__ == "__main__":
    main()
