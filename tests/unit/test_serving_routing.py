"""Routing by prefix: the table beside an obvious one, and several engines in simulated time."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import ConfigError
from llm.serving.routing import BLOCK_CHARS, PrefixTable, block_keys
from llm.settings.replicas import replica_config
from tests.unit.routing_simulation import Load, arrivals, by_prefix, least_busy, round_robin, simulate

SYSTEM = {"role": "system", "content": "You answer questions about the plays of Shakespeare. " * 8}


def body(**fields):
    return json.dumps({"model": "m"} | fields).encode()


def chat(*contents):
    return body(messages=[SYSTEM, *({"role": "user", "content": content} for content in contents)])


def shared(one, other):
    keys, others = block_keys(one), block_keys(other)
    return next(
        (idx for idx, (key, other_key) in enumerate(zip(keys, others, strict=False)) if key != other_key),
        min(len(keys), len(others)),
    )


def test_prompts_share_the_keys_of_the_blocks_at_their_beginning():
    text = "To be, or not to be: that is the question. " * 10
    for length in (0, BLOCK_CHARS - 1, BLOCK_CHARS, 3 * BLOCK_CHARS + 5):
        one, other = body(prompt=text[:length] + "a" * 200), body(prompt=text[:length] + "b" * 200)
        assert shared(one, other) == length // BLOCK_CHARS
    assert len(block_keys(body(prompt=text))) == len(text) // BLOCK_CHARS
    assert len(block_keys(body(prompt=text * 1000))) == 4096


def test_a_longer_conversation_begins_as_the_shorter_one():
    short, long = chat("Who is Hamlet?"), chat("Who is Hamlet?", "And Ophelia? " * 20)
    assert shared(short, long) == len(block_keys(short)) > 6
    assert shared(short, chat("Who is Lear?")) >= len(block_keys(short)) - 1


def test_another_model_or_a_change_at_the_beginning_shares_nothing():
    other = json.loads(chat("Who?"))
    assert shared(chat("Who?"), json.dumps(other | {"model": "poems"}).encode()) == 0
    tools = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    assert shared(chat("Who?"), json.dumps(other | {"tools": tools}).encode()) == 0


@pytest.mark.parametrize(
    "odd", [b"", b"\x1f\x8b gzip", b"[1]", b"3", body(), body(prompt=None), body(prompt="short"), b'{"prompt": ']
)
def test_a_body_without_a_prompt_has_no_keys(odd):
    assert block_keys(odd) == ()


def test_odd_prompts_have_keys():
    assert len(block_keys(body(prompt=[[1, 2, 3] * 50]))) >= 1
    assert (
        len(block_keys(body(input=[{"type": "message", "content": [{"type": "input_text", "text": "x" * 300}]}]))) >= 4
    )
    assert block_keys(b'{"prompt": "' + rb"\ud800" * 80 + b'"}') == block_keys(
        b'{"prompt": "' + rb"\ud800" * 80 + b'"}'
    )


class ObviousTable:
    """Keeps whole prompts, and looks through all of them."""

    def __init__(self):
        self.sent = {}

    def matched(self, server, keys):
        def common(other):
            return next(
                (idx for idx, (a, b) in enumerate(zip(keys, other, strict=False)) if a != b), min(len(keys), len(other))
            )

        return max(map(common, self.sent.get(server, [])), default=0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 2), max_size=6))))
def test_the_table_finds_what_looking_through_all_prompts_finds(requests):
    table, obvious = PrefixTable(10_000), ObviousTable()
    for server, digits in requests:
        # A key stands for all blocks before it, as a hash does.
        keys = tuple(hash(tuple(digits[: idx + 1])) for idx in range(len(digits)))
        for name in "abc":
            assert table.matched(name, keys) == obvious.matched(name, keys)
        table.add(server, keys)
        obvious.sent.setdefault(server, []).append(keys)


def test_a_full_table_forgets_the_end_of_what_was_used_least_recently():
    table = PrefixTable(6)
    table.add("a", (1, 2, 3, 4))
    table.add("a", (1, 2, 5, 6))
    assert table.matched("a", (1, 2, 3, 4)) == 4
    table.add("a", (7, 8))
    assert table.matched("a", (1, 2, 5, 6)) == 4
    assert table.matched("a", (1, 2, 3, 4)) == 2


def test_servers_with_the_prefix_come_first_unless_they_are_too_busy():
    table = PrefixTable(100)
    table.add("a", (1, 2, 3))
    table.add("b", (1,))
    assert table.ranked((1, 2, 3), {"a": 3, "b": 0, "c": 0}) == ["a", "b", "c"]
    assert table.ranked((1, 2, 3), {"a": 30, "b": 0, "c": 0})[0] == "b"
    assert table.ranked((1, 2, 3), {"a": 30, "b": 25, "c": 20})[0] == "a"  # all are busy alike
    table.keep(["b", "c"])
    assert table.matched("a", (1, 2, 3)) == 0


def test_routers_that_know_nothing_of_each_other_agree_on_new_prompts():
    servers = dict.fromkeys("abcdefgh", 0)
    first = {key: PrefixTable(100).ranked((key,), servers)[0] for key in range(400)}
    assert first == {key: PrefixTable(100).ranked((key,), dict(reversed(servers.items())))[0] for key in range(400)}
    shares = np.unique(list(first.values()), return_counts=True)[1] / 400
    assert len(shares) == 8
    assert 0.06 < shares.min() <= shares.max() < 0.2
    # One server less moves only what it had.
    del servers["c"]
    left = {key: PrefixTable(100).ranked((key,), servers)[0] for key in range(400)}
    assert all(left[key] == server for key, server in first.items() if server != "c")


# A cache holds 24 of the 64 prefixes, and 64 requests.
NUM_BLOCKS = 24 * 128 + 64 * 8


@pytest.mark.parametrize(("skew", "bound"), [(0.0, 0.2), (1.0, 0.3)])
def test_first_tokens_come_in_a_third_of_round_robin_s_time(skew, bound):
    requests = arrivals(Load(skew=skew))
    measured = {
        name: simulate(requests, router, num_blocks=NUM_BLOCKS)
        for name, router in (("turns", round_robin()), ("busy", least_busy()), ("prefix", by_prefix(NUM_BLOCKS)))
    }
    assert all(np.isfinite(result.first_token_s).all() for result in measured.values())
    assert sum(measured["prefix"].by_replica.values()) == len(requests)
    means = {name: result.first_token_s.mean() for name, result in measured.items()}
    assert means["prefix"] <= bound * means["turns"]
    assert means["prefix"] <= (bound + 0.03) * means["busy"]
    assert measured["prefix"].hit_share > 0.9 > 0.7 > measured["turns"].hit_share


def test_one_popular_prefix_is_spread_over_replicas():
    requests = arrivals(Load(num_prefixes=1, num_requests=400, rate_per_s=60.0))
    routed = simulate(requests, by_prefix(NUM_BLOCKS), num_blocks=NUM_BLOCKS)
    turns = simulate(requests, round_robin(), num_blocks=NUM_BLOCKS)
    assert min(routed.by_replica.values()) > 0.9 * len(requests) / 8
    # While nobody has the prefix yet, a replica gets four requests of it before the next one gets its first.
    assert routed.first_token_s.mean() <= 1.2 * turns.first_token_s.mean()


def test_settings_of_replicas_are_read_from_texts():
    given = {"model": "runs/base", "max_replicas": "3", "server.engine.max_running_requests": "16", "server.grace_s": 5}
    config = replica_config(given, {"LLM_SERVER__LOG_FORMAT": "json"})
    assert (config.min_replicas, config.max_replicas, config.aim) == (1, 3, 8.0)
    assert (config.server.engine.max_running_requests, config.server.grace_s, config.server.log_format) == (
        16,
        5,
        "json",
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "m", "max_replica": "2"}, "max_replicas"),
        ({"model": "m", "min_replicas": "3"}, "`max_replicas` must be at least `min_replicas`, got 1 and 3"),
        ({"model": "m", "server.response_store": "r.db"}, "belongs to one server"),
        ({"model": "m", "server.grase_s": "1"}, "grace_s"),
        ({"max_replicas": 2}, "model"),
    ],
)
def test_wrong_settings_of_replicas_are_errors(given, words):
    with pytest.raises(ConfigError, match=words):
        replica_config(given, {})
