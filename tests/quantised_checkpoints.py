"""Checkpoints whose matrices are rounded to the nearest code and stored in each format, beside plain twins.

Codes are packed one at a time, by the words of each format's definition.
"""

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm._rust import CpuModel
from llm.checkpoint import write_model
from llm.inference.kv_cache import KVCache
from llm.inference.runners.base import Step
from llm.inference.runners.cpu_weights import kernel_weights
from llm.models import DecoderModel
from llm.settings.model import ModelConfig
from llm.tokenization import BaseTokenizer

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Codes = NDArray[np.int64]


class Rounded(NamedTuple):
    """A matrix rounded to codes: value = (code - zero) · scale.

    Attributes:
        codes: `[rows, columns]`, from 0.
        scales: `[rows, groups]`.
        zeros: `[rows, groups]`, from 0.
        groups: Group of each column, `[columns]`.
    """

    codes: Codes
    scales: Tensor
    zeros: Codes
    groups: Codes

    def values(self) -> Tensor:
        """Returns what the definition says, in the type of the scales."""
        steps = torch.from_numpy(self.codes - self.zeros[:, self.groups]).to(self.scales.dtype)
        return steps * self.scales[:, torch.from_numpy(self.groups)]


class Format(NamedTuple):
    """A way to store rounded matrices.

    Attributes:
        config: `quantization_config`.
        store: Returns the tensors of a module by leaf.
        bits: Bits of a code.
        group: Columns of a group; 0 for whole rows.
        is_symmetric: Whether the zero point is the middle code.
        is_ordered: Whether groups are neighbouring columns.
        scale_dtype: Type of the scales.
    """

    config: dict[str, Any]
    store: Callable[[Rounded, "Format"], dict[str, Tensor]]
    bits: int = 4
    group: int = 32
    is_symmetric: bool = False
    is_ordered: bool = True
    scale_dtype: torch.dtype = torch.float16


def rounded(weight: Tensor, form: Format, seed: int = 0) -> Rounded:
    """Rounds a matrix to the nearest codes of its groups."""
    rows, cols = weight.shape
    size = form.group or cols
    groups = np.arange(cols) // size
    if not form.is_ordered:
        groups = np.random.default_rng(seed).permutation(groups)
    top = (1 << form.bits) - 1
    number = int(groups.max()) + 1
    scales, zeros = torch.empty(rows, number), np.empty((rows, number), np.int64)
    for group in range(number):
        part = weight[:, torch.from_numpy(groups == group)].float()
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if form.is_symmetric:
            scales[:, group] = torch.maximum(-low, high) / (top / 2)
            zeros[:, group] = 1 << (form.bits - 1)
        else:
            scales[:, group] = (high - low) / top
            zeros[:, group] = torch.round(-low / scales[:, group]).clamp(1, top).numpy()
    kept = scales.to(form.scale_dtype)
    steps = torch.round(weight.float() / kept.float()[:, torch.from_numpy(groups)]).numpy().astype(np.int64)
    return Rounded(np.clip(steps + zeros[:, groups], 0, top), kept, zeros, groups)


def words(codes: Codes, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Packs rows of codes into 32-bit words, the first code lowest; the last word is filled up with zeros."""
    each = 32 // bits
    rows, cols = codes.shape
    packed = np.zeros((rows, -(-cols // each)), np.uint32)
    for col in range(cols):
        place = col % each if order is None else order.index(col % each)
        packed[:, col // each] |= codes[:, col].astype(np.uint32) << np.uint32(bits * place)
    return torch.from_numpy(packed.view(np.int32).copy())


def store_gptq(matrix: Rounded, form: Format) -> dict[str, Tensor]:
    """GPTQ: words along the inputs; its first format stores zero points less one."""
    less = 0 if form.config.get("checkpoint_format") == "gptq_v2" else 1
    return {
        "qweight": words(matrix.codes, form.bits).t().contiguous(),
        "qzeros": words((matrix.zeros - less).T, form.bits),
        "scales": matrix.scales.t().contiguous(),
        "g_idx": torch.from_numpy(matrix.groups).to(torch.int32),
    }


def store_awq(matrix: Rounded, form: Format) -> dict[str, Tensor]:
    """AWQ: words along the outputs, eight interleaved codes each."""
    return {
        "qweight": words(matrix.codes.T, 4, AWQ_ORDER),
        "qzeros": words(matrix.zeros.T, 4, AWQ_ORDER),
        "scales": matrix.scales.t().contiguous(),
    }


def store_packed(matrix: Rounded, form: Format) -> dict[str, Tensor]:
    """compressed-tensors' `pack-quantized`."""
    found = {
        "weight_packed": words(matrix.codes, form.bits),
        "weight_scale": matrix.scales,
        "weight_shape": torch.tensor(matrix.codes.shape),
    }
    if not form.is_symmetric:
        found["weight_zero_point"] = words(matrix.zeros.T, form.bits).t().contiguous()
    if not form.is_ordered:
        found["weight_g_idx"] = torch.from_numpy(matrix.groups).to(torch.int32)
    return found


def store_bytes(matrix: Rounded, form: Format) -> dict[str, Tensor]:
    """compressed-tensors' `int-quantized`."""
    found = {
        "weight": torch.from_numpy((matrix.codes - 128).astype(np.int8)),
        "weight_scale": matrix.scales,
    }
    if not form.is_symmetric:
        found["weight_zero_point"] = torch.from_numpy((matrix.zeros - 128).astype(np.int8))
    return found


def gptq(bits: int = 4, group: int = 32, *, version: int = 1, act_order: bool = False, sym: bool = False) -> Format:
    """Returns a format of GPTQ."""
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group or -1,
        "desc_act": act_order,
        "sym": sym,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }
    return Format(config, store_gptq, bits, group, sym, is_ordered=not act_order)


