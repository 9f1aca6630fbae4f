"""Log-probabilities of given tokens, computed without a tensor of the size tokens times vocabulary."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llm._rust import label_logprobs

IGNORED_LABEL = -100

# Logits computed at a time: 64 MiB in fp32, which is 341 rows of a vocabulary of 49,152.
CHUNK_LOGITS = 2**24
# Rows of a half-precision weight gradient that are added to the fp32 sum at a time; they fit in a CPU's cache.
_GRADIENT_ROWS = 4096


@dataclass(frozen=True)
class Targets:
    """Tokens whose log-probabilities a pass returns.

    Attributes:
        labels: int64 `[T]`, the next token at each position, or `IGNORED_LABEL`; ignored positions cost nothing.
            Several tokens a position are `[T, K]`, and the first of them says whether the position is ignored.
        temperature: Divisor of the logits, above 0.
        is_summed: Whether the loss probably weighs all tokens alike, as a sum or a mean does. The pass then also
            computes the gradient, which saves one of four matrix products. Any other loss is correct as well.
        others: Further targets of the same positions, such as at another temperature; their columns come after.
        impossible: Ids that have no probability, int64 `[N]`; None: all ids are possible.
        gradient_dtype: Number type of the products that gradients need, where a pass on a CPU computes them by itself;
            None: that of the values.
    """

    labels: Tensor
    temperature: float = 1.0
    is_summed: bool = False
    others: "Targets | None" = None
    impossible: Tensor | None = None
    gradient_dtype: torch.dtype | None = None


def token_logprobs(hidden_states: Tensor, weight: Tensor, targets: Targets, softcap: float | None = None) -> Tensor:
    """Returns the natural logarithm of each label's probability; with gradient.

    The logits exist only for a chunk of rows at a time, in the forward and in the backward pass.

    Args:
        hidden_states: `[T, C]`, after the last norm.
        weight: Output matrix `[V, C]`.
        targets: Labels and temperature.
        softcap: Bound `c` in `c · tanh(logit / c)`; None means no bound.

    Returns:
        fp32 (fp64 for fp64 hidden states) of the labels' shape, `[T, K]` with `others`; 0 at ignored positions.
    """
    if targets.others is not None:
        each = (replace(targets, others=None), targets.others)
        parts = [token_logprobs(hidden_states, weight, one, softcap) for one in each]
        return torch.cat([_columns(part) for part in parts], dim=1)
    device = hidden_states.device.type
    if torch.is_autocast_enabled(device) and hidden_states.dtype != torch.float64:
        hidden_states = hidden_states.to(torch.get_autocast_dtype(device))
    firsts = targets.labels if targets.labels.dim() == 1 else targets.labels[:, 0]
    kept = (firsts != IGNORED_LABEL).nonzero().squeeze(1)
    if len(kept) == len(targets.labels):
        return _logprobs(hidden_states, weight, targets, softcap)
    found = _logprobs(hidden_states[kept], weight, replace(targets, labels=targets.labels[kept]), softcap)
    return found.new_zeros(targets.labels.shape).index_copy(0, kept, found)


@torch.no_grad()
def top_logprobs(
    hidden_states: Tensor, weight: Tensor, count: int, *, temperature: float = 1.0, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the most probable tokens at each position and the natural logarithms of their probabilities.

    Args:
        hidden_states: `[T, C]`, after the last norm.
        weight: Output matrix `[V, C]`.
        count: Number of tokens, at most `V`.
        temperature: Divisor of the logits, above 0.
        softcap: As for `token_logprobs`.

    Returns:
        Ids, int64 `[T, count]`, the most probable first, and their log-probabilities, fp32 `[T, count]`.
    """
    labels = torch.zeros(len(hidden_states), dtype=torch.int64, device=hidden_states.device)
    device = hidden_states.device.type
    if torch.is_autocast_enabled(device) and hidden_states.dtype != torch.float64:
        hidden_states = hidden_states.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return _Logits(hidden_states, weight, Targets(labels, temperature), softcap).top(count)


def _logprobs(hidden_states: Tensor, weight: Tensor, targets: Targets, softcap: float | None) -> Tensor:
    if torch.is_grad_enabled() and (hidden_states.requires_grad or weight.requires_grad):
        found: Tensor = _TokenLogprobs.apply(hidden_states, weight, targets, softcap)  # type: ignore[no-untyped-call]
        return found
    with torch.autocast(hidden_states.device.type, enabled=False):
        return _Logits(hidden_states, weight, targets, softcap).logprobs()


