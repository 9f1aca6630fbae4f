"""Quantised Hugging Face directories: every format's values, what config and tensors say, and bad files."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm import LLM, DecoderModel
from llm.checkpoint import Checkpoint, write_model
from llm.errors import CheckpointError, LLMError
from llm.info import describe
from llm.models.context import ForwardContext, positions_of
from llm.models.layers.packed import PackedLinear, packed_matrices
from llm.models.quantised import joined, scheme_of
from llm.models.quantised.scheme import Scheme
from llm.models.tensor_files import TensorFiles
from llm.settings.engine import EngineConfig
from llm.settings.model import ExpertsConfig, ModelConfig
from llm.settings.sampling import SamplingParams
from llm.tokenization import BPETokenizer
from tests.quantised_checkpoints import FORMATS, change_config, compressed, gptq, logits_of_kernels, write_pair

Q_PROJ = "model.layers.0.self_attn.q_proj"

# What each format is packed in, if it is.
PACKED: dict[str, str | None] = {
    "gptq": "Z4",
    "gptq sym": "Q4_0",
    "gptq act-order": "Z4",
    "gptq channel": "Z4",
    "gptq 8 bits": "Z8",
    "gptq 8 bits act-order": "Z8",
    "w4a16 act-order": "Q4_0",
    "awq 128": "Z4",
    "w4a16": "Q4_0",
    "w4a16 channel": "Z4",
    "w8a16 packed": "Z8",
    "w8a8": "Q8_0",
    "w8a16": None,
}


def load(directory: Path) -> dict[str, Tensor]:
    return Checkpoint(directory).model("float32").state_dict()


def error_of(directory: Path, *, keep_packed: bool) -> str | None:
    try:
        Checkpoint(directory).model("float32", keep_packed=keep_packed)
    except LLMError as error:
        return str(error)
    return None


def message_of(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(directory)
    return str(caught.value)


def change(directory: Path, **changes: Tensor | None) -> None:
    """Replaces or removes tensors of the first query projection."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    for leaf, tensor in changes.items():
        if tensor is None:
            del tensors[f"{Q_PROJ}.{leaf}"]
        else:
            tensors[f"{Q_PROJ}.{leaf}"] = tensor
    save_file(tensors, file)


@pytest.mark.parametrize("name", FORMATS)
def test_values_are_those_of_the_definition(tmp_path: Path, name: str) -> None:
    write_pair(tmp_path, FORMATS[name])
    wanted, found = load(tmp_path / "plain"), load(tmp_path / "quantised")
    assert wanted.keys() == found.keys()
    for key, tensor in wanted.items():
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("name", ["gptq act-order", "awq", "w8a8"])
def test_answers_are_those_of_the_unpacked_model(tmp_path: Path, tiny_tokenizer: BPETokenizer, name: str) -> None:
    write_pair(tmp_path, FORMATS[name], tiny_tokenizer, tie_word_embeddings=name == "awq")
    params, config = SamplingParams(max_tokens=12, temperature=0), EngineConfig(packed_weights=False)
    texts = [
        LLM(tmp_path / which, dtype="float32", config=config).generate("To be", params).text
        for which in ("plain", "quantised")
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("name", "scheme"), PACKED.items())
def test_packed_values_and_products_are_those_of_the_definition(tmp_path: Path, name: str, scheme: str | None) -> None:
    write_pair(tmp_path, FORMATS[name], initializer_range=0.05)
    checkpoint, kind = Checkpoint(tmp_path / "quantised"), FORMATS[name].scale_dtype
    packed, plain = checkpoint.model("float32", keep_packed=True), checkpoint.model("float32")
    assert isinstance(packed, DecoderModel)
    assert isinstance(plain, DecoderModel)
    matrices = {path: layer for path, layer in packed.named_modules() if isinstance(layer, PackedLinear)}
    assert [matrix.matrix.schemes for matrix in matrices.values()] == ([(scheme,)] * 8 if scheme else [])
    for path, layer in matrices.items():
        assert torch.equal(layer.weight.to(kind), plain.get_parameter(f"{path}.weight").to(kind))
    ids = torch.arange(40)
    with torch.no_grad():
        wanted = plain(ids, positions_of((40,)), ForwardContext.for_sequences((40,)))
    error = (logits_of_kernels(packed, ids) - wanted).abs().max() / wanted.abs().max()
    assert float(error) <= 0.03