def awq(group: int = 32) -> Format:
    """Returns a format of AWQ."""
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    return Format(config | {"modules_to_not_convert": ["lm_head"]}, store_awq, 4, group)


def compressed(
    bits: int = 4,
    group: int = 32,
    *,
    sym: bool = True,
    act_order: bool = False,
    form: str = "pack-quantized",
    dtype: torch.dtype = torch.bfloat16,
) -> Format:
    """Returns a format of compressed-tensors."""
    weights = {"num_bits": bits, "type": "int", "symmetric": sym, "strategy": "group" if group else "channel"}
    if group:
        weights["group_size"] = group
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": inputs if form[0] == "i" else None}
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head", "re:.*nothing.*"],
    }
    store = store_packed if form == "pack-quantized" else store_bytes
    return Format(config, store, bits, group, sym, not act_order, dtype)


FORMATS: dict[str, Format] = {
    "gptq": gptq(),
    "gptq v2": gptq(version=2, group=64),
    "gptq sym": gptq(sym=True, group=128),
    "gptq act-order": gptq(act_order=True),
    "gptq channel": gptq(group=0),
    "gptq 8 bits": gptq(bits=8, group=64),
    "gptq 8 bits act-order": gptq(bits=8, act_order=True, version=2),
    "awq": awq(),
    "awq 128": awq(128),
    "w4a16": compressed(group=128),
    "w4a16 asymmetric": compressed(sym=False, dtype=torch.float16),
    "w4a16 channel": compressed(group=0, sym=False),
    "w4a16 act-order": compressed(act_order=True),
    "w8a16 packed": compressed(bits=8, group=64, sym=False),
    "w8a8": compressed(bits=8, group=0, form="int-quantized"),
    "w8a16": compressed(bits=8, group=0, sym=False, form="naive-quantized", dtype=torch.float32),
}


def write_pair(directory: Path, form: Format, tokenizer: BaseTokenizer | None = None, **changes: Any) -> None:
    """Writes a seeded model twice: as `directory / "quantised"` and, with the values it stands for, as `"plain"`."""
    base = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 64}
    vocab = tokenizer.vocab_size if tokenizer else 96
    config = ModelConfig(**base | {"vocab_size": vocab, "initializer_range": 0.15} | changes)
    torch.manual_seed(7)
    plain, quantised = directory / "plain", directory / "quantised"
    plain.mkdir(parents=True)
    write_model(plain, DecoderModel(config), tokenizer)
    values = write_quantised(plain, quantised, form)
    save_file(load_file(plain / "model.safetensors") | values, plain / "model.safetensors")


def write_quantised(plain: Path, quantised: Path, form: Format) -> dict[str, Tensor]:
    """Writes a directory whose projections are those of `plain`, rounded, and returns what they then stand for."""
    values: dict[str, Tensor] = {}
    stored: dict[str, Tensor] = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if not name.endswith("proj.weight"):
            stored[name] = tensor
            continue
        # Matrices of the same inputs share an order of columns, as in files that GPTQ writes.
        inputs = re.sub(r"\b[kv]_proj", "q_proj", name).replace("up_proj", "gate_proj")
        matrix = rounded(tensor, form, zlib.crc32(inputs.encode()))
        module = name.removesuffix("weight")
        stored |= {module + leaf: part.contiguous() for leaf, part in form.store(matrix, form).items()}
        values[name] = matrix.values().to(torch.float32)
    quantised.mkdir()
    for file in plain.iterdir():
        (quantised / file.name).write_bytes(file.read_bytes())
    save_file(stored, quantised / "model.safetensors", metadata={"format": "pt"})
    change_config(quantised, quantization_config=form.config)
    return values


def change_config(directory: Path, **values: Any) -> None:
    """Changes values of a `config.json`."""
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def logits_of_kernels(model: DecoderModel, ids: Tensor) -> Tensor:
    """Returns the logits of all tokens of one sequence, at most 64, by the CPU kernels on two threads."""
    cache = KVCache.allocate(model.config, 4, 16, torch.float32, torch.device("cpu"))
    kernels = CpuModel(kernel_weights(model), list(cache.keys), list(cache.values), num_threads=2)
    step = Step.of([(0, len(ids))], np.arange(4, dtype=np.int32)[None], ids.numpy(), 16)
    arrays = (step.token_ids, step.positions, step.slot_mapping, step.query_start, step.block_tables)
    logits = np.empty((len(ids), model.config.vocab_size), np.float32)
    kernels.run(*arrays, np.arange(len(ids)), logits)
    return torch.from_numpy(logits)
