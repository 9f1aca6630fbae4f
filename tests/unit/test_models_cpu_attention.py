"""The attention kernel of training on a CPU: values and gradients are those of a plain composition in fp64."""

import itertools

import pytest
import torch
from torch import Tensor

from llm._rust import TrainingAttention
from llm.errors import InvalidArgumentError

Rotation = tuple[Tensor, Tensor]


def starts_of(lengths: tuple[int, ...]) -> list[int]:
    return list(itertools.accumulate(lengths, initial=0))


def exact(
    joined: Tensor, counts: tuple[int, int], lengths: tuple[int, ...], rotation: Rotation | None, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns output and gradient in fp64, by a mask over whole sequences."""
    heads, kv_heads = counts
    leaf = joined.double().view(len(joined), heads + 2 * kv_heads, -1).requires_grad_()
    turned, value = leaf[:, : heads + kv_heads], leaf[:, heads + kv_heads :]
    if rotation is not None:
        cosine, sine = (part.double().unsqueeze(1) for part in rotation)
        first, second = turned.chunk(2, -1)
        turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)
    outputs = []
    for start, stop in itertools.pairwise(starts_of(lengths)):
        query, key = turned[start:stop, :heads].transpose(0, 1), turned[start:stop, heads:].transpose(0, 1)
        key, values = (
            part.repeat_interleave(heads // kv_heads, 0) for part in (key, value[start:stop].transpose(0, 1))
        )
        scores = query @ key.mT * leaf.shape[-1] ** -0.5
        hidden = torch.ones(stop - start, stop - start, dtype=torch.bool).triu(1)
        outputs.append((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values).transpose(0, 1).flatten(1))
    output = torch.cat(outputs)
    (found,) = torch.autograd.grad(output, leaf, gradient.double())
    return output.detach(), found.flatten(1)


def computed(kernel: TrainingAttention, joined: Tensor, heads: int, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mixed, to_joined = torch.full_like(gradient, torch.nan), torch.full_like(joined, torch.nan)
    logsumexp = torch.full((len(joined), heads), torch.nan)
    kernel.forward(joined, mixed, logsumexp)
    kernel.backward(joined, (mixed, logsumexp), gradient, to_joined)
    return mixed, logsumexp, to_joined


@pytest.mark.parametrize("lengths", [(1,), (7,), (64, 64), (65, 3, 130)], ids=str)
@pytest.mark.parametrize(
    ("counts", "head_dim"), [((1, 1), 16), ((4, 2), 32), ((3, 1), 64), ((2, 2), 128), ((2, 1), 80)]
)
def test_attention_is_exact_and_the_same_for_every_number_of_threads(
    counts: tuple[int, int], head_dim: int, lengths: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    tokens, (heads, kv_heads) = sum(lengths), counts
    angles = torch.rand(tokens, head_dim // 2) * 6
    for dtype, rotation in itertools.product((torch.float32, torch.bfloat16), (None, (angles.cos(), angles.sin()))):
        joined = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim).to(dtype)
        gradient = torch.randn(tokens, heads * head_dim).to(dtype)
        results = []
        for num_threads in (1, 3):
            sizes = (heads, kv_heads, head_dim)
            kernel = TrainingAttention(sizes, head_dim**-0.5, starts_of(lengths), rotation, num_threads)
            results.append(computed(kernel, joined, heads, gradient))
        for first, second in zip(*results, strict=True):
            assert torch.equal(first, second)
        mixed, _, to_joined = results[0]
        allowed = 2e-6 if dtype == torch.float32 else 4e-3
        for found, wanted in zip((mixed, to_joined), exact(joined, counts, lengths, rotation, gradient), strict=True):
            assert (found - wanted).norm() <= allowed * wanted.norm()


def test_large_scores_neither_overflow_nor_vanish() -> None:
    torch.manual_seed(0)
    joined, gradient = torch.randn(70, 48) * 30, torch.randn(70, 16)
    kernel = TrainingAttention((1, 1, 16), 0.25, [0, 70], None, 1)
    mixed, logsumexp, to_joined = computed(kernel, joined, 1, gradient)
    wanted, to_wanted = exact(joined, (1, 1), (70,), None, gradient)
    torch.testing.assert_close(mixed.double(), wanted, atol=1e-3, rtol=0)
    assert logsumexp.isfinite().all()
    assert (to_joined - to_wanted).norm() <= 1e-3 * to_wanted.norm()


def test_tensors_that_do_not_fit_are_refused() -> None:
    kernel = TrainingAttention((2, 1, 16), 0.25, [0, 4], None, 1)
    joined, mixed, sums = torch.zeros(4, 64), torch.zeros(4, 32), torch.zeros(4, 2)
    with pytest.raises(InvalidArgumentError, match="`joined` must hold 256 numbers, got 192"):
        kernel.forward(joined[:3], mixed, sums)
    with pytest.raises(InvalidArgumentError, match="`mixed` must hold 128 numbers, got 96"):
        kernel.forward(joined, mixed[:3], sums)
    with pytest.raises(InvalidArgumentError, match="contiguous float32 or bfloat16"):
        kernel.forward(joined.T, mixed, sums)
    with pytest.raises(InvalidArgumentError, match="all tensors must be float32, got bfloat16"):
        kernel.forward(joined, mixed.bfloat16(), sums)
    with pytest.raises(InvalidArgumentError, match="multiple of 16, got 1 key heads and 2 query heads of 8 channels"):
        TrainingAttention((2, 1, 8), 0.25, [0, 4], None, 1).forward(torch.zeros(4, 32), mixed, sums)
    with pytest.raises(InvalidArgumentError, match="must begin with 0 and not fall"):
        TrainingAttention((2, 1, 16), 0.25, [0, 4, 2], None, 1).forward(joined, mixed, sums)