class _TokenLogprobs(torch.autograd.Function):
    """Computes the logits again in the backward pass, unless the forward pass already computed the gradient."""

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, weight: Tensor, targets: Targets, softcap: float | None) -> Tensor:
        ctx.targets, ctx.softcap, ctx.sums = targets, softcap, None
        ctx.save_for_backward(hidden_states, weight)
        with torch.autocast(hidden_states.device.type, enabled=False):
            logits = _Logits(hidden_states, weight, targets, softcap)
            if not targets.is_summed:
                return logits.logprobs()
            ctx.sums = _Gradients(hidden_states, weight, ctx.needs_input_grad)
            return logits.logprobs(ctx.sums)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        sums, ctx.sums = ctx.sums, None
        if sums is not None and _is_uniform(gradient):
            return *sums.scaled(gradient.flatten()[:1]), None, None
        hidden_states, weight = ctx.saved_tensors
        hidden_states = hidden_states.to(ctx.targets.gradient_dtype or hidden_states.dtype)
        sums = _Gradients(hidden_states, weight, ctx.needs_input_grad)
        with torch.autocast(hidden_states.device.type, enabled=False):
            _Logits(hidden_states, weight, ctx.targets, ctx.softcap).logprobs(sums, gradient)
        return *sums.scaled(None), None, None


def _columns(values: Tensor) -> Tensor:
    """Returns `[T]` as `[T, 1]`, and `[T, K]` as it is."""
    return values if values.dim() == 2 else values[:, None]


def _is_uniform(gradient: Tensor) -> bool:
    """Returns whether all elements are equal; the gradient of a sum is known to be, without looking at its values."""
    return len(gradient) > 0 and (gradient.stride() == (0,) or bool((gradient == gradient.flatten()[0]).all()))


