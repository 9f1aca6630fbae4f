"""Compares dequantised values with those of compressed-tensors and GPTQModel, bit for bit, in their environment.

Every format that the tests know is written with random matrices, read here, and computed by the library that defines
the format.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module
from safetensors.torch import save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from llm.models.quantised import joined, scheme_of
from llm.models.quantised.scheme import Scheme
from llm.models.tensor_files import TensorFiles
from tests.quantised_checkpoints import FORMATS, Format, rounded

SHAPES = ((64, 128), (96, 256), (128, 384), (256, 128), (32, 512))
MATRICES = 50


def theirs(form: Format, stored: Mapping[str, Tensor]) -> Tensor:
    """Computes the values by the library of the format."""
    method = form.config["quant_method"]
    if method == "compressed-tensors":
        return by_compressed_tensors(form.config, stored)
    if method == "awq":
        size = form.group or stored["qweight"].shape[0]
        return dequantize_gemm(stored["qweight"], stored["qzeros"], stored["scales"], 4, size).t()
    return by_gptqmodel(form, stored)


def by_gptqmodel(form: Format, stored: Mapping[str, Tensor]) -> Tensor:
    """Computes GPTQ's values by GPTQModel's layer for PyTorch."""
    rows, cols = stored["scales"].shape[1], len(stored["g_idx"])
    layer = TorchLinear(
        bits=form.bits,
        group_size=form.group or -1,
        sym=form.is_symmetric,
        desc_act=not form.is_ordered,
        in_features=cols,
        out_features=rows,
        bias=False,
        pack_dtype=torch.int32,
        register_buffers=True,
        dtype=torch.float16,
    )
    layer.load_state_dict({key: stored[key].clone() for key in ("qweight", "qzeros", "scales", "g_idx")}, strict=False)
    if form.config["checkpoint_format"] == "gptq":
        convert_gptq_v1_to_v2_format_module(layer, form.bits, torch.int32)
    layer.eval()
    return layer.dequantize_weight().t()


def by_compressed_tensors(config: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Tensor:
    """Computes the values by compressed-tensors."""
    scheme = QuantizationScheme(**config["config_groups"]["group_0"])
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    return compressor.decompress(dict(stored), scheme)["weight"]


def ours(config: Mapping[str, Any], stored: Mapping[str, Tensor], directory: Path) -> Tensor:
    """Writes the tensors of one module and reads its values."""
    save_file(
        {f"layer.{leaf}": tensor.contiguous() for leaf, tensor in stored.items()}, directory / "model.safetensors"
    )
    scheme = scheme_of({"quantization_config": config})
    assert scheme is not None
    return joined(scheme, TensorFiles(directory))["layer.weight"].load()


def compare(name: str, form: Format, directory: Path) -> None:
    """Compares random matrices of one format."""
    for seed in range(MATRICES):
        torch.manual_seed(seed)
        matrix = rounded(torch.randn(SHAPES[seed % len(SHAPES)]) * 0.05, form, seed)
        stored = form.store(matrix, form)
        found, wanted = ours(form.config, stored, directory), theirs(form, stored)
        assert found.dtype == wanted.dtype, f"{name}: {found.dtype} instead of {wanted.dtype}"
        assert torch.equal(found, wanted), f"{name}: values of matrix {seed} differ"
    print(f"{name}: {MATRICES} matrices equal")


def compare_experts(directory: Path) -> None:
    """Compares gpt-oss's experts with those of transformers."""
    for seed in range(MATRICES):
        torch.manual_seed(seed)
        blocks = torch.randint(0, 256, (3, 16, 4, 16), dtype=torch.uint8)
        scales = torch.randint(1, 250, (3, 16, 4), dtype=torch.uint8)
        save_file({"down_blocks": blocks, "down_scales": scales}, directory / "model.safetensors")
        found = joined(Scheme("mxfp4"), TensorFiles(directory))["down"].load()
        assert torch.equal(found, convert_moe_packed_tensors(blocks, scales)), f"MXFP4: experts {seed} differ"
    print(f"mxfp4 experts: {MATRICES} equal")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for title, each in FORMATS.items():
            if title == "w4a16 act-order":  # newer releases of the library no longer read it
                continue
            compare(title, each, Path(temporary))
        compare_experts(Path(temporary))
