"""`quantize`: methods, formats, what is compared, and that nothing half-written stays."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from gguf.quants import quantize as quantize_blocks
from safetensors.torch import load_file
from typer.testing import CliRunner

from llm import LLM, SamplingParams, quantize
from llm.checkpoint import atomic_directory, resolve, write_model
from llm.cli.main import app
from llm.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FileError,
    InvalidArgumentError,
    LLMWarning,
    TokenizerError,
)
from llm.models import DecoderModel
from llm.models.context import ForwardContext, positions_of
from llm.models.gguf import GGUFModel
from llm.models.gguf.k_quants import encode_q4_k, encode_q6_k
from llm.models.hf import weights_to_hf
from llm.models.reward import RewardModel
from llm.quantizing.awq import clipped, scale_block
from llm.quantizing.gptq import gptq
from llm.quantizing.grid import Grid, Grouped, nearest
from llm.quantizing.inputs import Inputs, collecting, matrices
from llm.quantizing.outputs import packed
from llm.settings.engine import EngineConfig
from llm.settings.model import ExpertsConfig, ModelConfig
from llm.tokenization import BPETokenizer, SimpleCharacterTokenizer

Encode = Callable[[torch.Tensor], np.ndarray]
GREEDY = SamplingParams(max_tokens=12, temperature=0.0)
GRID = Grid(4, 32, torch.float32)
SMALL = {"calibration_tokens": 512, "heldout_tokens": 128, "window_tokens": 64, "progress": False}


def correlated_inputs(width: int, num_tokens: int = 512) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(num_tokens, width) @ torch.randn(width, width) / width**0.5


@pytest.mark.parametrize("bits", [4, 8])
def test_nearest_loses_no_more_than_the_scale_of_the_largest_value(bits: int) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(16, 64)
    grid = Grid(bits, 32, torch.bfloat16)
    found = nearest(matrix, grid)
    largest = matrix.view(16, 2, 32).abs().amax(-1, keepdim=True) / grid.high
    plain = (matrix.view(16, 2, 32) / largest).round() * largest
    assert (found.values() - matrix).square().sum() <= (plain.view(16, 64) - matrix).square().sum()
    assert found.codes.min() >= grid.low
    assert found.codes.max() <= grid.high
    assert torch.equal(found.scales, found.scales.bfloat16().float())


def test_nearest_keeps_values_of_a_grid_and_zeros() -> None:
    codes = torch.randint(-8, 8, (4, 64))
    codes[:, ::32] = -8
    matrix = codes * 0.25
    matrix[3] = 0.0
    assert torch.equal(nearest(matrix, GRID).values(), matrix)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [32, 128, None])
def test_gptq_changes_the_outputs_less_than_rounding(act_order: bool, group_size: int | None) -> None:
    matrix, inputs = torch.randn(48, 256), correlated_inputs(256)
    grid = Grid(4, group_size, torch.float32)
    learned = gptq(matrix, inputs.T @ inputs, grid, act_order=act_order).values()
    rounded = nearest(matrix, grid).values()
    losses = [float((inputs @ (values - matrix).T).square().mean()) for values in (learned, rounded)]
    assert losses[0] < 0.7 * losses[1]


def test_gptq_rounds_to_the_nearest_where_inputs_are_unrelated_or_missing() -> None:
    matrix = torch.randn(8, 64)
    for gram in (torch.eye(64), torch.zeros(64, 64)):
        assert torch.equal(gptq(matrix, gram, GRID).codes, nearest(matrix, GRID).codes)


def test_gptq_refuses_inputs_that_are_not_finite() -> None:
    with pytest.raises(CheckpointError, match="must be finite"):
        gptq(torch.randn(8, 64), torch.full((64, 64), torch.inf), GRID)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mlp": "gelu", "norm": "layer_norm", "num_key_value_heads": 4, "attention_bias": True},
        {"norm": "offset_rms_norm", "norm_placement": "both"},
        {"parallel_block": True, "norm": "layer_norm_no_bias", "mlp_bias": True},
    ],
)
def test_awq_moves_sizes_without_changing_a_block_and_rounds_better(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = DecoderModel(ModelConfig(vocab_size=64, initializer_range=0.2, **{**sizes, **settings})).eval()
    block, context = model.layers[0], ForwardContext.for_sequences((64,))
    hidden = torch.randn(64, 64) * torch.linspace(-3, 3, 64).exp()
    rotation = model.rotations(positions_of((64,)))[0]
    with torch.no_grad():
        # Norms and biases of a trained model are not all alike.
        for parameter in block.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.rand_like(parameter))
        with collecting(block) as collected:
            wanted = block(hidden, rotation, context)
        before = {name: weight.clone() for name, weight in matrices(block).items()}
        plain = sum(lost(before[name], nearest(before[name], GRID), collected.by_name[name][0].gram) for name in before)
        scale_block(block, collected.by_name, lambda _: GRID, torch.bfloat16)
        assert torch.allclose(block(hidden, rotation, context), wanted, rtol=1e-4, atol=1e-3)
        assert any(not torch.equal(weight, before[name]) for name, weight in matrices(block).items())
        scaled = 0.0
        for name, weight in matrices(block).items():
            gram = collected.by_name[name][0].gram
            scaled += lost(weight, clipped(weight, gram, GRID), gram)
        assert scaled <= plain
        norm = block.norm1.weight
        assert torch.equal(norm, norm.bfloat16().float())


def lost(matrix: torch.Tensor, rounded: Grouped, gram: torch.Tensor) -> float:
    """Squared error of the products with the inputs of a gram, relative to the products."""
    errors = rounded.values() - matrix
    return float(((errors @ gram) * errors).sum() / ((matrix @ gram) * matrix).sum())


def test_awq_refuses_inputs_that_are_not_finite() -> None:
    block = DecoderModel(ModelConfig(vocab_size=64, hidden_size=64, num_hidden_layers=1)).layers[0]
    collected = {
        name: [Inputs(torch.full((weight.shape[1],) * 2, torch.inf), torch.ones(weight.shape[1]), 1)]
        for name, weight in matrices(block).items()
    }
    with pytest.raises(CheckpointError, match="must be finite"), torch.no_grad():
        scale_block(block, collected, lambda _: GRID, torch.float32)


@pytest.mark.parametrize("bits", [4, 8])
def test_words_hold_the_first_code_lowest(bits: int) -> None:
    codes = torch.randint(-(1 << bits - 1), 1 << bits - 1, (3, 64), dtype=torch.int8)
    words = packed(codes, bits).numpy().view(np.uint32)
    per_word = 32 // bits
    back = np.stack([(words >> (bits * place)) & ((1 << bits) - 1) for place in range(per_word)], -1).reshape(3, 64)
    assert np.array_equal(back.astype(np.int64) - (1 << bits - 1), codes.numpy())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, corpus_file: Path) -> dict[str, object]:
    """The tiny model by every method and format."""
    folder = tmp_path_factory.mktemp("quantised")
    cases = [("int4", "rtn"), ("int4", "gptq"), ("int8", "rtn"), ("w8a8", "gptq")]
    cases += [
        ("int4", "awq"),
        ("q4_0", "awq"),
        ("w8a8", "awq"),
        ("q4_0", "gptq"),
        ("q8_0", "rtn"),
        ("q8_0", "gptq"),
        ("q4_k", "rtn"),
    ]
    reports = {}
    for scheme, method in cases:
        out = folder / f"{scheme}-{method}{'.gguf' if scheme.startswith('q') else ''}"
        reports[f"{scheme} {method}"] = quantize(
            tiny_checkpoint, out, scheme=scheme, method=method, calibration=corpus_file, **SMALL
        )
    return reports


def test_every_result_is_opened_here_with_the_compared_weights(made: dict, tiny_checkpoint: Path) -> None:
    ids = torch.tensor(LLM(tiny_checkpoint).tokenizer.encode("ROMEO: what news?"))
    original = logits(tiny_checkpoint, ids)
    for name, report in made.items():
        error = (logits(report.path, ids) - original).norm() / original.norm()
        assert 0 < error < (0.5 if "4" in name else 0.08), name
        model = LLM(report.path, config=EngineConfig(packed_weights=True))
        assert len(model.generate("ROMEO:", GREEDY).token_ids) == 12


def logits(path: Path, ids: torch.Tensor) -> torch.Tensor:
    model = resolve(path).model("float32")
    context = ForwardContext.for_sequences((len(ids),))
    with torch.no_grad():
        return model(ids, torch.arange(len(ids)), context)


def test_reports_tell_distance_and_sizes(made: dict) -> None:
    assert made["int4 rtn"].bits_per_weight == 5.0  # scales have the checkpoint's 32 bits
    assert made["q8_0 rtn"].bits_per_weight == made["q8_0 gptq"].bits_per_weight == 8.5
    assert made["q4_0 gptq"].bits_per_weight == 4.5
    for name, report in made.items():
        assert report.num_heldout_tokens == 128
        assert report.bytes_after < report.bytes_before
        assert report.kl < (0.5 if "4" in name else 0.01), name
        assert report.perplexity == pytest.approx(report.original_perplexity, rel=0.5 if "4" in name else 0.05)
    assert len({report.original_perplexity for report in made.values()}) == 1


def test_config_names_the_scheme_as_compressed_tensors_does(made: dict) -> None:
    values = json.loads((made["int4 gptq"].path / "config.json").read_text())["quantization_config"]
    weights = values["config_groups"]["group_0"]["weights"]
    assert (values["format"], values["ignore"], weights["num_bits"]) == ("pack-quantized", ["lm_head"], 4)
    assert (weights["group_size"], weights["strategy"], weights["actorder"]) == (32, "group", "weight")
    values = json.loads((made["w8a8 gptq"].path / "config.json").read_text())["quantization_config"]
    group = values["config_groups"]["group_0"]
    assert (values["format"], group["input_activations"]["strategy"]) == ("int-quantized", "token")
    assert group["weights"]["strategy"] == "channel"
    tensors = load_file(made["w8a8 gptq"].path / "model.safetensors")
    assert tensors["model.layers.0.self_attn.q_proj.weight"].dtype == torch.int8
    tensors = load_file(made["int8 rtn"].path / "model.safetensors")
    assert tensors["model.layers.1.mlp.down_proj.weight_packed"].shape == (64, 96 // 4)
    assert tensors["model.layers.1.mlp.down_proj.weight_shape"].tolist() == [64, 96]


def test_q8_0_by_rounding_has_the_bits_of_the_package_gguf(made: dict, tiny_checkpoint: Path) -> None:
    written = GGUFModel(made["q8_0 rtn"].path).tensors
    original = load_file(tiny_checkpoint / "model.safetensors")
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        blocks = quantize_blocks(original[name].float().numpy(), GGMLQuantizationType.Q8_0)
        assert np.array_equal(written[name].blocks().reshape(-1), blocks.reshape(-1))


@pytest.mark.parametrize(("kind", "encode", "lost"), [("Q4_K", encode_q4_k, 0.075), ("Q6_K", encode_q6_k, 0.018)])
def test_blocks_with_scales_of_scales_are_read_by_the_package_gguf(kind: str, encode: Encode, lost: float) -> None:
    torch.manual_seed(0)
    values = torch.randn(8, 512)
    values[1, :256], values[2] = 0.0, 1.0
    read = dequantize(encode(values), GGMLQuantizationType[kind])
    errors = np.square(read - values.numpy()).mean(1)
    assert not read[1, :256].any()
    assert read[2] == pytest.approx(1.0, abs=0.01)
    assert np.sqrt(errors[3:].mean()) < lost


def test_experts_are_rounded_by_their_own_tokens(
    tmp_path: Path, tiny_tokenizer: BPETokenizer, corpus_file: Path
) -> None:
    experts = ExpertsConfig(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "max_position_embeddings": 128}
    config = ModelConfig(
        vocab_size=tiny_tokenizer.vocab_size, mlp="moe", experts=experts, initializer_range=0.2, **sizes
    )
    torch.manual_seed(0)
    with atomic_directory(tmp_path / "moe") as directory:
        write_model(directory, DecoderModel(config), tiny_tokenizer)
    reports = [
        quantize(tmp_path / "moe", tmp_path / method, method=method, calibration=corpus_file, **SMALL)
        for method in ("gptq", "rtn")
    ]
    assert reports[0].kl < reports[1].kl
    values = json.loads((tmp_path / "gptq" / "config.json").read_text())
    router = [name for name in values["quantization_config"]["ignore"] if name != "lm_head"]
    tensors = load_file(tmp_path / "gptq" / "model.safetensors")
    assert len(router) == 1
    assert f"{router[0]}.weight" in tensors
    opened = weights_to_hf(resolve(tmp_path / "gptq").model("float32").state_dict(), resolve(tmp_path / "gptq").config)
    original = weights_to_hf(resolve(tmp_path / "moe").model("float32").state_dict(), config)
    assert all((opened[name] - original[name]).abs().max() < 0.2 for name in original)


def test_nothing_stays_when_the_model_is_broken(tmp_path: Path, tiny_checkpoint: Path, corpus_file: Path) -> None:
    broken = tmp_path / "broken"
    model = resolve(tiny_checkpoint).model("float32")
    assert isinstance(model, DecoderModel)
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with atomic_directory(broken) as directory:
        write_model(directory, model, resolve(tiny_checkpoint).tokenizer())
    for out, scheme in (("out", "int4"), ("out.gguf", "q4_0")):
        with pytest.raises(CheckpointError, match="finite"):
            quantize(broken, tmp_path / out, scheme=scheme, method="rtn", calibration=corpus_file, **SMALL)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["broken"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "int3"}, "`scheme` must be one of int4"),
        ({"schema": "int4"}, "unknown setting `schema`; did you mean `scheme`"),
        ({"group_size": 48}, "`group_size` must be one of 32, 64, 128, got 48"),
        ({"scheme": "q4_k", "method": "gptq"}, "`method` must be rtn for q4_k"),
        ({"scheme": "q6_k", "method": "awq"}, "`method` must be rtn for q6_k, got 'awq'"),
        ({"scheme": "q4_0", "format": "compressed-tensors"}, "must be int4, int8 or w8a8 for compressed-tensors"),
        ({"scheme": "w8a8", "format": "gguf"}, "must be int8 or int4 for GGUF"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, tiny_checkpoint: Path, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        quantize(tiny_checkpoint, tmp_path / "out", **settings)


def test_bad_arguments_are_one_error_before_any_work(tmp_path: Path, tiny_checkpoint: Path, corpus_file: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"must end in \.gguf for q8_0"):
        quantize(tiny_checkpoint, tmp_path / "out", scheme="q8_0")
    with pytest.raises(InvalidArgumentError, match="must be a directory for int4"):
        quantize(tiny_checkpoint, tmp_path / "out.gguf")
    (tmp_path / "there").mkdir()
    with pytest.raises(InvalidArgumentError, match="must be new"):
        quantize(tiny_checkpoint, tmp_path / "there")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidArgumentError, match="new or a checkpoint to replace, got a file"):
        quantize(tiny_checkpoint, tmp_path / "file", overwrite=True)
    with pytest.raises(InvalidArgumentError, match="must not be the checkpoint"):
        quantize(tiny_checkpoint, tiny_checkpoint, overwrite=True)
    with pytest.raises(CheckpointError, match=r"down_proj\.weight has rows of 96, which `group_size` 128"):
        quantize(tiny_checkpoint, tmp_path / "out", group_size=128, calibration=corpus_file)
    with pytest.raises(DataError, match="no such file"):
        quantize(tiny_checkpoint, tmp_path / "out", calibration="nowhere.txt")
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(DataError, match="must hold at least"):
        quantize(tiny_checkpoint, tmp_path / "out", calibration=short)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "short.txt", "there"]


def test_only_a_checkpoint_of_this_package_is_overwritten(tmp_path: Path, tiny_checkpoint: Path, made: dict) -> None:
    (project := tmp_path / "project").mkdir()
    (project / "config.json").write_text("years of work")
    with pytest.raises(InvalidArgumentError, match=r"project', which holds config\.json\n"):
        quantize(tiny_checkpoint, project, overwrite=True)
    shutil.copytree(made["int4 rtn"].path, tmp_path / "old")
    (tmp_path / "old" / "notes.txt").write_text("mine")
    with pytest.raises(InvalidArgumentError, match=r"old', which holds notes\.txt\nhint: name another one"):
        quantize(tiny_checkpoint, tmp_path / "old", overwrite=True)
    assert (project / "config.json").read_text() == "years of work"
    assert (tmp_path / "old" / "notes.txt").is_file()


def test_what_is_read_is_never_replaced_by_the_result(tmp_path: Path, tiny_checkpoint: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "outer")
    inner = tmp_path / "outer" / "inner"
    shutil.copytree(tiny_checkpoint, inner)
    for source, out in ((inner, tmp_path / "outer"), (tmp_path / "outer", inner)):
        with pytest.raises(InvalidArgumentError, match="must not be the checkpoint that is read, nor hold it"):
            quantize(source, out, overwrite=True)
        assert (inner / "model.safetensors").is_file()


def test_what_a_file_cannot_hold_is_known_before_any_work(tmp_path: Path) -> None:
    tokenizer = SimpleCharacterTokenizer.train("to be or not to be")
    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    for name, kind in (("decoder", DecoderModel), ("judge", RewardModel)):
        with atomic_directory(tmp_path / name) as directory:
            write_model(directory, kind(ModelConfig(**sizes, max_position_embeddings=32)), tokenizer)
    with pytest.raises(TokenizerError, match="stores only byte-level BPE, got a SimpleCharacterTokenizer"):
        quantize(tmp_path / "decoder", tmp_path / "out.gguf", scheme="q8_0", calibration="nowhere.txt")
    with pytest.raises(CheckpointError, match="must hold a decoder of text, got a LlamaForSequenceClassification"):
        quantize(tmp_path / "judge", tmp_path / "out", scheme="int8", calibration="nowhere.txt")
    with atomic_directory(tmp_path / "short") as directory:
        write_model(directory, DecoderModel(ModelConfig(**sizes, max_position_embeddings=1)), tokenizer)
    with pytest.raises(CheckpointError, match="context must be at least 2 tokens to be compared on text, got 1"):
        quantize(tmp_path / "short", tmp_path / "out", scheme="int8", calibration="nowhere.txt")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["decoder", "judge", "short"]


@pytest.mark.parametrize(("out", "scheme"), [("file/out", "int8"), ("file/out.gguf", "q8_0")])
def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, tiny_checkpoint: Path, corpus_file: Path, out: str, scheme: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match=rf"{out} can't be written: .*\nhint: name a place"):
        quantize(tiny_checkpoint, tmp_path / out, scheme=scheme, calibration=corpus_file, **SMALL)


def test_a_quantised_checkpoint_is_not_quantised_again(tmp_path: Path, made: dict) -> None:
    with pytest.raises(CheckpointError, match="quantised already"):
        quantize(made["int4 rtn"].path, tmp_path / "out")


def test_command_prints_the_comparison_and_says_that_own_text_is_better(tmp_path: Path, tiny_checkpoint: Path) -> None:
    options = ["--heldout-tokens", "64", "--calibration-tokens", "64", "--window-tokens", "32"]
    arguments = ["quantize", str(tiny_checkpoint), "--out", str(tmp_path / "out"), *options]
    with pytest.warns(LLMWarning, match="^calibrated and compared .* gives better weights and .*: `--calibration`$"):
        assert CliRunner().invoke(app, [*arguments, "--method", "gptq"]).exit_code == 0
    shutil.rmtree(tmp_path / "out")
    arguments += ["--method", "rtn"]
    with pytest.warns(LLMWarning, match="^compared on Shakespeare's plays, .* gives truer figures: `--calibration`$"):
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "bits a quantised weight" in result.stdout
    assert "KL " in result.stdout
    assert CliRunner().invoke(app, arguments).exit_code == 1
    assert CliRunner().invoke(app, [*arguments, "--overwrite"]).exit_code == 0
