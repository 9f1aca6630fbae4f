"""The engine without its model, driven from Python with a model that is a pure function of its cache."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llm import _rust
from llm.errors import CapacityError, ContextLengthError, InvalidArgumentError, QueueFullError, UnknownRequestError
from llm.settings.engine import EngineConfig, NgramSpeculation
from llm.settings.sampling import SamplingParams
from tests.reference import sampling as reference
from tests.reference.block_pool import BlockPool
from tests.reference.sampling import Settings

VOCAB, COLUMNS, EOS, PAD = 30, 32, 28, 29
TOKEN_BYTES = [bytes([97 + idx]) for idx in range(26)] + ["é".encode()[:1], "é".encode()[1:], None, None]


def make_engine(num_blocks=16, **limits):
    defaults = {"block_size": 4, "max_batch_tokens": 64, "max_running_requests": 8, "max_model_len": 64}
    return _rust.EngineCore(
        EngineConfig(**(defaults | limits)),
        num_blocks=num_blocks,
        token_bytes=TOKEN_BYTES,
        special_ids=[EOS, PAD],
        eos_ids=[EOS],
        pad_id=PAD,
    )


def request_params(choice_index=0, **fields):
    return _rust.RequestParams(SamplingParams(**({"seed": 0} | fields)), choice_index=choice_index)


def logits_of(tokens):
    """Logits (COLUMNS,) that depend on every token and its place."""
    seed = 17
    for token in tokens:
        seed = (seed ^ int(token)) * 0x100000001B3 % 2**64
    return np.random.default_rng(seed).uniform(0, 6, COLUMNS).astype(np.float32)


class CacheModel:
    """Stores token ids by slot and reads them back by block table, as attention would its keys."""

    def __init__(self, num_blocks, block_size):
        self.cache = np.full(num_blocks * block_size, -1, np.int64)
        self.pool = BlockPool(num_blocks, block_size)
        self.block_size = block_size

    def run(self, plan):
        # A plan doesn't say who was preempted: whoever isn't in it may have lost its blocks.
        for request in set(self.pool.holders) - set(plan.request_ids.tolist()):
            self.pool.release(request)
        for source, target in plan.block_copies.tolist():
            self.blocks[target] = self.blocks[source]
        self.cache[plan.slot_mapping] = plan.token_ids
        for request in range(len(plan.request_ids)):
            self.hold(plan, request)
        rows = [self.read(plan, index) for index in plan.logits_indices]
        return np.array(rows, np.float32).reshape(-1, COLUMNS)

    @property
    def blocks(self):
        return self.cache.reshape(-1, self.block_size)

    def hold(self, plan, request):
        start, end = plan.query_start[request : request + 2]
        length, first = int(plan.seq_lens[request]), int(plan.positions[start])
        if first == 0:
            self.pool.release(int(plan.request_ids[request]))
        copies = {target: source for source, target in plan.block_copies.tolist()}
        blocks = plan.block_tables[request, : -(-length // self.block_size)].tolist()
        self.pool.hold(int(plan.request_ids[request]), blocks, first // self.block_size, copies)
        assert plan.positions[start:end].tolist() == list(range(length - (end - start), length))

    def read(self, plan, index):
        request = np.searchsorted(plan.query_start, index, side="right") - 1
        positions = np.arange(plan.positions[index] + 1)
        blocks = plan.block_tables[request][positions // self.block_size]
        return logits_of(self.cache[blocks * self.block_size + positions % self.block_size])


def reference_tokens(prompt_ids, settings, max_tokens):
    """What a request generates, one token after the other; None from the first near-tie on."""
    output_ids = []
    while len(output_ids) < max_tokens:
        row = logits_of([*prompt_ids, *output_ids])
        drawn = reference.distribution(row, settings, prompt_ids, output_ids, vocab_size=VOCAB, pad_id=PAD)
        if drawn.near_tie:
            return None
        output_ids.append(drawn.token)
        if drawn.token == EOS:
            break
    return output_ids


requests_strategy = st.tuples(
    st.lists(st.integers(0, 25), min_size=1, max_size=12),
    st.builds(
        Settings,
        seed=st.integers(0, 2**63),
        temperature=st.one_of(st.just(0.0), st.floats(0.3, 1.5)),
        top_k=st.integers(0, 10),
        repetition_penalty=st.floats(1.0, 1.5),
    ),
    st.integers(1, 10),
)


def drain(engine, model, expected_ids):
    """Runs the engine dry; tokens, text and finish reason by request."""
    tokens = {request: [] for request in expected_ids}
    texts = dict.fromkeys(expected_ids, "")
    reasons = {}
    while (plan := engine.schedule()) is not None:
        outputs = engine.update(model.run(plan))
        engine.check_integrity()
        for row, request in enumerate(outputs.request_ids.tolist()):
            tokens[request].append(int(outputs.token_ids[row]))
            texts[request] += outputs.texts[row]
            if outputs.finish_reasons[row] != 0:
                reasons[request] = int(outputs.finish_reasons[row])
                model.pool.release(request)
    return tokens, texts, reasons


@pytest.mark.long
@hypothesis_settings(deadline=None)  # a busy machine is no failure
@given(
    requests=st.lists(requests_strategy, min_size=1, max_size=8),
    num_blocks=st.integers(6, 12),
    max_batch_tokens=st.integers(1, 20),
)
def test_engine_gives_each_request_what_the_reference_gives_it_alone(requests, num_blocks, max_batch_tokens):
    limits = {"num_blocks": num_blocks, "max_batch_tokens": max_batch_tokens}
    one_by_one, batched = make_engine(**limits, max_running_requests=1), make_engine(**limits)
    for request_id, (prompt_ids, settings, max_tokens) in enumerate(requests):
        params = request_params(
            max_tokens=max_tokens,
            seed=settings.seed,
            temperature=settings.temperature,
            top_k=settings.top_k,
            repetition_penalty=settings.repetition_penalty,
        )
        for engine in (one_by_one, batched):
            engine.add_choices(request_id, np.array(prompt_ids, np.uint32), params)
    together = drain(batched, CacheModel(num_blocks, 4), range(len(requests)))
    assert together == drain(one_by_one, CacheModel(num_blocks, 4), range(len(requests)))
    for request_id, (prompt_ids, settings, max_tokens) in enumerate(requests):
        expected = reference_tokens(prompt_ids, settings, max_tokens)
        if expected is not None:
            assert together[0][request_id] == expected
            assert together[2][request_id] == (1 if expected[-1] == EOS else 2)
    assert batched.stats()["blocks_free"] == num_blocks


def greedy(**fields):
    return request_params(**({"max_tokens": 4, "temperature": 0.0} | fields))


def prefer(*ids):
    row = np.zeros((1, COLUMNS), np.float32)
    row[0, list(ids)] = np.arange(len(ids), 0, -1)
    return row


def ids(*values):
    return np.array(values, np.uint32)


def test_update_reports_shapes_it_wants_and_got():
    engine = make_engine()
    with pytest.raises(InvalidArgumentError, match="no plan is in flight"):
        engine.update(prefer(0))
    engine.add_choices(1, ids(0), greedy())
    engine.schedule()
    with pytest.raises(InvalidArgumentError, match=r"must be \(1, V\).*at least the vocabulary's 30, got \(2, 32\)"):
        engine.update(np.zeros((2, COLUMNS), np.float32))
    with pytest.raises(InvalidArgumentError, match="got float64"):
        engine.update(np.zeros((1, COLUMNS)))
    assert engine.update(prefer(3)).texts == ["d"]  # the plan was still in flight


def test_capacity_and_bad_prompts_are_told_apart():
    engine = make_engine(num_blocks=4, max_waiting_requests=1)
    with pytest.raises(CapacityError, match="the cache holds 16"):
        engine.add_choices(1, np.zeros(14, np.uint32), greedy())
    with pytest.raises(ContextLengthError, match="the context is 64 tokens, got 62 in the prompt and 4"):
        engine.add_choices(1, np.zeros(62, np.uint32), greedy())
    with pytest.raises(InvalidArgumentError, match="prompt ids must be below"):
        engine.add_choices(1, ids(VOCAB), greedy())
    with pytest.raises(InvalidArgumentError, match="at least one token"):
        engine.add_choices(1, ids(), greedy())
    engine.add_choices(1, ids(0), greedy())
    with pytest.raises(QueueFullError, match="the queue is full"):
        engine.add_choices(2, ids(0), greedy())
    with pytest.raises(InvalidArgumentError, match="`num_blocks` must be in"):
        make_engine(num_blocks=0)


def test_abort_between_schedule_and_update_skips_the_row():
    engine = make_engine()
    for request_id in (1, 2):
        engine.add_choices(request_id, ids(0, 1), greedy())
    assert engine.schedule().request_ids.tolist() == [1, 2]
    assert engine.abort(1)
    assert not engine.abort(1)
    outputs = engine.update(np.concatenate([prefer(3), prefer(4)]))
    assert (outputs.request_ids.tolist(), outputs.token_ids.tolist()) == ([2], [4])
    assert engine.abort(2)
    assert engine.schedule() is None
    assert not engine.has_unfinished()


def test_a_row_that_is_not_finite_ends_its_request_alone():
    engine = make_engine()
    for request_id in (1, 2):
        engine.add_choices(request_id, ids(0), greedy(logprobs=1))
    engine.schedule()
    logits = np.concatenate([prefer(3), prefer(4)])
    logits[0, 9] = np.nan
    outputs = engine.update(logits)
    assert outputs.finish_reasons.tolist() == [3, 0]
    assert outputs.top_logprobs[0] is None
    assert outputs.top_logprobs[1][0] == [4]
    [(request_id, message)] = outputs.errors
    assert request_id == 1
    assert message.startswith("request 1: the model's logits must hold no NaN or +inf")
    assert engine.schedule().request_ids.tolist() == [2]


def test_deltas_hold_back_half_characters_and_stop_strings():
    engine = make_engine()
    engine.add_choices(1, ids(0), greedy(max_tokens=9, stop=["never", "bcd"]))
    texts, stop_strings = [], []
    for token in (26, 27, 1, 2, 0, 1, 2, 3):
        engine.schedule()
        outputs = engine.update(prefer(token))
        texts.append(outputs.texts[0])
        stop_strings += outputs.stop_strings
    assert texts == ["", "é", "", "", "bca", "", "", ""]
    assert stop_strings == [(1, 1)]
    assert not engine.has_unfinished()


def test_stats_count_what_happened():
    engine = make_engine(num_blocks=4)
    model = CacheModel(4, 4)
    for request_id in (1, 2):
        engine.add_choices(request_id, ids(*range(7)), greedy(max_tokens=9, ignore_eos=True))
    assert engine.stats()["num_waiting"] == 2
    drain(engine, model, (1, 2))
    stats = engine.stats()
    assert stats["num_preemptions"] > 0
    assert stats["blocks_free"] == stats["blocks_total"] == 4
    assert stats["num_running"] == stats["num_waiting"] == 0


def test_choices_share_their_prompt_and_part_by_a_copy():
    engine, model = make_engine(), CacheModel(16, 4)
    params = request_params(max_tokens=6, seed=3, choice_index=1, ignore_eos=True)
    engine.add_choices(10, ids(*range(6)), params, num_choices=3)
    tokens, _, reasons = drain(engine, model, (10, 11, 12))
    for choice, request_id in enumerate((10, 11, 12)):
        alone = make_engine()
        own = request_params(max_tokens=6, seed=3, choice_index=1 + choice, ignore_eos=True)
        alone.add_choices(1, ids(*range(6)), own)
        assert tokens[request_id] == drain(alone, CacheModel(16, 4), (1,))[0][1]
    assert reasons == {10: 2, 11: 2, 12: 2}
    stats = engine.stats()
    assert (stats["tokens_scheduled"], stats["blocks_copied"]) == (6 + 3 * 5, 3)
    with pytest.raises(InvalidArgumentError, match="has no room for 2 choices"):
        engine.add_choices(1, ids(0), request_params(max_tokens=1, seed=0, choice_index=2**32 - 2), num_choices=2)


def test_a_failed_step_ends_everyone_in_it_and_leaves_nothing_to_find():
    engine = make_engine(max_batch_tokens=4)
    engine.add_choices(1, ids(*range(6)), greedy(), num_choices=2)
    engine.schedule()
    assert engine.fail_step() == [1, 2]
    assert not engine.has_unfinished()
    assert engine.fail_step() == []
    assert engine.stats()["blocks_cached"] == 0


def test_prompts_that_begin_the_same_are_computed_once():
    engine, model = make_engine(), CacheModel(16, 4)
    for request_id in (1, 2):
        engine.add_choices(request_id, ids(*range(11)), greedy(ignore_eos=True))
        drain(engine, model, (request_id,))
    stats = engine.stats()
    assert (stats["prefix_query_tokens"], stats["prefix_hit_tokens"]) == (22, 8)
    assert stats["blocks_cached"] == 3
    assert make_engine(enable_prefix_caching=False).stats()["blocks_cached"] == 0


def test_guesses_that_come_true_give_several_tokens_a_step():
    engine, model = make_engine(speculative=NgramSpeculation(max_ngram=2, min_ngram=1)), CacheModel(16, 4)
    engine.add_choices(1, ids(3, 4, 3, 4, 3), greedy(max_tokens=6, ignore_eos=True))
    plan = engine.schedule()
    model.run(plan)
    assert engine.update(prefer(4)).token_ids.tolist() == [4]
    plan = engine.schedule()
    assert plan.token_ids.tolist() == [4, 3, 4]
    assert plan.logits_indices.tolist() == [0, 1, 2]
    model.run(plan)
    outputs = engine.update(np.concatenate([prefer(3), prefer(7), prefer(8)]))
    assert (outputs.request_ids.tolist(), outputs.token_ids.tolist()) == ([1, 1], [3, 7])
    assert (engine.stats()["drafts_computed"], engine.stats()["drafts_accepted"]) == (2, 1)
    assert engine.schedule().positions.tolist()[0] == 7
    with pytest.raises(InvalidArgumentError, match="`num_draft_tokens` must be at least 1"):
        make_engine(speculative=NgramSpeculation(num_draft_tokens=0))


def test_guesses_from_outside_are_checked_like_any():
    engine, model = make_engine(), CacheModel(16, 4)
    assert engine.request_tokens(1, 0) is None
    with pytest.raises(UnknownRequestError):
        engine.set_drafts(1, [3])
    engine.add_choices(1, ids(3, 4, 5), greedy(max_tokens=4, ignore_eos=True))
    model.run(engine.schedule())
    engine.update(prefer(6))
    tokens, num_left = engine.request_tokens(1, 2)
    assert (tokens.tolist(), num_left) == ([5, 6], 3)
    assert engine.request_tokens(1, 9)[0].tolist() == []
    with pytest.raises(InvalidArgumentError, match=r"a guess must be in \[0, \d+\), got 99999"):
        engine.set_drafts(1, [99999])
    engine.set_drafts(1, [7, 8, 9, 10])  # the last token it may have is drawn without
    plan = engine.schedule()
    assert plan.token_ids.tolist() == [6, 7, 8]
    model.run(plan)
    outputs = engine.update(np.concatenate([prefer(7), prefer(8), prefer(2)]))
    assert outputs.token_ids.tolist() == [7, 8, 2]
    assert not engine.has_unfinished()
    engine.check_integrity()


def test_a_lower_priority_number_runs_first():
    engine = make_engine(max_running_requests=1)
    for request_id, priority in ((1, 0), (2, -1), (3, 0)):
        engine.add_choices(request_id, ids(0), greedy(max_tokens=1), priority=priority)
    order = []
    while (plan := engine.schedule()) is not None:
        order += plan.request_ids.tolist()
        engine.update(prefer(3))
    assert order == [2, 1, 3]


def test_other_threads_may_abort_and_read_stats_while_steps_run():
    engine = make_engine(num_blocks=64)
    for request_id in range(32):
        engine.add_choices(request_id, ids(request_id % 26), greedy(max_tokens=30, ignore_eos=True))
    aborted = []

    def abort_even():
        for request_id in range(0, 32, 2):
            aborted.append(engine.abort(request_id))
            assert engine.stats()["blocks_total"] == 64

    thread = threading.Thread(target=abort_even)
    thread.start()
    finished = set()
    while (plan := engine.schedule()) is not None:
        outputs = engine.update(np.tile(prefer(5), (len(plan.logits_indices), 1)))
        finished |= {
            int(request)
            for request, reason in zip(outputs.request_ids, outputs.finish_reasons, strict=True)
            if reason == 2
        }
    thread.join()
    engine.check_integrity()
    assert finished >= set(range(1, 32, 2))
    assert len(finished) == 32 - sum(aborted)
