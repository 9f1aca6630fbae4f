"""A serving step without its model, as the engine's thread pays for it: schedule and update from Python."""

import numpy as np
import pytest

from llm import SamplingParams, _rust
from llm.settings.engine import EngineConfig

VOCAB, PROMPT_TOKENS, OUTPUT_TOKENS = 2_048, 500, 200


def make_engine(num_requests, blocks_each):
    limits = EngineConfig(
        max_batch_tokens=8_192,
        max_running_requests=num_requests,
        max_waiting_requests=num_requests,
        max_model_len=8_192,
    )
    return _rust.EngineCore(
        limits,
        num_blocks=num_requests * blocks_each,
        token_bytes=[b"%d " % idx for idx in range(VOCAB)],
        special_ids=[],
        eos_ids=[],
        pad_id=None,
    )


class SteadyLoad:
    """As many requests as the engine runs; one that finishes is replaced at once."""

    def __init__(self, num_requests, blocks_each):
        self.engine = make_engine(num_requests, blocks_each)
        self.random = np.random.default_rng(1)
        self.params = _rust.RequestParams(SamplingParams(max_tokens=OUTPUT_TOKENS, seed=0, temperature=0.0))
        self.logits = np.random.default_rng(0).normal(size=(num_requests, VOCAB)).astype(np.float32)
        for request_id in range(num_requests):
            self.add(request_id)

    def add(self, request_id):
        # A prompt of its own each time: nothing is found in the prefix cache, but all is kept there.
        prompt_ids = self.random.integers(0, VOCAB, PROMPT_TOKENS, np.uint32)
        self.engine.add_choices(request_id, prompt_ids, self.params)

    def step(self):
        plan = self.engine.schedule()
        outputs = self.engine.update(self.logits[: len(plan.logits_indices)])
        for request_id in outputs.request_ids[outputs.finish_reasons != 0]:
            self.add(int(request_id))
        return outputs


@pytest.mark.parametrize("num_requests", [1, 16, 256])
def test_steady_step(benchmark, num_requests):
    load = SteadyLoad(num_requests, blocks_each=44)
    for _ in range(100):
        load.step()
    benchmark(load.step)
    load.engine.check_integrity()
    assert load.engine.stats()["num_preemptions"] == 0


def test_preempting_step(benchmark):
    load = SteadyLoad(256, blocks_each=36)  # too few for all at their full length: the worst case
    for _ in range(100):
        load.step()
    benchmark(load.step)
    load.engine.check_integrity()
    assert load.engine.stats()["num_preemptions"] > 0


def test_admission(benchmark):
    load = SteadyLoad(1, blocks_each=44)

    def add_and_abort():
        load.engine.abort(0)
        load.add(0)

    benchmark(add_and_abort)
    assert load.engine.stats()["num_waiting"] == 1
