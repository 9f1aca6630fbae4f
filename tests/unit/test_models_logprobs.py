"""Log-probabilities of given tokens: values, gradients, memory."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm.models import IGNORED_LABEL, Targets, logprobs, token_logprobs, top_logprobs
from tests.reference.logprobs import logprobs_by_row

CASES = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 9),
        "vocab": st.integers(1, 13),
        "chunk": st.sampled_from([1, 20, 1000]),
        "masked": st.floats(0, 1),
        "temperature": st.sampled_from([1.0, 0.5, 3.0]),
        "softcap": st.sampled_from([None, 2.0]),
        "is_summed": st.booleans(),
        "is_uniform": st.booleans(),
        "seed": st.integers(0, 2**31),
        "dtype": st.sampled_from([torch.float64, torch.float32]),
    }
)


def leaves(rows: int, vocab: int, dtype: torch.dtype = torch.float64, width: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, width, dtype=dtype).requires_grad_(), torch.randn(
        vocab, width, dtype=dtype
    ).requires_grad_()


def labels_for(rows: int, vocab: int, masked: float) -> Tensor:
    labels = torch.randint(0, vocab, (rows,))
    labels[torch.rand(rows) < masked] = IGNORED_LABEL
    return labels


@settings(max_examples=60)
@given(CASES)
def test_values_and_gradients_agree_with_the_definition(case: dict) -> None:
    torch.manual_seed(case["seed"])
    hidden, weight = leaves(case["rows"], case["vocab"], case["dtype"])
    labels = labels_for(case["rows"], case["vocab"], case["masked"])
    upstream = torch.full((case["rows"],), 0.7) if case["is_uniform"] else torch.randn(case["rows"])
    upstream = upstream.to(case["dtype"])
    targets = Targets(labels, case["temperature"], case["is_summed"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "CHUNK_LOGITS", case["chunk"])
        found = token_logprobs(hidden, weight, targets, case["softcap"])
        gradients = torch.autograd.grad(found, (hidden, weight), upstream)
        with torch.no_grad():
            assert torch.equal(token_logprobs(hidden, weight, targets, case["softcap"]), found)
    expected = logprobs_by_row(hidden, weight, labels, case["temperature"], case["softcap"])
    wanted = torch.autograd.grad(expected, (hidden, weight), upstream)
    allowed = {} if case["dtype"] == torch.float64 else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(found, expected, **allowed)
    torch.testing.assert_close(gradients, wanted, **allowed)


@pytest.mark.parametrize("is_summed", [False, True])
def test_the_gradient_passes_gradcheck(is_summed: bool) -> None:
    torch.manual_seed(0)
    hidden, weight = leaves(5, 7)
    labels = torch.tensor([1, IGNORED_LABEL, 6, 0, 3])
    targets = Targets(labels, 0.8, is_summed)
    assert torch.autograd.gradcheck(lambda *parts: token_logprobs(*parts, targets, 3.0), (hidden, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_summed", [False, True])
def test_autocast_keeps_sums_in_fp32(dtype: torch.dtype, is_summed: bool) -> None:
    torch.manual_seed(0)
    hidden, weight = leaves(64, 300, torch.float32, width=32)
    labels = labels_for(64, 300, 0.2)
    exact = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="none", ignore_index=IGNORED_LABEL)
    wanted = torch.autograd.grad(exact.sum(), (hidden, weight))
    with torch.autocast("cpu", dtype=dtype):
        losses = -token_logprobs(hidden, weight, Targets(labels, is_summed=is_summed))
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, exact, atol=0.2, rtol=0.02)
    for found, gradient in zip(torch.autograd.grad(losses.sum(), (hidden, weight)), wanted, strict=True):
        assert found.dtype == torch.float32
        assert float((found - gradient).norm() / gradient.norm()) < 0.02


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_only_the_needed_gradient_is_computed(needed: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    both = leaves(6, 5)
    labels = labels_for(6, 5, 0.0)
    wanted = torch.autograd.grad(token_logprobs(*both, Targets(labels)).sum(), both)
    hidden, weight = (part.detach().requires_grad_(need) for part, need in zip(both, needed, strict=True))
    token_logprobs(hidden, weight, Targets(labels, is_summed=True)).sum().backward()
    for part, need, gradient in zip((hidden, weight), needed, wanted, strict=True):
        torch.testing.assert_close(part.grad, gradient) if need else None
        assert need or part.grad is None


def test_nothing_to_predict_costs_nothing_and_has_a_gradient_of_zero() -> None:
    hidden, weight = leaves(3, 5)
    labels = torch.full((3,), IGNORED_LABEL)
    found = token_logprobs(hidden, weight, Targets(labels, is_summed=True))
    found.sum().backward()
    assert found.tolist() == [0, 0, 0]
    assert not hidden.grad.any()
    assert not weight.grad.any()


MEASURE = """
import os, resource
import torch
import torch.nn.functional as F
from llm.models import Targets, token_logprobs
torch.set_num_threads(1)
hidden, weight = torch.randn(2048, 32, requires_grad=True), torch.randn(49_152, 32, requires_grad=True)
labels = torch.randint(0, 49_152, (2048,))
part = hidden[:8]
(F.cross_entropy(part @ weight.T, labels[:8]) + token_logprobs(part, weight, Targets(labels[:8])).sum()).backward()


