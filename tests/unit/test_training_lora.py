"""Runs that train adapters, and the checkpoints that they write."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

import llm
from llm.checkpoint import Checkpoint, Run, load_model, resolve
from llm.errors import CheckpointError, ConfigError
from llm.export import export
from llm.models import DecoderModel, ForwardContext, Targets, positions_of
from llm.models.adapters import adapt, adapters_of, round_frozen
from llm.models.layers.lora import AdaptedLinear
from llm.settings.run import LoraConfig
from llm.training.launch import resume
from llm.training.metrics import StepMetrics

SETTINGS = ["context_length=16", "batch_size=4", "max_steps=4", "precision=float32", "device=cpu", "checkpoint_every=2"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, corpus_text: str) -> Path:
    file = tmp_path_factory.mktemp("text") / "c.txt"
    file.write_text(corpus_text[:4000])
    return file


def tune(text: Path, out: Path, base: object, *overrides: str, **more: Any) -> Run:
    settings = [*SETTINGS, f"training.init_from={base}", "lora.rank=4", *overrides]
    llm.train(data=text, out=out, overrides=settings, **{"callbacks": [], **more})
    return Run(out)


def files_of(checkpoint: Checkpoint) -> dict[str, bytes]:
    found = (file for file in checkpoint.path.rglob("*") if file.is_file())
    return {str(file.relative_to(checkpoint.path)): file.read_bytes() for file in found}


def test_a_checkpoint_holds_the_adapter_and_no_copy_of_the_base(
    text: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    run = tune(text, tmp_path / "run", tiny_checkpoint, "lora.alpha=12", 'lora.target_modules=["q_proj", "down_proj"]')
    saved = run.newest()
    assert not list(saved.path.glob("model*"))
    values = json.loads((saved.path / "adapter_config.json").read_text())
    expected = {"peft_type": "LORA", "r": 4, "lora_alpha": 12, "target_modules": ["down_proj", "q_proj"]}
    assert {name: values[name] for name in expected} == expected
    assert Path(values["base_model_name_or_path"]) == Path(tiny_checkpoint).absolute()
    tensors = load_file(saved.path / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in tensors
    assert all(tensor.any() for tensor in tensors.values())


def test_training_lowers_the_loss_and_leaves_the_base(text: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    before = (Path(tiny_checkpoint) / "model.safetensors").read_bytes()
    losses: list[float] = []

    class Losses(llm.training.Callback):
        def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
            del should_log
            losses.append(metrics.loss)

    tune(text, tmp_path / "run", tiny_checkpoint, "max_steps=30", "optimizer.learning_rate=0.01", callbacks=[Losses()])
    assert (Path(tiny_checkpoint) / "model.safetensors").read_bytes() == before
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("kind", ["lora.use_dora=false", "lora.use_dora=true"])
def test_a_resumed_run_equals_the_uninterrupted_one(
    text: Path, tiny_checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    more = (kind, "lora.input_dropout=0.2")
    whole = tune(text, tmp_path / "whole", tiny_checkpoint, *more)
    killed = Run(shutil.copytree(whole.path, tmp_path / "killed"))
    shutil.rmtree(killed.checkpoint(4).path)
    assert resume(killed.path, callbacks=[]) == killed.checkpoint(4)
    assert files_of(killed.checkpoint(4)) == files_of(whole.checkpoint(4))


def test_an_adapter_opens_as_a_model_with_the_adapter_merged(text: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    run = tune(text, tmp_path / "run", tiny_checkpoint, "lora.use_rslora=true", "optimizer.learning_rate=0.01")
    saved = run.newest()
    model, base = saved.model("float32"), load_model(tiny_checkpoint, "float32")
    assert isinstance(model, DecoderModel)
    ids = torch.arange(8)
    logits = [one(ids, positions_of((8,)), ForwardContext.for_sequences((8,))) for one in (model, base)]
    assert not torch.allclose(*logits, atol=1e-3)
    assert saved.tokenizer().token_bytes() == Checkpoint(Path(tiny_checkpoint)).tokenizer().token_bytes()
    assert llm.LLM(run.path).generate("The", llm.SamplingParams(max_tokens=3, temperature=0)).text
    again = tune(text, tmp_path / "again", run.path, "max_steps=2", "optimizer.learning_rate=1e-30")
    continued = again.newest().model("float32")
    torch.testing.assert_close(continued.state_dict(), model.state_dict())


def test_samples_of_a_run_are_those_of_its_adapter(text: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    written: list[str] = []

    class Probe(llm.training.Callback):
        def on_fit_start(self, start: Any) -> None:
            self.model = start.model

        def on_checkpoint(self, step: int, checkpoint: Checkpoint) -> None:
            from llm.training.callbacks.samples import write_text

            params, tokenizer = llm.SamplingParams(temperature=0), checkpoint.tokenizer()
            ids = tokenizer.encode("The")
            written.append(write_text(self.model, tokenizer, ids, 6, params))
            written.append(write_text(checkpoint.model("float32"), tokenizer, ids, 6, params))

    settings = [*SETTINGS, f"training.init_from={tiny_checkpoint}", "lora.rank=4", "optimizer.learning_rate=0.05"]
    llm.train(data=text, out=tmp_path / "run", overrides=settings, callbacks=[Probe()])
    assert len(written) >= 2
    assert written[::2] == written[1::2]


def test_another_base_is_one_error_that_names_the_tensor(text: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_checkpoint, tmp_path / "base"))
    saved = tune(text, tmp_path / "run", base).newest()
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name] + 1e-3
    from llm.checkpoint import save_tensors

    save_tensors(base / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=rf"trained on other weights than those of .*{name} has the digest"):
        saved.model()
    with pytest.raises(CheckpointError, match=r"hint: the weights there have changed since"):
        tune(text, tmp_path / "more", saved)
    assert not Run(tmp_path / "more").exists
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match=r"no checkpoint at that path\nhint: `llm merge"):
        saved.model()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["lora.rank=4"], r"`lora.rank` needs trained weights"),
        (["lora.alpha=4"], r"`lora.rank` must be given"),
        (
            ["lora.rank=4", "training.init_from=x", "training.precision=float8"],
            r"`lora.rank` can't be combined with `training.precision=float8`",
        ),
    ],
)
def test_settings_that_contradict_are_errors(text: Path, tmp_path: Path, values: list[str], message: str) -> None:
    from llm.settings.merge import load_run_config

    with pytest.raises(ConfigError, match=message):
        load_run_config(None, values)


def test_parts_of_peft_that_are_not_read_are_named(tmp_path: Path, tiny_checkpoint: Path, text: Path) -> None:
    saved = tune(text, tmp_path / "run", tiny_checkpoint).newest()
    file = saved.path / "adapter_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"bias": "all"}))
    with pytest.raises(CheckpointError, match="`bias` must be 'none', got 'all'"):
        saved.model()


def test_adapters_are_listed_by_projection(text: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    del text, tmp_path

    model = load_model(tiny_checkpoint)
    assert isinstance(model, DecoderModel)
    adapt(model, LoraConfig(rank=2, target_modules=("v_proj",)))
    assert {part.key for part, _, _ in adapters_of(model)} == {"v_proj"}


@pytest.fixture(scope="module")
def quantised(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_checkpoint, tmp_path_factory.mktemp("base") / "base.gguf", "gguf", quantization="q8_0")


def test_a_quantised_base_stays_packed_and_its_runs_resume_exactly(text: Path, quantised: Path, tmp_path: Path) -> None:
    models: list[DecoderModel] = []

    class Keeper(llm.training.Callback):
        def on_fit_start(self, start: Any) -> None:
            models.append(start.model)

    packed = tune(text, tmp_path / "packed", quantised, callbacks=[Keeper()])
    layers = [layer for layer in models[0].modules() if isinstance(layer, AdaptedLinear)]
    assert len(layers) == 8
    assert all(layer.matrix is not None for layer in layers)
    killed = Run(shutil.copytree(packed.path, tmp_path / "killed"))
    shutil.rmtree(killed.checkpoint(4).path)
    assert files_of(resume(killed.path, callbacks=[])) == files_of(packed.checkpoint(4))
    assert packed.newest().model().dtype == resolve(quantised).model().dtype


def test_a_run_on_a_quantised_base_writes_samples(text: Path, quantised: Path, tmp_path: Path) -> None:
    run = tune(text, tmp_path / "run", quantised, "training.sample_tokens=4", callbacks=None)
    assert [sample["step"] for sample in run.samples.read()] == [1, 2, 3, 4]
    assert all(sample["text"] for sample in run.samples.read())


@pytest.mark.parametrize("settings", [{}, {"target_modules": ["v_proj", "up_proj"]}, {"input_dropout": 0.3}], ids=str)
def test_adapters_of_a_packed_base_get_the_gradients_of_the_unpacked_one(
    quantised: Path, settings: dict[str, Any]
) -> None:
    found = []
    for keep_packed in (True, False):
        model = resolve(quantised).model("float32", keep_packed=keep_packed)
        assert isinstance(model, DecoderModel)
        torch.manual_seed(5)
        adapt(model, msgspec.convert({"rank": 3, **settings}, LoraConfig))
        for _, _, adapter in adapters_of(model):
            torch.nn.init.normal_(adapter.lora_b, 0, 0.1)
        ids = torch.arange(24) % model.config.vocab_size
        context = ForwardContext.for_sequences((14, 10))
        torch.manual_seed(6)
        logits = model.train()(ids, positions_of((14, 10)), context)
        logits.logsumexp(-1).sum().backward()
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        found.append((logits.detach(), {name: weight.grad for name, weight in trained.items()}))
    (packed, gradients), (whole, expected) = found
    assert float((packed - whole).norm() / whole.norm()) <= 1e-4
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((gradients[name] - gradient).norm() / gradient.norm()) <= 1e-4, name


def bits_of_a_pass(model: DecoderModel) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Returns log-probabilities and gradients of the adapters of a pass with products in bf16."""
    ids = torch.arange(24) % model.config.vocab_size
    context = ForwardContext.for_sequences((14, 10), targets=Targets(ids.roll(-1), is_summed=True))
    with torch.autocast("cpu", torch.bfloat16):
        logprobs = model(ids, positions_of((14, 10)), context)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return logprobs.detach(), list(torch.autograd.grad(logprobs.sum(), trained))


