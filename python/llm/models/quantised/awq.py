"""AWQ's layout of the version "gemm": words of eight outputs, whose codes are interleaved.

Source: AutoAWQ's `WQLinear_GEMM`.
"""

import torch
from torch import Tensor

from llm.models.quantised.codes import CodedTensor, Codes, RowReader, nibbles
from llm.models.quantised.gptq import agreed_grouping
from llm.models.quantised.members import SCALE_TYPES, MemberError, Members, check, check_matrix, need
from llm.models.quantised.scheme import Scheme

LEAVES = ("qweight", "qzeros", "scales")
_CODES = 8
# Output `i` of a word is its code number `_ORDER[i]`, from the lowest bits.
_ORDER = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])


class AwqTensor(CodedTensor):
    """A matrix that AWQ has quantised."""

    bits = 4
    scale_member = "scales"

    def read(self) -> RowReader:
        """Opens the members on disk."""
        return _Rows(*(self.members[name].load() for name in LEAVES))


class _Rows(RowReader):
    def __init__(self, words: Tensor, zeros: Tensor, scales: Tensor) -> None:
        self._words = words
        self._zeros = zeros
        self._scales = scales

    def parameters(self) -> tuple[Tensor, Tensor]:
        return self._scales.t(), _in_order(self._zeros).t()

    def rows(self, span: slice) -> Codes:
        words = slice(span.start // _CODES, span.stop // _CODES)
        codes, zeros = (_in_order(each[:, words]).t().contiguous() for each in (self._words, self._zeros))
        return Codes(codes, self._scales[:, span].t(), zeros, None)


def _in_order(words: Tensor) -> Tensor:
    return nibbles(words).view(len(words), -1, _CODES)[..., _ORDER].flatten(1)


def open_awq(scheme: Scheme, module: str, members: Members) -> AwqTensor:
    """Checks the members of a module and returns its matrix.

    Raises:
        MemberError: A tensor is missing, or has another type or shape than the others and the config say.
    """
    need(members, *LEAVES)
    num_cols, num_words = check_matrix(members, "qweight", ("I32",))
    num_groups, _ = check_matrix(members, "qzeros", ("I32",))
    check(members, "qzeros", ("I32",), (num_groups, num_words))
    check(members, "scales", SCALE_TYPES, (num_groups, num_words * _CODES))
    agreed_grouping(scheme, 4, num_cols, num_groups)
    if num_cols % num_groups:
        raise MemberError(f"has {num_cols} inputs, which are no {num_groups} groups of one size")
    return AwqTensor(f"{module}.weight", (num_words * _CODES, num_cols), "AWQ-4", members)
