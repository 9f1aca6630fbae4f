"""What the serving bench makes of packets: a wrong figure there would look like any other."""

import itertools
import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2] / "benches" / "peers"))

from figures import Answer, LoadError, over_rounds, percentile, read_answer, share_in_common, summary

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
USAGE = {"prompt_tokens": 7, "completion_tokens": 4}


def event(content=None, **more):
    choices = [] if content is None else [{"index": 0, "delta": {"content": content}}]
    return b"data: " + json.dumps({"choices": choices} | more).encode() + b"\n\n"


def chunked(*pieces):
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


STREAM = (event(""), event("Hé"), event("llo"), event("!"), event(usage=USAGE), b"data: [DONE]\n\n")


def test_answer_times_text_and_counts_usage():
    packets = [
        (10.0, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(STREAM[0])[:-5]),
        (10.5, chunked(STREAM[1])[:-5]),
        (11.0, chunked(STREAM[2])[:-5]),
        (12.0, chunked(*STREAM[3:])),
    ]
    answer = read_answer(packets, started=9.0)
    assert answer.text == "Héllo!"
    assert (answer.prompt_tokens, answer.output_tokens) == (7, 4)
    assert answer.first_token_s == pytest.approx(1.5)  # the empty first piece is no token
    assert answer.inter_token_s == pytest.approx((12.0 - 10.5) / 3)  # four tokens, three gaps, whatever the pieces


@given(drawn=st.lists(st.integers(0, 2000), max_size=8), is_chunked=st.booleans())
@example(drawn=[179], is_chunked=False)  # between the second event's last character and its line break
def test_answer_does_not_depend_on_where_packets_break(drawn, is_chunked):
    body = chunked(*STREAM) if is_chunked else b"".join(STREAM)
    whole = HEAD + (b"transfer-encoding: CHUNKED\r\n\r\n" if is_chunked else b"\r\n") + body
    cuts = sorted({0, len(whole), *(cut % len(whole) for cut in drawn)})
    packets = [(float(end), whole[start:end]) for start, end in itertools.pairwise(cuts)]
    answer = read_answer(packets, started=0.0)
    assert answer.text == "Héllo!"
    assert answer.output_tokens == 4
    ends = [whole.index(piece) + len(piece) for piece in STREAM]
    # The time is that of the packet with the line's last character; line breaks or a frame's end may come later.
    first = next(end for end in cuts if end >= ends[1] - 2)
    later = next((end for end in cuts if end >= ends[1] + 2), cuts[-1])
    assert first <= answer.first_token_s <= later


@pytest.mark.parametrize(
    ("packets", "message"),
    [
        ([], "got no 200"),
        ([(1.0, b"HTTP/1.1 429 Too Many Requests\r\n\r\n{}")], "429 Too Many"),
        ([(1.0, HEAD + b"\r\n" + event("a"))], "no `usage`"),
        ([(1.0, HEAD + b"\r\n" + event(usage=USAGE))], "0 pieces of text"),
        ([(1.0, HEAD + b"\r\n" + event("a") + event(error={"message": "dead"}))], "dead"),
        ([(1.0, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(*STREAM)[:-5])], "cut off after"),
        ([(1.0, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(*STREAM)[:-25])], "cut off after"),
    ],
)
def test_answer_that_can_not_be_counted_is_an_error(packets, message):
    with pytest.raises(LoadError, match=message):
        read_answer(packets, started=0.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_percentile_is_the_smallest_value_with_that_share_at_or_below(values, share):
    got = percentile(values, share)
    needed = max(1, math.ceil(share * len(values)))
    assert got in values
    assert sum(value <= got for value in values) >= needed
    assert sum(value < got for value in values) < needed


def test_percentile_of_few_values():
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.0
    assert percentile([float(number) for number in range(1, 101)], 0.99) == 99.0


def test_summary_divides_all_tokens_by_the_loads_time():
    answers = [Answer(0.1, 0.01, 10, 5, "a"), Answer(0.3, 0.03, 10, 7, "b"), Answer(0.2, 0.02, 10, 6, "c")]
    got = summary(answers, seconds=2.0)
    assert got["output_tokens_per_s"] == 9.0
    assert got["total_tokens_per_s"] == 24.0
    assert (got["first_token_p50_s"], got["first_token_p99_s"]) == (0.2, 0.3)
    assert got["inter_token_p50_s"] == 0.02
    assert (got["prompt_tokens"], got["output_tokens"]) == (10, 6)


def test_rounds_give_medians_and_spread():
    rounds = [{"output_tokens_per_s": rate, "first_token_p50_s": 1 / rate} for rate in (100.0, 80.0, 120.0)]
    got = over_rounds(rounds)
    assert got["output_tokens_per_s"] == 100.0
    assert got["first_token_p50_s"] == 0.01
    assert (got["rounds"], got["spread"]) == (3, 0.4)


def test_share_in_common_is_of_our_text():
    assert share_in_common("abcd", "abxd") == 0.5
    assert share_in_common("abcd", "abcdef") == 1.0
    assert share_in_common("abcd", "ab") == 0.5
    assert share_in_common("abcd", "") == 0.0
