"""GPTQ's layout: words of codes along the inputs, words of zero points along the outputs, groups by index.

Source: AutoGPTQ's `QuantLinear`, as GPTQModel reads it. In its first format, zero points are stored less one, word by
word, so that a code of 0 borrows from the next; `gptq_v2` stores them as they are.
"""

from torch import Tensor

from llm.models.quantised.codes import CodedTensor, Codes, RowReader, neighbours, unpacked
from llm.models.quantised.members import SCALE_TYPES, MemberError, Members, check, check_matrix, need
from llm.models.quantised.scheme import Grouping, Scheme

LEAVES = ("qweight", "qzeros", "scales", "g_idx")
_WORD_BITS = 32
_ONES = {4: 0x11111111, 8: 0x01010101}


class GptqTensor(CodedTensor):
    """A matrix that GPTQ has quantised.

    Attributes:
        bits: Bits of a code.
        group_size: Columns of a group in a matrix without `g_idx`.
        adds_one: Whether zero points are stored less one.
    """

    scale_member = "scales"

    def __init__(self, module: str, members: Members, grouping: Grouping, *, adds_one: bool) -> None:
        self.bits = grouping.bits
        num_cols = members["qweight"].shape[0] * (_WORD_BITS // self.bits)
        self.group_size = min(grouping.group_size or num_cols, num_cols)
        self.adds_one = adds_one
        shape = (members["qweight"].shape[1], num_cols)
        super().__init__(f"{module}.weight", shape, f"GPTQ-{self.bits}", members)

    def read(self) -> RowReader:
        """Opens the members on disk."""
        scales, num_cols = self.members["scales"].load(), self.shape[1]
        stored = self.members["g_idx"].load() if "g_idx" in self.members else neighbours(num_cols, self.group_size)
        zeros = self.members["qzeros"].load()
        if self.adds_one:
            zeros = zeros + _ONES[self.bits]
        groups = self.groups(stored, len(scales), self.group_size)
        return _Rows(self.members["qweight"].load(), zeros, scales, groups, self.bits)


class _Rows(RowReader):
    def __init__(self, words: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor | None, bits: int) -> None:
        self._words = words
        self._zeros = unpacked(zeros, bits)
        self._scales = scales
        self.groups = groups
        self._bits = bits

    def parameters(self) -> tuple[Tensor, Tensor]:
        return self._scales.t(), self._zeros[:, : self._scales.shape[1]].t()

    def rows(self, span: slice) -> Codes:
        codes = unpacked(self._words[:, span].t(), self._bits)
        scales, zeros = self._scales[:, span].t(), self._zeros[:, span].t()
        return Codes(codes, scales, zeros, self.groups)


def open_gptq(scheme: Scheme, module: str, members: Members) -> GptqTensor:
    """Checks the members of a module and returns its matrix.

    Raises:
        MemberError: A tensor is missing, or has another type or shape than the others and the config say.
    """
    need(members, "qweight", "qzeros", "scales")
    num_words, num_rows = check_matrix(members, "qweight", ("I32",))
    num_groups, zero_words = check_matrix(members, "qzeros", ("I32",))
    bits = next((bits for bits in _ONES if zero_words == -(-num_rows * bits // _WORD_BITS)), None)
    if bits is None:
        raise MemberError(f"has {zero_words} words of zero points for {num_rows} outputs, which are not 4 or 8 bits")
    check(members, "scales", SCALE_TYPES, (num_groups, num_rows))
    num_cols = num_words * (_WORD_BITS // bits)
    if "g_idx" in members:
        check(members, "g_idx", ("I32", "I64"), (num_cols,))
    return GptqTensor(module, members, agreed_grouping(scheme, bits, num_cols, num_groups), adds_one=scheme.adds_one)


def agreed_grouping(scheme: Scheme, bits: int, num_cols: int, num_groups: int) -> Grouping:
    """Returns how the tensors of a module are grouped, which the config must allow.

    Raises:
        MemberError: The config says otherwise.
    """
    size = None if num_groups == 1 else -(-num_cols // num_groups)
    for allowed in scheme.groupings:
        groups = 1 if allowed.group_size is None else -(-num_cols // allowed.group_size)
        if allowed.bits == bits and groups == num_groups:
            return allowed
    if scheme.groupings or (size is not None and -(-num_cols // size) != num_groups):
        said = " or ".join(f"{each.bits} bits in groups of {each.group_size or -1}" for each in scheme.groupings)
        raise MemberError(
            f"has {num_groups} groups of {bits} bits for {num_cols} inputs, config.json says {said or 'nothing'}"
        )
    return Grouping(bits, size)