def test_a_scale_that_half_precision_cannot_hold_is_expanded(tmp_path: Path) -> None:
    write_pair(tmp_path, FORMATS["w4a16"], num_hidden_layers=1)
    scales = load_file(tmp_path / "quantised" / "model.safetensors")[f"{Q_PROJ}.weight_scale"]
    change(tmp_path / "quantised", weight_scale=scales * 2**-20)
    packed = Checkpoint(tmp_path / "quantised").model("float32", keep_packed=True)
    assert packed.get_parameter("layers.0.attention.qkv_proj.weight").shape == (256, 128)
    assert len(packed_matrices(packed)) == 3


def test_info_names_scheme_and_bits_and_what_stays_packed(tmp_path: Path) -> None:
    write_pair(tmp_path, FORMATS["awq"])
    facts = describe(tmp_path / "quantised")
    # Codes of half a byte, zero points and half-precision scales for every 32 columns; embeddings and norms in fp32.
    coded, plain = 294_912, 96 * 128 + 5 * 128
    bits = 8 * (coded * (0.5 + 2.5 / 32) + 4 * plain) / (coded + plain)
    assert facts["stored"] == f"AWQ-4 95.8 %, F32 4.2 %: {bits:.3g} bits a weight, 0.2 MiB"
    assert facts["weights a step"].startswith("0.2 MiB: AWQ-4 packed; 1.2 MiB with")
    write_pair(tmp_path / "ordered", FORMATS["gptq act-order"])
    assert describe(tmp_path / "ordered" / "quantised")["weights a step"].startswith("0.2 MiB: GPTQ-4 packed")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_directories_open_or_say_why(mutable: tuple[Path, dict[str, bytes]], data: st.DataObject) -> None:
    directory, files = mutable
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 4))):
        # Headers and config matter most.
        place = data.draw(st.integers(0, min(len(content), 6000) - 1))
        content[place : place + data.draw(st.integers(1, 3))] = data.draw(st.binary(max_size=4))
    file = directory / name.partition(" ")[0] / name.partition(" ")[2]
    file.write_bytes(bytes(content))
    try:
        message = error_of(file.parent, keep_packed=data.draw(st.booleans()))
    finally:
        file.write_bytes(files[name])
    assert message is None or 0 < len(message) < 20_000


def test_a_first_format_borrows_between_zero_points(tmp_path: Path) -> None:
    # A zero point of 0 is stored as 15 and borrows from the next, so adding one to a word carries it back.
    write_pair(tmp_path, gptq())
    file = tmp_path / "quantised" / "model.safetensors"
    zeros = load_file(file)[f"{Q_PROJ}.qzeros"]
    change(tmp_path / "quantised", qzeros=torch.full_like(zeros, -0x11111111))  # every zero point is 0
    weight = load(tmp_path / "quantised")["layers.0.attention.qkv_proj.weight"][:128]
    assert bool((weight >= 0).all())
    assert bool((weight > 0).any())


