"""The layouts of compressed-tensors: packed codes, whole bytes, 8-bit floats and MXFP4.

Source: the package compressed-tensors, whose `decompress` computes the same bits.
"""

import torch
from torch import Tensor

from llm.models.quantised.codes import FLOATS, CodedTensor, Codes, QuantisedTensor, RowReader, unpacked
from llm.models.quantised.gptq import agreed_grouping
from llm.models.quantised.members import SCALE_TYPES, MemberError, Members, check, check_matrix, need
from llm.models.quantised.mxfp4 import MxTensor
from llm.models.quantised.scheme import Grouping, Scheme

LEAVES = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale")
# Scales of activations and of the cache: this package quantises both its own way, or not at all.
UNUSED = (
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "output_zero_point",
    "k_scale",
    "v_scale",
    "k_zero_point",
    "v_zero_point",
    "q_scale",
)
_WORD_BITS = 32
_HIGH_BIT = 0x80


class CompressedTensor(CodedTensor):
    """A matrix of codes, four or eight bits each.

    Attributes:
        grouping: Bits of a code and columns of a group.
        order: Group of each column, None for neighbours.
    """

    scale_member = "weight_scale"

    def __init__(self, module: str, shape: tuple[int, int], members: Members, grouping: Grouping) -> None:
        self.grouping = grouping
        self.bits = grouping.bits
        kind = "packed" if "weight_packed" in members else "int"
        super().__init__(f"{module}.weight", shape, f"compressed-{kind}-{grouping.bits}", members)

    def read(self) -> RowReader:
        """Opens the members on disk."""
        return _Rows(self)


class _Rows(RowReader):
    def __init__(self, tensor: CompressedTensor) -> None:
        members, (num_rows, num_cols) = tensor.members, tensor.shape
        self._bits = tensor.bits
        self._num_cols = num_cols
        self._is_packed = "weight_packed" in members
        self._codes = members["weight_packed" if self._is_packed else "weight"].load()
        scales = members["weight_scale"].load()
        self._scales = scales.reshape(-1, scales.shape[-1] if scales.dim() == 2 else 1).expand(num_rows, -1)
        self._zeros = self._read_zeros(members)
        size = min(tensor.grouping.group_size or num_cols, num_cols)
        order = _order(members)
        self.groups = None if order is None else tensor.groups(order, self._scales.shape[1], size)

    def _read_zeros(self, members: Members) -> Tensor:
        middle = 1 << (self._bits - 1)
        if "weight_zero_point" not in members:
            return torch.full((1, 1), middle, dtype=torch.uint8).expand(self._scales.shape)
        stored = members["weight_zero_point"].load()
        if stored.dtype == torch.int32:  # packed along the outputs
            return unpacked(stored.t(), self._bits).t()[: len(self._scales)]
        return (stored.reshape(-1, self._scales.shape[1]).view(torch.uint8) ^ _HIGH_BIT).expand(self._scales.shape)

    def parameters(self) -> tuple[Tensor, Tensor]:
        return self._scales, self._zeros

    def rows(self, span: slice) -> Codes:
        stored = self._codes[span]
        if self._is_packed:
            codes = unpacked(stored, self._bits)[:, : self._num_cols].contiguous()
        else:
            codes = stored.view(torch.uint8) ^ _HIGH_BIT
        return Codes(codes, self._scales[span], self._zeros[span], self.groups)


def _order(members: Members) -> Tensor | None:
    """Returns the stored groups of columns; files without an order may hold -1 throughout."""
    stored = members["weight_g_idx"].load() if "weight_g_idx" in members else None
    return None if stored is None or bool((stored == -1).all()) else stored


class Float8Tensor(QuantisedTensor):
    """A matrix of 8-bit floats with a scale per row or one in all."""

    def load(self, dtype: torch.dtype | None = None) -> Tensor:
        """Reads the values; see `QuantisedTensor.load`."""
        scales = self.members["weight_scale"].load()
        scales = scales.reshape(-1, 1) if scales.numel() > 1 else scales.reshape(())
        values = self.members["weight"].load().to(scales.dtype) * scales
        return values.to(dtype or values.dtype)