@pytest.mark.parametrize("by_layers", [False, True])
def test_frozen_matrices_in_the_type_of_products_change_no_bit(tiny_checkpoint: Path, by_layers: bool) -> None:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(tiny_checkpoint, "float32")
        assert isinstance(model, DecoderModel)
        torch.manual_seed(5)
        adapt(model, LoraConfig(rank=3))
        for _, _, adapter in adapters_of(model):
            torch.nn.init.normal_(adapter.lora_b, 0, 0.1)
        round_frozen(model, dtype)
        layers = [layer for layer in model.modules() if isinstance(layer, AdaptedLinear)]
        assert {layer.weight.dtype for layer in layers} == {dtype}
        if by_layers:
            layers[0].register_forward_hook(lambda *_: None)
        found.append(bits_of_a_pass(model.train()))
        assert model.eval()(torch.arange(4), positions_of((4,)), ForwardContext.for_sequences((4,))).isfinite().all()
    assert torch.equal(found[0][0], found[1][0])
    assert all(map(torch.equal, found[0][1], found[1][1]))


def test_a_run_in_bf16_keeps_its_frozen_matrices_in_bf16(text: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    kinds: dict[str, set[torch.dtype]] = {}

    class Keeper(llm.training.Callback):
        def on_fit_start(self, start: Any) -> None:
            layers = (layer for layer in start.model.modules() if isinstance(layer, AdaptedLinear))
            kinds[start.precision] = {layer.weight.dtype for layer in layers}

    for precision, dora in (("bfloat16", "false"), ("float32", "false"), ("bfloat16", "true")):
        more = [f"precision={precision}", f"lora.use_dora={dora}", "max_steps=1"]
        tune(text, tmp_path / f"{precision}-{dora}", tiny_checkpoint, *more, callbacks=[Keeper()])
        exact = precision == "float32" or dora == "true"
        assert kinds[precision] == {torch.float32 if exact else torch.bfloat16}
