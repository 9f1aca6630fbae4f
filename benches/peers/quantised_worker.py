"""One program that runs quantised weights, asked line by line: `quantised_worker.py PROGRAM FILE THREADS MODE`.

Runs in the environment of PROGRAM, `llama.cpp`, `openvino-genai` or `gptqmodel`. A line on standard input is
`[kind, token ids, count]`, the answer a line with a number: "score" gives the summed loss of all tokens but the first
(of llama.cpp alone, if MODE is `scores`), "prefill" the seconds until the first token, and "decode" those of `count`
tokens after it. All are greedy. The first line is null, or the reason why the program can't open the file.
"""

import json
import sys
import time
from typing import Any


class LlamaCpp:
    """llama.cpp by its Python binding, a token a call."""

    def __init__(self, file: str, threads: int, mode: str) -> None:
        from llama_cpp import Llama

        counts = {"n_ctx": 1024, "n_batch": 512, "n_threads": threads, "n_threads_batch": threads}
        self._model = Llama(file, **counts, verbose=False, logits_all=mode == "scores")

    def score(self, ids: list[int]) -> float:
        """Summed loss of all tokens but the first."""
        import numpy as np

        self._model.reset()
        self._model.eval(ids)
        rows = self._model.scores[: len(ids) - 1].astype(np.float64)
        rows -= rows.max(1, keepdims=True)
        return float((np.log(np.exp(rows).sum(1)) - rows[np.arange(len(rows)), ids[1:]]).sum())

    def seconds(self, ids: list[int], count: int) -> tuple[float, float]:
        """Seconds until the first token, and of the `count` that follow."""
        self._model.reset()
        started = time.perf_counter()
        token = self._likeliest(ids)
        first = time.perf_counter()
        for _ in range(count):
            token = self._likeliest([token])
        return first - started, time.perf_counter() - first

    def _likeliest(self, ids: list[int]) -> int:
        import numpy as np

        self._model.eval(ids)
        logits = self._model._ctx.get_logits_ith(-1)
        return int(np.ctypeslib.as_array(logits, (self._model.n_vocab(),)).argmax())


class OpenVino:
    """OpenVINO GenAI, which reads GGUF files itself; its own clock says when the first token came."""

    def __init__(self, file: str, threads: int, _mode: str) -> None:
        import numpy as np
        import openvino as ov
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        words = {"INFERENCE_NUM_THREADS": threads, "scheduler_config": scheduler}
        self._pipeline = openvino_genai.LLMPipeline(file, "CPU", **words)
        self._tokens = lambda ids: openvino_genai.TokenizedInputs(
            ov.Tensor(np.array([ids], np.int64)), ov.Tensor(np.ones((1, len(ids)), np.int64))
        )
        self._config = openvino_genai.GenerationConfig(ignore_eos=True, do_sample=False)

    def seconds(self, ids: list[int], count: int) -> tuple[float, float]:
        """Seconds until the first token, and of the `count` that follow."""
        self._config.max_new_tokens = count + 1
        times = self._pipeline.generate(self._tokens(ids), self._config).perf_metrics
        first = times.get_ttft().mean / 1e3
        return first, times.get_tpot().mean / 1e3 * count if count else 0.0


class GptqModel:
    """GPTQModel's layers for CPUs in the model of transformers, called a token at a time."""

    def __init__(self, file: str, threads: int, mode: str) -> None:
        import torch
        from gptqmodel import GPTQModel

        torch.set_num_threads(threads)
        self._torch = torch
        self._model = GPTQModel.load(file, device="cpu", dtype=getattr(torch, mode)).model

    def seconds(self, ids: list[int], count: int) -> tuple[float, float]:
        """Seconds until the first token, and of the `count` that follow."""
        started = time.perf_counter()
        token, cache = self._likeliest([ids], None)
        first = time.perf_counter()
        for _ in range(count):
            token, cache = self._likeliest([[token]], cache)
        return first - started, time.perf_counter() - first

    def _likeliest(self, ids: list[list[int]], cache: Any) -> tuple[int, Any]:
        with self._torch.no_grad():
            found = self._model(self._torch.tensor(ids), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return int(found.logits[0, -1].argmax()), found.past_key_values


PROGRAMS = {"llama.cpp": LlamaCpp, "openvino-genai": OpenVino, "gptqmodel": GptqModel}


def main() -> None:
    """Answers lines until there are no more."""
    name, file, threads, mode = sys.argv[1:]
    # What the libraries print is no answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    try:
        program = PROGRAMS[name](file, int(threads), mode)
    except Exception as error:
        print(json.dumps(str(error)), file=answers, flush=True)
        raise
    print(json.dumps(None), file=answers, flush=True)
    for line in sys.stdin:
        kind, ids, count = json.loads(line)
        answer = program.score(ids) if kind == "score" else program.seconds(ids, count)[kind == "decode"]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