def open_compressed(scheme: Scheme, module: str, members: Members) -> QuantisedTensor:
    """Checks the members of a module and returns its matrix.

    Raises:
        MemberError: A tensor is missing, or has another type or shape than the others and the config say.
    """
    if "weight_global_scale" in members:
        raise MemberError("is quantized in NVFP4, which this package does not read")
    if "weight_packed" not in members:
        return _open_bytes(scheme, module, members)
    need(members, "weight_packed", "weight_scale")
    if "weight" in members:
        raise MemberError("is there twice, as weight_packed and as weight")
    if members["weight_packed"].type_name == "U8":
        return _open_mxfp4(module, members)
    num_rows, num_words = check_matrix(members, "weight_packed", ("I32",))
    need(members, "weight_shape")
    check(members, "weight_shape", ("I64", "I32"), (2,))
    shape = tuple(int(size) for size in members["weight_shape"].load())
    bits = next((bits for bits in (4, 8) if num_words == -(-shape[1] * bits // _WORD_BITS)), None)
    if shape[0] != num_rows or shape[1] < 1 or bits is None:
        raise MemberError(f"has weight_shape {list(shape)} for weight_packed of {num_rows} × {num_words} words")
    grouping = _grouping(scheme, bits, (num_rows, shape[1]), members)
    if "weight_zero_point" in members:
        words = -(-num_rows * bits // _WORD_BITS)
        check(members, "weight_zero_point", ("I32",), (words, _num_groups(members)))
    return CompressedTensor(module, (num_rows, shape[1]), members, grouping)


def _open_bytes(scheme: Scheme, module: str, members: Members) -> QuantisedTensor:
    need(members, "weight", "weight_scale")
    shape = check_matrix(members, "weight", ("I8", "F8_E4M3"))
    grouping = _grouping(scheme, 8, shape, members)
    if members["weight"].type_name == "I8":
        if "weight_zero_point" in members:
            check(members, "weight_zero_point", ("I8",), members["weight_scale"].shape)
        return CompressedTensor(module, shape, members, grouping)
    if _num_groups(members) > 1 or "weight_zero_point" in members:
        raise MemberError("has 8-bit floats in groups or with zero points, which this package does not read")
    return Float8Tensor(f"{module}.weight", shape, "compressed-float-8", members)


def _open_mxfp4(module: str, members: Members) -> QuantisedTensor:
    num_rows, num_bytes = check_matrix(members, "weight_packed", ("U8",))
    check(members, "weight_scale", ("U8",), (num_rows, num_bytes // 16))
    if num_bytes % 16:
        raise MemberError(f"has {2 * num_bytes} inputs, which are no whole blocks of 32")
    return MxTensor(f"{module}.weight", (num_rows, 2 * num_bytes), members, ("weight_packed", "weight_scale"))


def _num_groups(members: Members) -> int:
    shape = members["weight_scale"].shape
    return shape[1] if len(shape) == 2 else 1


def _grouping(scheme: Scheme, bits: int, shape: tuple[int, int], members: Members) -> Grouping:
    """Returns how the matrix is grouped, after a check of its scales and of the order of its columns."""
    scale, (num_rows, num_cols) = members["weight_scale"], shape
    num_groups = _num_groups(members)
    allowed = ([num_rows, num_groups], [num_rows], [1], [1, 1], []) if num_groups == 1 else ([num_rows, num_groups],)
    if list(scale.shape) not in allowed or scale.type_name not in SCALE_TYPES or num_groups == 0:
        raise MemberError(
            f"has weight_scale {list(scale.shape)} ({scale.type_name}), which must be {' or '.join(FLOATS)} with a "
            f"row for each of {num_rows} outputs"
        )
    grouping = agreed_grouping(scheme, bits, num_cols, num_groups)
    if "weight_g_idx" in members:
        check(members, "weight_g_idx", ("I32", "I64"), (num_cols,))
    elif num_cols % num_groups:
        raise MemberError(f"has {num_cols} inputs, which are no {num_groups} groups of one size")
    return grouping