class _Logits:
    """The logits of some rows, a chunk at a time."""

    def __init__(self, hidden_states: Tensor, weight: Tensor, targets: Targets, softcap: float | None) -> None:
        self.hidden_states, self.labels = hidden_states, targets.labels
        self.weight = weight.to(hidden_states.dtype)
        self.temperature, self.softcap = targets.temperature, softcap
        self.impossible = targets.impossible
        self.dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        self._buffer: Tensor | None = None
        self._wide: Tensor | None = None

    def logprobs(self, sums: "_Gradients | None" = None, gradient: Tensor | None = None) -> Tensor:
        """Returns the labels' log-probabilities, of the labels' shape.

        Args:
            sums: Takes the gradients, if they are wanted.
            gradient: Gradient of each log-probability; None means 1.
        """
        if self._has_kernel():
            return self._kernel_logprobs(sums, gradient)
        found = self.hidden_states.new_empty(self.labels.shape, dtype=self.dtype)
        by_row, all_labels = _columns(found), _columns(self.labels)
        gradient = None if gradient is None else _columns(gradient)
        for rows in self._chunks():
            logits, labels = self._product(rows), all_labels[rows]
            slope = self._cap(logits, wants_slope=sums is not None)
            logits -= logits.amax(-1, keepdim=True)
            chosen = logits.gather(1, labels)
            total = logits.exp_().sum(-1, keepdim=True)
            by_row[rows] = chosen - total.log()
            if sums is None:
                continue
            factor = torch.ones_like(chosen) if gradient is None else gradient[rows].to(self.dtype)
            factor = factor / self.temperature
            logits *= -factor.sum(-1, keepdim=True) / total
            logits.scatter_add_(1, labels, factor)
            sums.add(rows, logits if slope is None else logits.mul_(slope), self)
        return found

    def _kernel_logprobs(self, sums: "_Gradients | None", gradient: Tensor | None) -> Tensor:
        """Does what `logprobs` does, by this package's kernel."""
        labels, threads = self.labels.contiguous(), torch.get_num_threads()
        found = self.hidden_states.new_empty(labels.shape, dtype=self.dtype)
        factors = None if gradient is None else gradient.to(self.dtype).contiguous()
        for rows in self._chunks():
            product = self._bare_product(rows)
            given = (product, labels[rows], found[rows], None if factors is None else factors[rows])
            label_logprobs(given, sums is not None, 1 / self.temperature, threads)
            if sums is not None:
                sums.add(rows, product, self)
        return found

    def top(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns ids and log-probabilities of the most probable tokens, `[T, count]` each."""
        ids = torch.empty(len(self.labels), count, dtype=torch.int64, device=self.labels.device)
        found = self.hidden_states.new_empty(len(self.labels), count, dtype=self.dtype)
        for rows in self._chunks():
            logits = self._product(rows)
            self._cap(logits, wants_slope=False)
            values, ids[rows] = logits.topk(count)
            found[rows] = values - logits.logsumexp(-1, keepdim=True)
        return ids, found

    def _chunks(self) -> Iterator[slice]:
        step = max(1, CHUNK_LOGITS // max(1, len(self.weight)))
        return (slice(start, min(start + step, len(self.labels))) for start in range(0, len(self.labels), step))

    def _has_kernel(self) -> bool:
        """Returns whether this package's kernel computes the softmax, in two passes over a row instead of eight."""
        is_plain = self.softcap is None and self.impossible is None and _columns(self.labels).shape[1] == 1
        is_known = type(self.hidden_states) is Tensor and self.hidden_states.dtype in (torch.float32, torch.bfloat16)
        if not is_plain or not is_known or self.hidden_states.device.type != "cpu":
            return False
        is_watched = torch._C._len_torch_dispatch_stack() > 0  # somebody counts operations, or tensors have no memory
        return not is_watched and not torch.compiler.is_compiling()

    def _bare_product(self, rows: slice) -> Tensor:
        """Returns the logits `[R, V]` before anything else, in the one buffer that all chunks share."""
        size = (rows.stop - rows.start, len(self.weight))
        if self._buffer is None:
            self._buffer = self.hidden_states.new_empty(size)
        return torch.mm(self.hidden_states[rows], self.weight.T, out=self._buffer[: size[0]])

    def _product(self, rows: slice) -> Tensor:
        """Returns the logits `[R, V]` in at least fp32, in memory that all chunks share."""
        product = self._bare_product(rows)
        size = product.shape
        if product.dtype == self.dtype:
            return product
        if self._wide is None:
            self._wide = self.hidden_states.new_empty(size, dtype=self.dtype)
        return self._wide[: size[0]].copy_(product)

    def narrow(self, gradient: Tensor) -> Tensor:
        """Returns a chunk's gradient in the dtype of the products; its logits are overwritten."""
        if self._buffer is None or gradient.dtype == self._buffer.dtype:
            return gradient
        return self._buffer[: len(gradient)].copy_(gradient)

    def _cap(self, logits: Tensor, *, wants_slope: bool) -> Tensor | None:
        """Caps, divides and masks the logits in place; returns the cap's derivative if wanted."""
        slope = None
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_()
            slope = 1 - logits.square() if wants_slope else None
            logits *= self.softcap
        if self.temperature != 1:
            logits /= self.temperature
        if self.impossible is not None:
            logits.index_fill_(1, self.impossible, -math.inf)
        return slope


class _Gradients:
    """Gradients of hidden states and output matrix, whichever are needed; the matrix's is summed in fp32."""

    def __init__(self, hidden_states: Tensor, weight: Tensor, needed: tuple[bool, ...]) -> None:
        self.dtype = weight.dtype
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        self.hidden_states = torch.empty_like(hidden_states) if needed[0] else None
        self.weight = torch.zeros_like(weight, dtype=wide) if needed[1] else None

    def add(self, rows: slice, gradient: Tensor, logits: _Logits) -> None:
        """Adds what follows from a chunk's gradient of the logits `[R, V]`."""
        gradient = logits.narrow(gradient)
        if self.hidden_states is not None:
            torch.mm(gradient, logits.weight, out=self.hidden_states[rows])
        if self.weight is None:
            return
        hidden_states = logits.hidden_states[rows]
        if self.weight.dtype == gradient.dtype:
            self.weight.addmm_(gradient.T, hidden_states)
            return
        parts = zip(torch.split(self.weight, _GRADIENT_ROWS), torch.split(gradient, _GRADIENT_ROWS, dim=1), strict=True)
        for part, columns in parts:
            part.add_(columns.T @ hidden_states)

    def scaled(self, factor: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Returns the gradients times a factor `[1]`, in the dtypes of their tensors."""
        hidden_states, weight = self.hidden_states, self.weight
        if factor is not None and hidden_states is not None:
            is_wide = hidden_states.dtype == factor.dtype
            hidden_states = hidden_states.mul_(factor) if is_wide else (hidden_states * factor).to(hidden_states.dtype)
        if factor is not None and weight is not None:
            weight *= factor
        return hidden_states, None if weight is None else weight.to(self.dtype)
