"""Adapters beside each other in one engine, on the kernels and in PyTorch."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from llm import LLM, SamplingParams
from llm.checkpoint import write_model
from llm.errors import CheckpointError, InvalidArgumentError
from llm.export import export
from llm.inference import EngineConfig, NgramSpeculation, load_engine
from llm.models import DecoderModel
from llm.settings.model import ExpertsConfig, ModelConfig
from llm.tokenization import BPETokenizer
from tests.adapter_files import write_adapter
from tests.unit.inference_samples import PROMPTS, drain_ids

PARAMS = SamplingParams(temperature=0.0, max_tokens=16, logprobs=0, ignore_eos=True)
PROMPT = PROMPTS[3]


@pytest.fixture(scope="module")
def adapters(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    kinds: dict[str, dict[str, Any]] = {
        "one": {"rank": 4},
        "two": {"rank": 11, "use_rslora": True},
        "few": {"rank": 3, "target_modules": ["v_proj", "up_proj", "down_proj"]},
    }
    return {
        name: write_adapter(folder / name, tiny_checkpoint, seed=seed, **kind)
        for seed, (name, kind) in enumerate(kinds.items())
    }


def answers(model: LLM, names: list[str | None], params: SamplingParams = PARAMS) -> list[tuple[Any, list[float]]]:
    """Returns tokens and log-probabilities of the answers to one prompt by several adapters together."""
    outputs = model.generate([PROMPT] * len(names), params, adapter=names)
    return [(out.token_ids, [token.logprob for token in out.logprobs or ()]) for out in outputs]


@pytest.mark.parametrize("backend", ["kernels", "torch"])
def test_an_adapter_answers_as_the_merged_model_does(
    tiny_checkpoint: Path, adapters: dict[str, Path], backend: str
) -> None:
    config = EngineConfig(backend=backend)
    model = LLM(tiny_checkpoint, "float32", config=config, adapters=adapters)
    found = dict(zip(adapters, answers(model, list(adapters)), strict=True))
    assert len({tuple(tokens) for tokens, _ in found.values()}) == 3
    for name, path in adapters.items():
        [(tokens, logprobs)] = answers(LLM(path, "float32", config=config), [None])
        assert found[name][0] == tokens
        torch.testing.assert_close(torch.tensor(found[name][1]), torch.tensor(logprobs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "limits",
    [{}, {"max_batch_tokens": 5, "block_size": 4}, {"max_running_requests": 2}],
    ids=["roomy", "chunked", "two at a time"],
)
def test_answers_of_a_mixed_batch_have_the_bits_of_each_alone(
    tiny_checkpoint: Path, adapters: dict[str, Path], dtype: str, limits: dict[str, Any]
) -> None:
    model = LLM(tiny_checkpoint, dtype, config=EngineConfig(backend="kernels", **limits), adapters=adapters)
    names = [None, "one", "two", "few", None, "two", "one"]
    together = answers(model, names)
    plain = LLM(tiny_checkpoint, dtype, config=EngineConfig(backend="kernels"))
    alone = LLM(tiny_checkpoint, dtype, config=EngineConfig(backend="kernels"), adapters=adapters)
    for name, answer in zip(names, together, strict=True):
        [expected] = answers(plain if name is None else alone, [name])
        assert answer == expected


@pytest.mark.parametrize(
    "shape",
    [
        {"intermediate_size": 84},
        {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True},
        {"mlp": "gelu", "hidden_act": "gelu", "norm": "layer_norm"},
        {"head_dim": 20, "num_attention_heads": 4, "num_key_value_heads": 1},
        {"mlp": "moe", "experts": ExpertsConfig(num_experts=4, num_experts_per_tok=2)},
        {"norm_placement": "both"},
    ],
    ids=["cut strips", "biases", "no gate", "shared keys", "experts", "norms on both sides"],
)
def test_kernels_and_pytorch_agree(
    tiny_checkpoint: Path, tiny_tokenizer: BPETokenizer, tmp_path: Path, shape: dict[str, Any]
) -> None:
    config = ModelConfig(
        vocab_size=tiny_tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    torch.manual_seed(1)
    base = tmp_path / "base"
    base.mkdir()
    write_model(base, DecoderModel(msgspec.structs.replace(config, **shape)), tiny_tokenizer)
    adapter = write_adapter(tmp_path / "adapter", base, rank=5)
    found = []
    for backend in ("kernels", "torch"):
        model = LLM(base, "float32", config=EngineConfig(backend=backend), adapters={"own": adapter})
        found.append(answers(model, ["own", None, "own"]))
    assert found[0][0] == found[0][2] != found[0][1]
    for (tokens, logprobs), (expected, others) in zip(*found, strict=True):
        assert tokens == expected
        torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(others), atol=1e-4, rtol=0)


def test_a_packed_base_takes_adapters(tiny_checkpoint: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    base = export(tiny_checkpoint, tmp_path / "base.gguf", "gguf", quantization="q8_0")
    packed = LLM(base, "float32", config=EngineConfig(packed_weights=True), adapters=adapters)
    expanded = LLM(base, "float32", config=EngineConfig(packed_weights=False), adapters=adapters)
    names = ["two", None, "one"]
    params = msgspec.structs.replace(PARAMS, max_tokens=1)
    found, expected = answers(packed, names, params), answers(expanded, names, params)
    # Activations of 8 bits alone differ by as much.
    for (_, logprobs), (_, others) in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(others), atol=0.1, rtol=0)
    assert answers(packed, ["two"], params) == found[:1]


@pytest.mark.parametrize("backend", ["kernels", "torch"])
def test_the_prefix_cache_keeps_adapters_apart(tiny_checkpoint: Path, adapters: dict[str, Path], backend: str) -> None:
    expected = {}
    for name in (None, *adapters):
        fresh = LLM(tiny_checkpoint, config=EngineConfig(backend=backend, block_size=4), adapters=adapters)
        [(expected[name], _)] = answers(fresh, [name])
    model = LLM(tiny_checkpoint, config=EngineConfig(backend=backend, block_size=4), adapters=adapters)
    hits = []
    for name in (None, *adapters, "two", None):
        before = model.engine.stats()["prefix_hit_tokens"]
        [(tokens, _)] = answers(model, [name])
        assert tokens == expected[name]
        hits.append(model.engine.stats()["prefix_hit_tokens"] - before)
    assert hits[:4] == [0] * 4
    assert min(hits[4:]) > 0


def test_choices_and_preemption_keep_the_adapter(tiny_checkpoint: Path, adapters: dict[str, Path]) -> None:
    params = SamplingParams(seed=5, max_tokens=24, temperature=0.9, n=3, ignore_eos=True)
    config = EngineConfig(max_model_len=80, block_size=8, kv_cache_memory_bytes=2 * 2 * 2 * 16 * 4 * 8 * 11)
    found = []
    for limits in (EngineConfig(), config):
        model = LLM(tiny_checkpoint, config=limits, adapters=adapters)
        outputs = model.generate([PROMPT] * 3, params, adapter=[None, "one", "two"])
        found.append([[one.token_ids for one in output.choices] for output in outputs])
    assert found[0] == found[1]
    assert model.engine.stats()["num_preemptions"] > 0


def test_drafts_change_no_token_of_an_adapter(tiny_checkpoint: Path, adapters: dict[str, Path]) -> None:
    names = [None, "one", "two"]
    expected = answers(LLM(tiny_checkpoint, adapters=adapters), names)
    config = EngineConfig(speculative=NgramSpeculation(num_draft_tokens=3))
    model = LLM(tiny_checkpoint, config=config, adapters=adapters)
    assert answers(model, names) == expected
    assert model.engine.stats()["drafts_accepted"] > 0


def test_a_removed_adapter_serves_its_running_requests_to_their_end(
    tiny_checkpoint: Path, adapters: dict[str, Path]
) -> None:
    engine = load_engine(tiny_checkpoint, adapters=adapters)
    prompt = engine.tokenizer.encode(PROMPT)
    expected = drain_ids(engine, engine.add_choices(prompt, PARAMS, adapter="one"))
    running = engine.add_choices(prompt, PARAMS, adapter="one")
    engine.step()
    assert engine.adapters.num_requests()["one"] == 1
    engine.adapters.remove("one")
    with pytest.raises(InvalidArgumentError, match=r"`adapter` must be one of the loaded ones \(two, few\), got 'one'"):
        engine.add_choices(prompt, PARAMS, adapter="one")
    assert drain_ids(engine, running) == [expected[0][1:]]
    again = engine.adapters.add("one", engine.adapters.prepared(adapters["two"]))
    assert again.number == 4
    assert drain_ids(engine, engine.add_choices(prompt, PARAMS, adapter="one")) == drain_ids(
        engine, engine.add_choices(prompt, PARAMS, adapter="two")
    )
    with pytest.raises(InvalidArgumentError, match="'one' is loaded already"):
        engine.adapters.add("one", engine.adapters.prepared(adapters["two"]))


def changed(source: Path, target: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    """Returns a copy of an adapter with other tensors or settings."""
    shutil.copytree(source, target)
    file = target / "adapter_model.safetensors"
    save_file(load_file(file) | (tensors or {}), file)
    values = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps(values | config))
    return target


def test_an_adapter_that_does_not_fit_is_named_with_its_tensor(
    tiny_checkpoint: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    engine = load_engine(tiny_checkpoint)
    name = "base_model.model.model.layers.1.self_attn.q_proj"
    digests = json.loads((adapters["one"] / "base_digests.json").read_text())
    digests["model.layers.1.mlp.up_proj"] = "F32:0123456789abcdef"
    other = changed(adapters["one"], tmp_path / "other")
    (other / "base_digests.json").write_text(json.dumps(digests))
    wrong = {
        r"layers.1.self_attn.q_proj.lora_A has shape \[4, 63\], the base needs \[4, 64\]": changed(
            adapters["one"], tmp_path / "narrow", {f"{name}.lora_A.weight": torch.zeros(4, 63)}
        ),
        r"at most 512, got 600 in model.layers.1.self_attn.q_proj.lora_A": changed(
            adapters["one"],
            tmp_path / "large",
            {f"{name}.lora_A.weight": torch.zeros(600, 64), f"{name}.lora_B.weight": torch.zeros(64, 600)},
            rank_pattern={"layers.1.self_attn.q_proj": 600},
        ),
        r"model.layers.7.self_attn.q_proj is no linear layer of the base": changed(
            adapters["one"],
            tmp_path / "deep",
            {
                f"{name.replace('.1.', '.7.')}.{leaf}.weight": torch.zeros(shape)
                for leaf, shape in (("lora_A", (4, 64)), ("lora_B", (64, 4)))
            },
        ),
        r"other weights than those of .*model.layers.1.mlp.up_proj.weight has the digest": other,
        r"DoRA.*\.lora_magnitude_vector\nhint: `llm merge`": write_adapter(
            tmp_path / "dora", tiny_checkpoint, use_dora=True
        ),
        r"must hold an adapter, .*got a whole model": tiny_checkpoint,
    }
    for message, path in wrong.items():
        with pytest.raises(CheckpointError, match=f"(?s){message}"):
            engine.adapters.prepared(path)
    assert len(engine.adapters) == 0