def added(path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if path == "plain":
        loss = F.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    else:
        loss = -token_logprobs(hidden, weight, Targets(labels, is_summed=path == "summed")).sum()
    loss.backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


for path in ("plain", "summed", "general"):
    child = os.fork()
    if not child:
        print(path, added(path), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="measures in KiB")
def test_the_loss_at_a_large_vocabulary_needs_an_eighth_of_the_plain_memory() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    peaks = {path: int(kib) for path, kib in (line.split() for line in done.stdout.splitlines())}
    assert peaks["plain"] > 3 * 2048 * 49_152 * 4 / 1024
    assert peaks["summed"] <= peaks["plain"] / 8
    assert peaks["general"] <= peaks["plain"] / 8


@settings(max_examples=30)
@given(CASES, st.integers(1, 4))
def test_several_tokens_a_position_are_those_of_one_at_a_time(case: dict, count: int) -> None:
    torch.manual_seed(case["seed"])
    hidden, weight = leaves(case["rows"], case["vocab"])
    labels = torch.randint(0, case["vocab"], (case["rows"], count))
    labels[torch.rand(case["rows"]) < case["masked"]] = IGNORED_LABEL
    upstream = torch.randn(case["rows"], count, dtype=torch.float64)
    options = (case["temperature"], case["is_summed"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "CHUNK_LOGITS", case["chunk"])
        found = token_logprobs(hidden, weight, Targets(labels, *options), case["softcap"])
        gradients = torch.autograd.grad(found, (hidden, weight), upstream)
    each = [
        logprobs_by_row(hidden, weight, column, case["temperature"], case["softcap"]) for column in labels.unbind(1)
    ]
    expected = torch.stack(each, dim=1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (hidden, weight), upstream))


def test_further_targets_come_as_further_columns() -> None:
    torch.manual_seed(0)
    hidden, weight = leaves(5, 11)
    labels, others = torch.randint(0, 11, (5,)), torch.randint(0, 11, (5, 2))
    found = token_logprobs(hidden, weight, Targets(labels, others=Targets(others, 2.0)))
    assert found.shape == (5, 3)
    torch.testing.assert_close(found[:, 0], token_logprobs(hidden, weight, Targets(labels)))
    torch.testing.assert_close(found[:, 1:], token_logprobs(hidden, weight, Targets(others, 2.0)))


@settings(max_examples=30)
@given(CASES)
def test_the_most_probable_tokens_are_those_of_the_softmax(case: dict) -> None:
    torch.manual_seed(case["seed"])
    hidden, weight = (one.detach() for one in leaves(case["rows"], case["vocab"]))
    count = min(3, case["vocab"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "CHUNK_LOGITS", case["chunk"])
        options = {"temperature": case["temperature"], "softcap": case["softcap"]}
        ids, found = top_logprobs(hidden, weight, count, **options)
    logits = hidden @ weight.T
    if case["softcap"] is not None:
        logits = case["softcap"] * torch.tanh(logits / case["softcap"])
    values, wanted = torch.log_softmax(logits / case["temperature"], -1).topk(count)
    torch.testing.assert_close(found, values)
    assert torch.equal(ids, wanted)