def test_mxfp4_experts_are_those_of_the_specification(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (2, 6, 3, 16), dtype=torch.uint8)
    scales = torch.randint(100, 140, (2, 6, 3), dtype=torch.uint8)
    save_file({"experts.down_proj_blocks": blocks, "experts.down_proj_scales": scales}, tmp_path / "model.safetensors")
    found = joined(Scheme("mxfp4"), TensorFiles(tmp_path))["experts.down_proj"]
    values = found.load(torch.float32)
    assert values.shape == (2, 96, 6)
    magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    for expert, row, col in [(0, 0, 0), (0, 5, 95), (1, 3, 33), (1, 2, 64)]:
        byte = int(blocks[expert, row, col // 32, col % 32 // 2])
        code = byte >> 4 if col % 2 else byte & 15
        wanted = math.ldexp(magnitudes[code & 7], int(scales[expert, row, col // 32]) - 127)
        assert float(values[expert, col, row]) == (-wanted if code & 8 else wanted)


def test_packed_mxfp4_is_that_of_the_specification(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (6, 48), dtype=torch.uint8)
    scales = torch.randint(100, 140, (6, 3), dtype=torch.uint8)
    save_file({"up.weight_packed": blocks, "up.weight_scale": scales}, tmp_path / "model.safetensors")
    values = joined(Scheme("compressed-tensors"), TensorFiles(tmp_path))["up.weight"].load(torch.float32)
    assert values.shape == (6, 96)
    magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    for row, col in [(0, 0), (5, 95), (3, 33), (2, 64)]:
        code = int(blocks[row, col // 2]) >> 4 * (col % 2) & 15
        wanted = math.ldexp(magnitudes[code & 7], int(scales[row, col // 32]) - 127)
        assert float(values[row, col]) == (-wanted if code & 8 else wanted)


def test_mxfp4_experts_stay_packed(tmp_path: Path, tiny_tokenizer: BPETokenizer) -> None:
    directory, config = tmp_path / "quantised", gpt_oss()
    write_mxfp4(directory, config, tiny_tokenizer)
    packed, plain = (Checkpoint(directory).model("float32", keep_packed=keep) for keep in (True, False))
    assert isinstance(packed, DecoderModel)
    assert isinstance(plain, DecoderModel)
    assert [matrix.schemes for matrix in packed_matrices(packed)] == [("MXFP4",)] * 8
    for layer, other in zip(packed.layers, plain.layers, strict=True):
        for stack in ("gate_up_proj", "down_proj"):
            values = torch.stack([matrix.values(torch.float32) for matrix in layer.mlp.experts.stacks[stack]])
            assert torch.equal(values, other.get_parameter(f"mlp.experts.{stack}"))
    ids = torch.arange(40) * 7
    with torch.no_grad():
        context = ForwardContext.for_sequences((40,))
        wanted = plain(ids, positions_of((40,)), context)
        assert torch.equal(packed(ids, positions_of((40,)), context), wanted)
    assert float((logits_of_kernels(packed, ids) - wanted).abs().max() / wanted.abs().max()) <= 0.03
    assert "MXFP4 packed" in describe(directory)["weights a step"]
    one = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    assert len(LLM(directory, config=EngineConfig(packed_weights=True)).generate("a cat", one).token_ids) == 6


def test_mxfp4_scales_that_half_precision_cannot_hold_are_expanded(
    tmp_path: Path, tiny_tokenizer: BPETokenizer
) -> None:
    write_mxfp4(tmp_path, gpt_oss(), tiny_tokenizer, exponents=(90, 150))
    assert not packed_matrices(Checkpoint(tmp_path).model("float32", keep_packed=True))


def gpt_oss() -> ModelConfig:
    experts = ExpertsConfig(
        num_experts=2, num_experts_per_tok=1, moe_intermediate_size=64, swiglu_limit=7.0, bias=True, softmax_first=False
    )
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1}
    shape = {"attention_sinks": True, "attention_bias": True, "attention_output_bias": True, "mlp": "moe"}
    layers = {"sliding_window": 4, "layer_types": ("sliding_attention", "full_attention"), "hidden_act": "silu"}
    return ModelConfig(vocab_size=384, intermediate_size=64, experts=experts, **sizes, **shape, **layers)


def write_mxfp4(
    directory: Path, config: ModelConfig, tokenizer: BPETokenizer, exponents: tuple[int, int] = (118, 123)
) -> None:
    """Writes a model whose experts are random blocks of MXFP4, as gpt-oss stores them."""
    torch.manual_seed(0)
    directory.mkdir(exist_ok=True)
    write_model(directory, DecoderModel(config), tokenizer)
    change_config(directory, quantization_config={"quant_method": "mxfp4"})
    file = directory / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        num_experts, inputs, outputs = tensors.pop(name).shape
        shape = (num_experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(*exponents, shape, dtype=torch.uint8)
    save_file(tensors, file)


def test_eight_bit_floats_are_scaled(tmp_path: Path) -> None:
    write_pair(tmp_path, compressed(8, 0, form="int-quantized"))
    values = torch.linspace(-2, 2, 128 * 128).view(128, 128).to(torch.float8_e4m3fn)
    scales = torch.linspace(0.5, 1.5, 128, dtype=torch.bfloat16).view(128, 1)
    change(tmp_path / "quantised", weight=values, weight_scale=scales)
    found = load(tmp_path / "quantised")["layers.0.attention.qkv_proj.weight"][:128]
    assert torch.equal(found, (values.to(torch.bfloat16) * scales).float())


def test_zeros_stored_as_a_bias_are_not_the_models(tmp_path: Path) -> None:
    write_pair(tmp_path, gptq())
    change(tmp_path / "quantised", bias=torch.zeros(128))
    wanted, found = load(tmp_path / "plain"), load(tmp_path / "quantised")
    assert wanted.keys() == found.keys()
    change(tmp_path / "quantised", bias=torch.ones(128))
    assert f"unexpected {Q_PROJ}.bias [128]" in message_of(tmp_path / "quantised")


@pytest.fixture(scope="module")
def mutable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Directories of several formats in one, and the files that tests change, as `directory file`."""
    root, files = tmp_path_factory.mktemp("mutable"), {}
    for number, name in enumerate(("gptq act-order", "awq", "w4a16 asymmetric", "w8a8")):
        write_pair(root / str(number), FORMATS[name], num_hidden_layers=1, intermediate_size=128)
        (root / str(number) / "quantised").rename(root / f"q{number}")
        for file in ("config.json", "model.safetensors"):
            files[f"q{number} {file}"] = (root / f"q{number}" / file).read_bytes()
    return root, files


def nan_at_one(tensor: Tensor) -> Tensor:
    tensor.view(-1)[5] = math.nan
    return tensor


BROKEN: dict[str, tuple[str, str, Callable[[Tensor], Tensor | None], str]] = {
    "no scales": ("gptq", "scales", lambda old: None, "lacks scales"),
    "codes of another width": ("gptq", "qweight", lambda old: old.long(), "qweight of type I64, which must be I32"),
    "codes no matrix": (
        "gptq",
        "qweight",
        lambda old: old.flatten(),
        "qweight of shape [2048], which must be a matrix",
    ),
    "fewer scales": ("gptq", "scales", lambda old: old[:2].clone(), "scales of shape [2, 128], which must be [4, 128]"),
    "scales that are whole": ("awq", "scales", lambda old: old.int(), "scales of type I32"),
    "zero points cut": ("gptq", "qzeros", lambda old: old[:, :5].clone(), "5 words of zero points for 128 outputs"),
    "short order": ("gptq act-order", "g_idx", lambda old: old[:100].clone(), "g_idx of shape [100]"),
    "order too high": ("gptq act-order", "g_idx", lambda old: old + 1, "columns of group 4; groups must be 0 to 3"),
    "order below": ("gptq act-order", "g_idx", lambda old: old - 1, "columns of group -1"),
    "scale not a number": ("gptq", "scales", nan_at_one, f"NaN or infinity in:\n  {Q_PROJ}.weight"),
    "AWQ of other words": ("awq", "qzeros", lambda old: old[:, :8].clone(), "qzeros of shape [4, 8]"),
    "absurd shape": ("w4a16", "weight_shape", lambda old: old * 2**40, "weight_shape"),
    "negative shape": ("w4a16", "weight_shape", lambda old: -old, "weight_shape [-128, -128]"),
    "no shape": ("w4a16", "weight_shape", lambda old: None, "lacks weight_shape"),
    "scale infinite": ("w8a8", "weight_scale", lambda old: old / 0, f"infinity in:\n  {Q_PROJ}.weight"),
    "scales of other rows": ("w8a8", "weight_scale", lambda old: old[:7].clone(), "weight_scale [7, 1]"),
    "zero points of other groups": (
        "w4a16 asymmetric",
        "weight_zero_point",
        lambda old: old[:, :2].clone(),
        "weight_zero_point of shape [16, 2], which must be [16, 4]",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_tensor_is_named(tmp_path: Path, case: str) -> None:
    name, leaf, broken, said = BROKEN[case]
    write_pair(tmp_path, FORMATS[name], num_hidden_layers=1)
    directory = tmp_path / "quantised"
    old = load_file(directory / "model.safetensors")[f"{Q_PROJ}.{leaf}"]
    change(directory, **{leaf: broken(old)})
    message = message_of(directory)
    assert said in message
    assert Q_PROJ in message


@pytest.mark.parametrize("name", ["gptq", "awq", "w4a16"])
def test_a_group_size_that_the_tensors_contradict_is_refused(tmp_path: Path, name: str) -> None:
    write_pair(tmp_path, FORMATS[name], num_hidden_layers=1)
    config = dict(FORMATS[name].config)
    if "group_size" in config:
        config["group_size"] = 16
    else:
        config["config_groups"] = compressed(group=16).config["config_groups"]
    change_config(tmp_path / "quantised", quantization_config=config)
    assert "4 bits for 128 inputs, config.json says 4 bits in groups of 16" in message_of(tmp_path / "quantised")


def test_groups_that_the_config_sets_by_module_are_read_from_the_tensors(tmp_path: Path) -> None:
    write_pair(tmp_path, gptq(bits=8, group=64), num_hidden_layers=1)
    config = gptq().config | {"dynamic": {"+:.*": {"bits": 8, "group_size": 64}}}
    change_config(tmp_path / "quantised", quantization_config=config)
    wanted, found = load(tmp_path / "plain"), load(tmp_path / "quantised")
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_plain_weights_under_a_quantised_config_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, gptq(), num_hidden_layers=1)
    change_config(tmp_path / "plain", quantization_config=gptq().config)
    assert "no tensor of this scheme is there" in message_of(tmp_path / "plain")


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path, gptq(), num_hidden_layers=1)
    file = tmp_path / "quantised" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "is truncated or not a safetensors file" in message_of(tmp_path / "quantised")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quant_method": "fp8"}, "quantized by fp8"),
        ({"quant_method": ["gptq"]}, "quantized by"),
        ([4], "an unnamed scheme"),
        (
            {"quant_method": "gptq", "bits": 3, "group_size": 128},
            "`quantization_config.bits` must be one of 4, 8, got 3",
        ),
        ({"quant_method": "gptq", "bits": True, "group_size": 128}, "`quantization_config.bits` must be"),
        ({"quant_method": "gptq", "bits": 4.0, "group_size": 128}, "must be one of 4, 8, got 4.0"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "`quantization_config.group_size` must be positive"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 2**70}, "`quantization_config.group_size` must be positive"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "must be one of 'gptq', 'gptq_v2'"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "`quantization_config.version` must be one of 'gemm'"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "`quantization_config.format`"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "must say how weights are quantized"),
        ({"quant_method": "compressed-tensors", "config_groups": [1]}, "has a value of the wrong type"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"strategy": "block"}}}},
            "`config_groups.a.weights.strategy` must be one of",
        ),
    ],
)
def test_schemes_that_are_not_read_are_named(config: Any, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        scheme_of({"quantization_config": config})
    assert said in str(caught.value)
