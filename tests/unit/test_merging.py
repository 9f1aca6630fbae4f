"""`llm merge`, and adapters in PEFT's format of several families."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import llm
from llm.checkpoint import Checkpoint, load_model, write_model
from llm.cli.main import app
from llm.errors import CheckpointError, ConfigError, InvalidArgumentError, LLMWarning
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.models.families import FAMILIES
from tests.compat.written import FAMILY_VALUES, PLAIN, SMALL

# A projection of each family, whether its matrix is transposed on disk, and its sizes: outputs, then inputs.
PROJECTIONS = {
    "llama": ("model.layers.1.self_attn.k_proj", False, (24, 48)),
    "qwen2": ("model.layers.0.mlp.up_proj", False, (80, 48)),
    "gemma2": ("model.layers.0.self_attn.q_proj", False, (64, 48)),
    "gpt2": ("transformer.h.1.attn.c_attn", True, (144, 48)),
    "mixtral": ("model.layers.0.self_attn.v_proj", False, (24, 48)),
    "cohere2": ("model.layers.0.self_attn.q_proj", False, (48, 48)),
    "phi3": ("model.layers.0.self_attn.qkv_proj", False, (96, 48)),
}


def write_adapter(folder: Path, base: Path, tensors: dict[str, torch.Tensor], **values: Any) -> Path:
    """Writes an adapter as PEFT does."""
    folder.mkdir()
    usual = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "lora_alpha": 6, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(usual | values))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def factors_of(name: str, sizes: tuple[int, int], rank: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    first, second = torch.randn(rank, sizes[1], generator=generator), torch.randn(sizes[0], rank, generator=generator)
    prefix = f"base_model.model.{name}"
    return {f"{prefix}.lora_A.weight": first, f"{prefix}.lora_B.weight": second}


@pytest.mark.parametrize("family", PROJECTIONS)
def test_merging_adds_the_product_to_the_tensor_on_disk(family: str, tmp_path: Path) -> None:
    name, is_transposed, sizes = PROJECTIONS[family]
    torch.manual_seed(1)
    base = tmp_path / "base"
    base.mkdir()
    config = FAMILIES[family].config_from(SMALL | (FAMILY_VALUES | PLAIN)[family])
    write_model(base, DecoderModel(config), None)
    tensors = factors_of(name, sizes)
    adapter = write_adapter(tmp_path / "adapter", base, tensors, alpha_pattern={name.rpartition(".")[2]: 10})
    whole = tmp_path / "whole"
    whole.mkdir()
    model = Checkpoint(adapter).model()
    assert isinstance(model, DecoderModel)
    write_model(whole, model, None)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, whole))
    first, second = tensors.values()
    change = 10 / 2 * second @ first
    for key, tensor in before.items():
        expected = tensor + (change.T if is_transposed else change) if key == f"{name}.weight" else tensor
        torch.testing.assert_close(after[key], expected, msg=key)


def test_a_merged_checkpoint_needs_neither_adapter_nor_base(tiny_checkpoint: Path, tmp_path: Path) -> None:
    name, sizes = "model.layers.0.self_attn.q_proj", _sizes(tiny_checkpoint, "model.layers.0.self_attn.q_proj")
    adapter = write_adapter(tmp_path / "adapter", Path("elsewhere"), factors_of(name, sizes))
    with pytest.raises(CheckpointError, match="belongs to the model 'elsewhere'"):
        llm.merge(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LLMWarning)
        report = llm.merge(adapter, tmp_path / "out", base=tiny_checkpoint, dtype="bfloat16")
    assert report.kl is not None
    assert 0 < report.kl < 0.1
    assert load_model(tmp_path / "out").dtype == torch.bfloat16
    assert Checkpoint(tmp_path / "out").tokenizer().vocab_size
    with pytest.raises(InvalidArgumentError, match="`path` must hold an adapter"):
        llm.merge(tmp_path / "out", tmp_path / "again")
    with pytest.raises(InvalidArgumentError, match="`out` must be new"):
        llm.merge(adapter, tmp_path / "out", base=tiny_checkpoint)


def test_the_command_says_what_it_wrote(tiny_checkpoint: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj"
    adapter = write_adapter(tmp_path / "adapter", tiny_checkpoint, factors_of(name, _sizes(tiny_checkpoint, name)))
    result = CliRunner().invoke(app, ["merge", str(adapter), "--out", str(tmp_path / "out"), "--dtype", "float32"])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == f"{tmp_path / 'out'}: float32"


SMALL_TEXT = "Now is the winter of our discontent made glorious summer by this sun of York. " * 400


@pytest.mark.parametrize(("scheme", "bound"), [("int8", 1e-2), ("q8_0", 1e-2)])
def test_a_quantised_base_gives_a_result_quantised_like_it_with_its_divergence(
    scheme: str, bound: float, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(SMALL_TEXT)
    ending = ".gguf" if scheme.startswith("q") else ""
    base, target = tmp_path / f"base{ending}", tmp_path / f"merged{ending}"
    llm.quantize(tiny_checkpoint, base, scheme=scheme, calibration=(text,), progress=False)
    name = "model.layers.0.self_attn.q_proj"
    factors = {key: tensor * 0.1 for key, tensor in factors_of(name, _sizes(tiny_checkpoint, name)).items()}
    adapter = write_adapter(tmp_path / "adapter", base, factors)
    words = ["merge", str(adapter), "--out", str(target), "--scheme", "base", "--calibration", str(text)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    found = re.search(rf"merged.*: {scheme}, KL from the unmerged model (\S+) nats a token", result.stdout)
    assert found is not None, result.stdout
    assert 0 < float(found[1]) < bound
    ids, unmerged = torch.arange(64) % 380, Checkpoint(adapter).model("float32")
    logits = [
        one(ids, positions_of((64,)), ForwardContext.for_sequences((64,))).detach().log_softmax(-1)
        for one in (unmerged, load_model(target, "float32"), load_model(base, "float32"))
    ]
    apart = [float((logits[0].exp() * (logits[0] - one)).sum(-1).mean()) for one in logits[1:]]
    assert apart[0] < bound < apart[1]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["text.txt", "adapter", base.name, target.name])


def test_few_bits_for_a_merge_warn_and_floats_say_how_to_get_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    text, base = tmp_path / "text.txt", tmp_path / "base"
    text.write_text(SMALL_TEXT)
    llm.quantize(tiny_checkpoint, base, scheme="int4", method="rtn", calibration=(text,), progress=False)
    name = "model.layers.0.self_attn.q_proj"
    adapter = write_adapter(tmp_path / "adapter", base, factors_of(name, _sizes(tiny_checkpoint, name)))
    with pytest.warns(LLMWarning, match=r"rounding the merged weights to int4 took .*, more than 0.001"):
        report = llm.merge(adapter, tmp_path / "bits", scheme="base", calibration=(text,))
    assert report.kl is not None
    assert report.kl > 1e-3
    words = ["merge", str(adapter), "--out", str(tmp_path / "floats"), "--dtype", "float32"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "note: the base is quantised; `--scheme base`" in result.stderr
    assert Checkpoint(tmp_path / "bits").is_quantised
    assert not Checkpoint(tmp_path / "floats").is_quantised


@pytest.mark.parametrize(
    ("scheme", "out", "error", "message"),
    [
        ("base", "out", CheckpointError, "`scheme` base needs a base that is quantised"),
        ("q4_0", "out", InvalidArgumentError, "`out` must end in .gguf for q4_0"),
        ("int5", "out", ConfigError, "`scheme` must be one of int4"),
    ],
)
def test_schemes_that_cannot_be_are_errors_before_anything_is_written(
    scheme: str, out: str, error: type[Exception], message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.down_proj"
    adapter = write_adapter(tmp_path / "adapter", tiny_checkpoint, factors_of(name, _sizes(tiny_checkpoint, name)))
    with pytest.raises(error, match=message):
        llm.merge(adapter, tmp_path / out, scheme=scheme)
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "`peft_type` must be 'LORA', got 'IA3'"),
        ({"modules_to_save": ["lm_head"]}, "`modules_to_save` must be None or \\[\\]"),
    ],
)
def test_other_kinds_of_adapters_are_refused(
    changes: dict[str, Any], message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.down_proj"
    tensors = factors_of(name, _sizes(tiny_checkpoint, name))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(write_adapter(tmp_path / "adapter", tiny_checkpoint, tensors, **changes)).model()


def test_tensors_that_are_no_adapters_are_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj"
    tensors = factors_of(name, _sizes(tiny_checkpoint, name))
    first, second = tensors
    other = write_adapter(tmp_path / "other", tiny_checkpoint, {"base_model.model.lm_head.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"holds base_model.model.lm_head.weight, which is no low-rank adapter"):
        Checkpoint(other).model()
    half = write_adapter(tmp_path / "half", tiny_checkpoint, {first: tensors[first]})
    with pytest.raises(CheckpointError, match=rf"lacks {second}"):
        Checkpoint(half).model()
    broken = write_adapter(tmp_path / "broken", tiny_checkpoint, tensors | {first: tensors[first] / 0})
    with pytest.raises(CheckpointError, match=rf"got NaN or infinity in {first}"):
        Checkpoint(broken).model()


def _sizes(base: Path, name: str) -> tuple[int, int]:
    rows, columns = load_file(Path(base) / "model.safetensors")[f"{name}.weight"].shape
    return rows, columns
