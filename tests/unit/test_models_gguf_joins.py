"""GGUF files of gpt-oss and DeepSeek: tensors in parts are those of Hugging Face, and stay packed where experts can."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from llm import LLM, SamplingParams, quantize
from llm.checkpoint import Checkpoint, atomic_directory, load_model, write_model
from llm.errors import CheckpointError, LLMWarning
from llm.export import export
from llm.info import describe
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.models.gguf import JoinedTensor, read_config, read_tensors, write_gguf_model
from llm.models.gguf.types import TYPES, write_values
from llm.models.layers.packed import packed_matrices
from llm.settings.engine import EngineConfig
from llm.tokenization import BPETokenizer
from llm.tokenization.readers.gguf_file import TensorEntry, metadata_bytes, read_head
from tests.quantised_checkpoints import logits_of_kernels
from tests.small_families import small

NAMES = ("gpt_oss", "deepseek_v2", "deepseek_v3")
IDS = torch.arange(40) * 7
Stored = tuple[tuple[int, ...], int, NDArray[np.uint8]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: BPETokenizer) -> dict[str, Path]:
    """A directory of each family, with a GGUF file of the same values beside it."""
    found = {}
    for name in NAMES:
        torch.manual_seed(3)
        model = DecoderModel(small(name))
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1 or key.endswith("bias"):
                parameter.data += 0.1 * torch.randn_like(parameter)
        found[name] = tmp_path_factory.mktemp(name) / "a.gguf"
        with atomic_directory(found[name].with_suffix("")) as directory:
            write_model(directory, model, tiny_tokenizer)
        export(found[name].with_suffix(""), found[name], "gguf", quantization="f32")
    return found


def rewritten(source: Path, target: Path, tensors: Mapping[str, Stored | None] | None = None, **change: Any) -> Path:
    """The file with other tensors and metadata, whose keys have `__` for a dot; None takes one away."""
    head = read_head(source, lambda key: True, CheckpointError)
    architecture = head.metadata["general.architecture"]
    values = head.metadata | {f"{architecture}.{key.replace('__', '.')}": value for key, value in change.items()}
    found: dict[str, Stored | None] = {
        each.name: (tuple(each.shape.tolist()[::-1]), 0, each.data.reshape(-1).view(np.uint8))
        for each in gguf.GGUFReader(source).tensors
    }
    entries, contents, offset = [], [], 0
    for name, stored in (found | dict(tensors or {})).items():
        if stored is None:
            continue
        shape, type_id, content = stored
        entries.append(TensorEntry(name, shape, type_id, offset))
        contents.append(content.tobytes().ljust(-(-content.nbytes // 32) * 32, b"\0"))
        offset += len(contents[-1])
    start = metadata_bytes({key: value for key, value in values.items() if value is not None}, entries)
    target.write_bytes(b"".join([start.ljust(-(-len(start) // 32) * 32, b"\0"), *contents]))
    return target


def of_file(file: Path, name: str) -> torch.Tensor:
    """Values of a tensor of the file, by its name there."""
    found = next(each for each in gguf.GGUFReader(file).tensors if each.name == name)
    return torch.from_numpy(gguf.quants.dequantize(found.data, found.tensor_type).copy())


def encoded(file: Path, kind: str, *leaves: str) -> dict[str, Stored]:
    """Tensors of the file that end in one of `leaves`, in another type."""
    found: dict[str, Stored] = {}
    for each in gguf.GGUFReader(file).tensors:
        if each.name.endswith(leaves):
            shape = tuple(each.shape.tolist()[::-1])
            content = np.asarray(write_values(torch.from_numpy(each.data.reshape(shape).copy()), TYPES[kind]))
            found[each.name] = shape, TYPES[kind].type_id, content.reshape(-1).view(np.uint8)
    return found


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 32}
EXPERTS = ("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_the_model_that_was_written(name: str, files: dict[str, Path]) -> None:
    there, back = Checkpoint(files[name].with_suffix("")), Checkpoint(files[name])
    assert back.config == replace(there.config, initializer_range=back.config.initializer_range)
    wanted, found = there.model("float32").state_dict(), back.model("float32").state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_gate_and_up_take_turns_and_matrices_are_transposed(files: dict[str, Path]) -> None:
    file = files["gpt_oss"]
    read, prefix = read_tensors(file), "model.layers.1.mlp.experts."
    gate, up, down = (of_file(file, f"blk.1.ffn_{part}_exps.weight") for part in ("gate", "up", "down"))
    whole = read[f"{prefix}gate_up_proj"].load()
    assert tuple(whole.shape) == read[f"{prefix}gate_up_proj"].shape == (4, 128, 128)
    assert torch.equal(whole[3, :, 10], gate[3, 5])
    assert torch.equal(whole[3, :, 11], up[3, 5])
    assert torch.equal(read[f"{prefix}down_proj"].load()[2, 7], down[2, :, 7])
    biases = read[f"{prefix}gate_up_proj_bias"].load()
    assert torch.equal(biases[:, 1::2], of_file(file, "blk.1.ffn_up_exps.bias"))
    assert torch.equal(read["model.layers.1.self_attn.sinks"].load(), of_file(file, "blk.1.attn_sinks.weight"))
    assert read[f"{prefix}down_proj"].load(torch.bfloat16).dtype == torch.bfloat16


def test_the_expansion_of_compressed_vectors_is_in_two_parts(files: dict[str, Path]) -> None:
    file = files["deepseek_v3"]
    keys, values = (of_file(file, f"blk.2.attn_{part}_b.weight") for part in "kv")
    assert (tuple(keys.shape), tuple(values.shape)) == ((4, 64, 32), (4, 32, 64))
    whole = read_tensors(file)["model.layers.2.self_attn.kv_b_proj.weight"].load()
    assert torch.equal(whole[64 + 5], keys[1, :, 5])
    assert torch.equal(whole[64 + 32 + 5], values[1, 5])
    corrections = [name for name in read_tensors(file) if name.endswith("e_score_correction_bias")]
    assert len(corrections) == 2  # the first layer has no experts


def as_older(file: Path, target: Path, **change: Any) -> Path:
    """The file as llama.cpp wrote it before it had the expansion in two parts."""
    tensors: dict[str, Stored | None] = {}
    read = read_tensors(file)
    for layer in range(3):
        whole = read[f"model.layers.{layer}.self_attn.kv_b_proj.weight"].load()
        tensors |= {f"blk.{layer}.attn_{part}_b.weight": None for part in "kv"}
        tensors[f"blk.{layer}.attn_kv_b.weight"] = tuple(whole.shape), 0, whole.numpy().view(np.uint8).reshape(-1)
    widths = {"attention__key_length": 48, "attention__value_length": 32, "attention__head_count_kv": 4}
    none = {"attention__key_length_mla": None, "attention__value_length_mla": None}
    return rewritten(file, target, tensors, **widths, **none, **change)


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3"])
def test_older_files_have_the_expansion_whole(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    # DeepSeek-V2's had no key for scores.
    change = {"expert_gating_func": None} if name == "deepseek_v2" else {}
    older = as_older(files[name], tmp_path / "a.gguf", **change)
    wanted, found = (Checkpoint(file).model("float32").state_dict() for file in (files[name], older))
    assert Checkpoint(older).config == Checkpoint(files[name]).config
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_groups_that_a_token_may_all_choose_from_are_none(files: dict[str, Path], tmp_path: Path) -> None:
    values = read_config(files["deepseek_v3"])
    assert (values["n_group"], values["topk_group"], values["topk_method"]) == (4, 2, "noaux_tc")
    without = rewritten(files["deepseek_v3"], tmp_path / "a.gguf", expert_group_count=0)
    assert (read_config(without)["n_group"], read_config(without)["topk_group"]) == (1, 1)
    grouped = rewritten(files["deepseek_v2"], tmp_path / "b.gguf", expert_group_count=2, expert_group_used_count=1)
    assert read_config(grouped)["topk_method"] == "group_limited_greedy"


def logits_of(model: DecoderModel) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(IDS, positions_of((40,)), ForwardContext.for_sequences((40,)))
    return logits


def test_mxfp4_experts_stay_packed(files: dict[str, Path], tmp_path: Path) -> None:
    file = rewritten(files["gpt_oss"], tmp_path / "a.gguf", encoded(files["gpt_oss"], "MXFP4", *EXPERTS))
    experts = read_tensors(file)["model.layers.0.mlp.experts.gate_up_proj"]
    assert isinstance(experts, JoinedTensor)
    assert (experts.type_name, experts.num_bytes) == ("MXFP4", 4 * 128 * 128 // 32 * 17)
    assert torch.equal(experts.load()[1, :, 8], of_file(file, "blk.0.ffn_gate_exps.weight")[1, 4])
    packed, plain = (Checkpoint(file).model("float32", keep_packed=keep) for keep in (True, False))
    assert isinstance(packed, DecoderModel)
    assert isinstance(plain, DecoderModel)
    assert [matrix.schemes for matrix in packed_matrices(packed)] == [("MXFP4",)] * 16
    for layer, other in zip(packed.layers, plain.layers, strict=True):
        for stack in ("gate_up_proj", "down_proj"):
            values = torch.stack([matrix.values(torch.float32) for matrix in layer.mlp.experts.stacks[stack]])
            assert torch.equal(values, other.get_parameter(f"mlp.experts.{stack}"))
    wanted = logits_of(plain)
    assert torch.equal(logits_of(packed), wanted)
    moved = (logits_of_kernels(packed, IDS) - wanted).abs().amax(1) / wanted.abs().max()
    # Rounded inputs turn near ties of the router.
    assert int((moved <= 0.03).sum()) >= 36
    assert "MXFP4 packed" in describe(file)["weights a step"]
    one = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    assert len(LLM(file, config=EngineConfig(packed_weights=True)).generate("a cat", one).token_ids) == 6


def test_gate_and_up_of_two_types_are_expanded(files: dict[str, Path], tmp_path: Path) -> None:
    tensors = encoded(files["gpt_oss"], "MXFP4", "ffn_gate_exps.weight", "ffn_down_exps.weight")
    tensors |= encoded(files["gpt_oss"], "Q8_0", "ffn_up_exps.weight")
    file = rewritten(files["gpt_oss"], tmp_path / "a.gguf", tensors)
    assert read_tensors(file)["model.layers.0.mlp.experts.gate_up_proj"].type_name == "MXFP4+Q8_0"
    assert not packed_matrices(Checkpoint(file).model("float32", keep_packed=True))
    assert "MXFP4+Q8_0" in describe(file)["stored"]


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "stacked experts": (
        "gpt_oss",
        {"num_local_experts": 5},
        r"mlp\.experts\.gate_up_proj must have the shape \[5, 128, 128\], got \[4, 128, 128\]",
    ),
    "bounds": ("gpt_oss", {"swiglu_limit": 5.0}, r"`swiglu_limit` must be 7\.0, got 5\.0"),
    "biases": ("gpt_oss", {"attention_bias": False}, "`attention_bias` must be True, got False"),
    "rounded ramp": ("gpt_oss", {"rope_parameters": YARN}, "`truncate` of a yarn scaling must be False .*, got True"),
    "ramp": (
        "gpt_oss",
        {"rope_parameters": YARN | {"truncate": False, "beta_slow": 2.0}},
        r"`beta_slow` must be 1\.0 in a GGUF file, got 2\.0: llama\.cpp doesn't read it",
    ),
    "divisors": (
        "gpt_oss",
        {"rope_parameters": YARN | {"rope_type": "llama3"}},
        "must be one of default, linear, yarn in a GGUF file, got 'lla",
    ),
    "linear": (
        "deepseek_v2",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        "must be one of default, yarn in a GGUF file, got 'linear'",
    ),
    "two factors": (
        "deepseek_v3",
        {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}},
        r"`mscale` and `mscale_all_dim` must be one number above 0 .*, got 1\.0 and 0\.5",
    ),
    "no factors": ("deepseek_v3", {"rope_parameters": YARN}, "must be one number above 0 .*, got None and None"),
    "groups": (
        "deepseek_v2",
        {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1},
        "`n_group` must be 1 in a GGUF file of deepseek_v2, got 2",
    ),
    "single experts": ("deepseek_v3", {"n_group": 8, "topk_group": 4}, "`n_group` must be below `n_routed_experts`"),
    "shared experts": ("deepseek_v3", {"n_shared_experts": 0}, "`n_shared_experts` must be a positive int .*, got 0"),
    "queries by layers": (
        "deepseek_v3",
        {"num_hidden_layers": 27},
        "`q_lora_rank` must be null in a GGUF file of 27 layers, got 96",
    ),
    "expansion": (
        "deepseek_v3",
        {"v_head_dim": 24},
        r"self_attn\.kv_b_proj\.weight must have the shape \[224, 64\], got \[256, 64\]",
    ),
    "dense layers": ("deepseek_v2", {"first_k_dense_replace": 2}, r"missing model\.layers\.1\.mlp\.gate_proj\.weight"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_such_a_file_cant_hold_is_named(
    case: str, files: dict[str, Path], tiny_tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    name, change, message = REFUSED[case]
    values, stored = Checkpoint(files[name].with_suffix("")).opened()
    tensors = {key: tensor.load() for key, tensor in stored.items()}
    with pytest.raises(CheckpointError, match=message):
        write_gguf_model(tmp_path / "a.gguf", {**values, **change}, tensors, tiny_tokenizer, quantization="f32")
    assert list(tmp_path.iterdir()) == []


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "experts": (
        "gpt_oss",
        {"expert_count": 5},
        r"ffn_up_exps\.weight must have the shape \[5, 64, 128\], got \[4, 64, 12",
    ),
    "huge": (
        "gpt_oss",
        {"expert_feed_forward_length": 2**31},
        r"ffn_up_exps\.weight must have the shape \[4, 2147483648",
    ),
    "layers": ("gpt_oss", {"block_count": 2**31}, r"`gpt-oss\.block_count` must be at most 10,000, got 2147483648"),
    "sums": (
        "deepseek_v2",
        {"expert_weights_norm": True},
        "must be false unless experts are scored by sigmoids",
    ),
    "heads": ("gpt_oss", {"attention__head_count": 8}, r"attn_sinks\.weight must have the shape \[8\], got \[4\]"),
    "window": ("gpt_oss", {"attention__sliding_window": None}, r"`gpt-oss\.attention\.sliding_window` is missing"),
    "rank": ("deepseek_v3", {"attention__kv_lora_rank": 32}, r"attn_k_b\.weight must have the shape \[4, 32, 32\]"),
    "width": ("deepseek_v3", {"attention__key_length_mla": 16}, "must be above the width that is rotated, 16, got 16"),
    "scores": ("deepseek_v2", {"expert_gating_func": 3}, r"must be 1 \(softmax\) or 2 \(sigmoid\), got 3"),
    "shared": ("deepseek_v2", {"expert_shared_count": None}, r"`deepseek2\.expert_shared_count` is missing"),
    "factor": ("deepseek_v2", {"rope__scaling__yarn_log_multiplier": None}, "yarn_log_multiplier` is missing"),
    "growth": ("deepseek_v3", {"attention__temperature_scale": 0.1}, "temperature_scale` must be 0.0, got 0.1"),
    "next tokens": ("deepseek_v3", {"nextn_predict_layers": 1}, "`deepseek2.nextn_predict_layers` must be 0, got 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_hyper_parameters_are_named(case: str, files: dict[str, Path], tmp_path: Path) -> None:
    name, change, message = BAD[case]
    with pytest.raises(CheckpointError, match=message):
        read_tensors(rewritten(files[name], tmp_path / "a.gguf", **change))


def test_far_too_many_dense_layers_are_an_error_at_once(files: dict[str, Path], tmp_path: Path) -> None:
    file = rewritten(files["deepseek_v3"], tmp_path / "a.gguf", leading_dense_block_count=2**31 - 1)
    with pytest.raises(CheckpointError, match="`first_k_dense_replace` must be at most 10,000"):
        load_model(file)
    file = rewritten(files["deepseek_v3"], tmp_path / "b.gguf", leading_dense_block_count=9)
    with pytest.raises(CheckpointError, match=r"at most `num_hidden_layers`, 3, in config\.json, got 9"):
        load_model(file)


@pytest.mark.parametrize(
    ("name", "left_out", "message"),
    [
        ("gpt_oss", "blk.1.ffn_up_exps.weight", r"blk\.1\.ffn_gate_exps\.weight must have blk\.1\.ffn_up_exps\.weight"),
        ("gpt_oss", "blk.1.ffn_down_exps.weight", r"missing model\.layers\.1\.mlp\.experts\.down_proj \[4, 64, 128\]"),
        ("gpt_oss", "blk.0.attn_sinks.weight", r"missing model\.layers\.0\.self_attn\.sinks \[4\]"),
        (
            "deepseek_v3",
            "blk.1.exp_probs_b.bias",
            r"missing model\.layers\.1\.mlp\.gate\.e_score_correction_bias \[8\]",
        ),
        ("deepseek_v3", "blk.1.attn_v_b.weight", r"blk\.1\.attn_k_b\.weight must have blk\.1\.attn_v_b\.weight beside"),
        ("deepseek_v2", "blk.1.ffn_gate_shexp.weight", r"missing model\.layers\.1\.mlp\.shared_experts\.gate_proj"),
    ],
)
def test_missing_tensors_are_named(
    name: str, left_out: str, message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(rewritten(files[name], tmp_path / "a.gguf", {left_out: None})).model()


def test_a_file_cut_anywhere_in_its_parts_is_an_error(files: dict[str, Path], tmp_path: Path) -> None:
    whole = files["gpt_oss"].read_bytes()
    size = sum(4 * math.prod(each.shape.tolist()) for each in gguf.GGUFReader(files["gpt_oss"]).tensors)
    for left in range(1, size, size // 7):
        (tmp_path / "a.gguf").write_bytes(whole[:-left])
        with pytest.raises(CheckpointError, match="the file is torn"):
            read_tensors(tmp_path / "a.gguf")


def test_only_quantised_weights_that_are_expanded_are_told(files: dict[str, Path], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LLM(files["deepseek_v3"])
    file = rewritten(files["deepseek_v3"], tmp_path / "a.gguf", encoded(files["deepseek_v3"], "Q8_0", "ffn_up.weight"))
    with pytest.warns(LLMWarning, match="quantised weights are expanded, since the kernels don't take attention 'mla'"):
        LLM(file)


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v2"])
def test_quantising_to_such_a_file_says_what_writes_one(
    name: str, files: dict[str, Path], corpus_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        CheckpointError, match=r"(attn_v_b|ffn_up_exps)\.weight in a GGUF file\n(.*\n)*hint: `llm export --format gguf"
    ):
        quantize(files[name].with_suffix(""), tmp_path / "b.gguf", scheme="q8_0", calibration=(str(corpus_file),))
