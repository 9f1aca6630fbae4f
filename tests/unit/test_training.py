"""The loop: its loss, its exactness, its refusals."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llm.checkpoint import Checkpoint, Run, load_model, load_tensors, write_model
from llm.data import IGNORED_LABEL, SyntheticDataModule, TokenBatch
from llm.errors import ConfigError, DataError, RegistryError, TrainingError
from llm.models import ForwardContext, positions_of
from llm.settings.model import ExpertsConfig, ModelConfig
from llm.settings.run import DataConfig, GenerationConfig, OptimizerConfig, RunConfig, TrainingConfig
from llm.training import Callback, JsonlLogger, LanguageModelingTask, StepMetrics, TrainingEngine
from llm.training.launch import launch, resume
from llm.training.precision import autocast_dtype
from llm.training.schedules import warmup_cosine

MODEL = ModelConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, max_position_embeddings=16
)


def config(**training: Any) -> RunConfig:
    values: dict[str, Any] = {"max_steps": 6, "batch_size": 8, "precision": "float32", "log_every": 1} | training
    return RunConfig(
        model=MODEL,
        data=DataConfig(kind="synthetic", num_samples=64),
        optimizer=OptimizerConfig(warmup_steps=2, learning_rate=1e-2),
        training=TrainingConfig(**values),
    )


def weights_of(checkpoint: Checkpoint) -> bytes:
    return (checkpoint.path / "model.safetensors").read_bytes()


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in Run(run).read_log() if "loss" in line]


@given(st.integers(0, 50), st.integers(1, 60), st.floats(0, 1), st.floats(1e-5, 1e-1))
def test_schedule_warms_up_to_the_peak_and_stays_within_bounds(
    warmup: int, total: int, ratio: float, peak: float
) -> None:
    settings = OptimizerConfig(learning_rate=peak, warmup_steps=warmup, min_learning_rate_ratio=ratio)
    rates = [warmup_cosine(step, total, settings) for step in range(total + 5)]
    assert all(0 <= rate <= peak * (1 + 1e-9) for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    decay = rates[warmup:]
    assert decay == sorted(decay, reverse=True)
    if total > warmup:
        assert rates[warmup] == pytest.approx(peak)
        assert rates[total] == pytest.approx(peak * ratio, abs=1e-12)


def test_a_warmup_as_long_as_the_schedule_divides_by_nothing(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(config(), optimizer=OptimizerConfig(warmup_steps=6))
    launch(settings, tmp_path / "run", callbacks=[])
    assert warmup_cosine(6, 6, settings.optimizer) == settings.optimizer.learning_rate


def test_training_learns_the_rule(tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch(config(max_steps=200, log_every=10), run)
    losses = losses_of(run)
    assert losses[0] > 2.0
    assert losses[-1] < 1.0


def test_accumulation_keeps_loss_and_weights(tmp_path: Path) -> None:
    for passes in (1, 4):
        launch(unclipped(gradient_accumulation_steps=passes), tmp_path / str(passes))
    check_same_training(tmp_path / "1", tmp_path / "4")


def unclipped(**training: Any) -> RunConfig:
    """Without clipping, which hides a wrong scale of the gradients; so does Adam, but not the logged norm."""
    settings = config(**training)
    optimizer = msgspec.structs.replace(settings.optimizer, max_grad_norm=None)
    return msgspec.structs.replace(settings, optimizer=optimizer)


def check_same_training(one: Path, other: Path) -> None:
    """Losses, gradient norms and weights of two runs agree to rounding."""
    logs = [[line for line in Run(run).read_log() if "loss" in line] for run in (one, other)]
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in logs[0]] == pytest.approx([line[key] for line in logs[1]], rel=1e-4), key
    weights = [load_tensors(Run(run).newest().path / "model.safetensors") for run in (one, other)]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=2e-5), name


def test_two_processes_keep_loss_and_weights(tmp_path: Path) -> None:
    settings = unclipped()
    launch(settings, tmp_path / "1")
    script = tmp_path / "train.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.unit.test_training import unclipped\n"
        "from llm.training.launch import launch\n"
        "launch(unclipped(), sys.argv[2])\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, str(script), str(Path(__file__).parents[2]), str(tmp_path / "2")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    check_same_training(tmp_path / "1", tmp_path / "2")
    one, two = (Run(tmp_path / name) for name in ("1", "2"))
    validation = [[line for line in run.read_log() if "validation_loss" in line][-1] for run in (one, two)]
    assert validation[0]["validation_loss"] == pytest.approx(validation[1]["validation_loss"], rel=1e-4)


class StopAfter(Callback):
    """Interrupts a run as the terminal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        if metrics.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path: Path, precision: str) -> None:
    settings = config(max_steps=11, checkpoint_every=4, precision=precision)
    whole = launch(settings, tmp_path / "whole")
    for stop_at in (3, 8):
        run = Run(tmp_path / f"cut{stop_at}")
        with pytest.raises(KeyboardInterrupt):
            launch(settings, run.path, callbacks=[JsonlLogger(run), StopAfter(stop_at)])
        assert run.newest() == run.checkpoint(stop_at)
        assert weights_of(resume(run.path)) == weights_of(whole)
        assert losses_of(run.path) == losses_of(tmp_path / "whole")
        for name in ("optimizer.safetensors", "state.json"):
            resumed = run.newest().training_state / name
            assert resumed.read_bytes() == (whole.training_state / name).read_bytes()


def test_a_run_whose_weights_are_in_several_files_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    settings = config(max_steps=5)
    whole = launch(settings, tmp_path / "whole")
    run = Run(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        launch(settings, run.path, callbacks=[StopAfter(3)])
    checkpoint = run.newest().path
    model = load_model(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    write_model(checkpoint, model, None, max_shard_bytes=4_000)
    assert len(list(checkpoint.glob("model-0*.safetensors"))) > 2
    assert weights_of(resume(run.path)) == weights_of(whole)


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path: Path) -> None:
    whole = launch(config(), tmp_path / "whole")
    run = Run(tmp_path / "run")
    run.create(config(), {})
    run.append_log({"step": 1, "loss": 3.0})
    (run.path / "log.jsonl").open("a").write('{"step": 2, "lo')
    assert weights_of(resume(run.path)) == weights_of(whole)
    assert losses_of(run.path) == losses_of(tmp_path / "whole")


def test_a_longer_run_may_be_asked_for_but_no_other(tmp_path: Path) -> None:
    launch(config(max_steps=3), tmp_path / "run")
    longer = resume(tmp_path / "run", config(max_steps=5))
    assert longer.path.name == "step_00000005"
    with pytest.raises(ConfigError, match=r"`training.batch_size` can't change on resume: the run has 8, got 4"):
        resume(tmp_path / "run", config(max_steps=5, batch_size=4))


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    newest = launch(config(max_steps=2), tmp_path / "run")
    before = weights_of(newest)
    with pytest.raises(ConfigError, match="already holds a run\nhint: continue it with `--resume`"):
        launch(config(max_steps=3), tmp_path / "run")
    assert weights_of(newest) == before


def test_what_cannot_start_leaves_no_run_behind(tmp_path: Path) -> None:
    for settings, error in (
        (config(batch_size=1000), DataError),
        (msgspec.structs.replace(config(), model=msgspec.structs.replace(MODEL, mlp="swigluu")), RegistryError),
    ):
        with pytest.raises(error):
            launch(settings, tmp_path / "run")
    assert launch(config(max_steps=1), tmp_path / "run").path.name == "step_00000001"


def test_resuming_keeps_the_sampling_values(tmp_path: Path) -> None:
    values = GenerationConfig(temperature=0.5, top_k=7)
    run = Run(tmp_path / "run")
    settings = msgspec.structs.replace(config(max_steps=2), generation=values)
    launch(settings, run.path)
    longer = msgspec.structs.replace(settings, training=config(max_steps=3).training)
    resume(run.path, longer)
    assert run.read_config().generation == values


def test_only_the_newest_checkpoints_are_kept_and_latest_names_the_last(tmp_path: Path) -> None:
    newest = launch(config(max_steps=9, checkpoint_every=2, keep_checkpoints=2), tmp_path / "run")
    kept = sorted(entry.name for entry in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step_00000008", "step_00000009"]
    assert (tmp_path / "run" / "latest").read_text() == f"checkpoints/{newest.path.name}\n"


def test_a_finished_run_resumes_to_nothing_more(tmp_path: Path) -> None:
    newest = launch(config(max_steps=2), tmp_path / "run")
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    assert resume(tmp_path / "run") == newest
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log


def test_what_a_crash_left_half_made_is_cleared_away(tmp_path: Path) -> None:
    launch(config(max_steps=2), tmp_path / "run")
    half = tmp_path / "run" / "checkpoints" / ".tmp-step_00000003"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    resume(tmp_path / "run", config(max_steps=4))
    assert {entry.name for entry in half.parent.iterdir()} == {"step_00000002", "step_00000004"}


def test_run_files_are_whole_and_readable(tmp_path: Path) -> None:
    launch(config(), tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["config"]["training"]["max_steps"] == 6
    assert facts["torch"] == torch.__version__
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    log = Run(tmp_path / "run").read_log()
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert all(line["tokens_per_s"] > 0 and line["grad_norm"] > 0 for line in log if "loss" in line)
    assert log[-1]["step"] == 6
    assert log[-1]["validation_loss"] > 0


def test_a_signal_to_one_of_two_processes_stops_both_with_a_checkpoint(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.unit.test_training import MODEL, config\n"
        "from llm.training import LanguageModelingTask\n"
        "from llm.training.launch import launch\n"
        "real = LanguageModelingTask.loss_sum\n"
        "calls = 0\n"
        "def loss_sum(self, model, batch):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls == 3 and os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return real(self, model, batch)\n"
        "LanguageModelingTask.loss_sum = loss_sum\n"
        "try:\n"
        "    launch(config(max_steps=500), sys.argv[2], callbacks=[])\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', os.environ['RANK'])\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, str(script), str(Path(__file__).parents[2]), str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("interrupted") == 2
    assert Run(tmp_path / "run").newest().path.name == "step_00000003"


class Exploding(LanguageModelingTask):
    """A loss that is NaN in the third step."""

    calls = 0

    def loss_sum(self, model: torch.nn.Module, batch: TokenBatch) -> Tensor:
        self.calls += 1
        return super().loss_sum(model, batch) * (math.nan if self.calls == 3 else 1.0)


class Overflowing(LanguageModelingTask):
    """Finite losses whose gradients overflow in the first `num_overflows` steps."""

    num_overflows = 0
    calls = 0

    def loss_sum(self, model: torch.nn.Module, batch: TokenBatch) -> Tensor:
        loss = super().loss_sum(model, batch)
        self.calls += model.training
        if model.training and self.calls <= self.num_overflows:
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss


class Masked(LanguageModelingTask):
    """No label counts."""

    def count_targets(self, batch: TokenBatch) -> int:
        return 0


def engine_for(task: LanguageModelingTask, run: Run, settings: RunConfig, **more: Any) -> TrainingEngine:
    run.create(settings, {})
    data = SyntheticDataModule(64, vocab_size=32, context_length=16)
    return TrainingEngine(settings, task, data, run, **more)


def test_a_nan_loss_stops_the_run_with_step_rank_and_batch(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    engine = engine_for(Exploding(MODEL), run, config(checkpoint_every=1))
    with pytest.raises(TrainingError, match="step 3, rank 0, epoch 1, batch 3: the loss is nan"):
        engine.fit()
    assert run.newest() == run.checkpoint(2)
    assert all(
        torch.isfinite(tensor).all() for tensor in load_tensors(run.newest().path / "model.safetensors").values()
    )


def test_fp16_warm_up_skips_are_counted_and_shown(tmp_path: Path) -> None:
    task = Overflowing(MODEL)
    task.num_overflows = 3
    run = Run(tmp_path / "run")
    engine_for(task, run, config(precision="float16", max_steps=8), callbacks=[JsonlLogger(run)]).fit()
    log = [line for line in run.read_log() if "loss" in line]
    assert [line["skipped_steps"] for line in log] == [1, 2, 3, 3, 3, 3, 3, 3]
    assert [line["grad_norm"] is None for line in log] == [True, True, True, False, False, False, False, False]


def test_fp16_gradients_that_stay_non_finite_stop_the_run(tmp_path: Path) -> None:
    task = Overflowing(MODEL)
    task.num_overflows = 10**6
    engine = engine_for(task, Run(tmp_path / "run"), config(precision="float16", max_steps=60))
    with pytest.raises(TrainingError, match="step 21, rank 0"):
        engine.fit()


def test_a_batch_without_labels_stops_the_run(tmp_path: Path) -> None:
    engine = engine_for(Masked(MODEL), Run(tmp_path / "run"), config())
    with pytest.raises(TrainingError, match="every label of the batch is masked"):
        engine.fit()


def test_ignored_labels_weigh_nothing(tmp_path: Path) -> None:
    task = LanguageModelingTask(MODEL)
    torch.manual_seed(0)
    model = task.build_model()
    ids = torch.randint(0, 32, (12,))
    labels = torch.randint(0, 32, (12,))
    masked = labels.clone()
    masked[5:] = IGNORED_LABEL
    batch = TokenBatch(ids, masked, (12,))
    logits = model(ids, positions_of((12,)), ForwardContext.for_sequences((12,)))
    expected = torch.nn.functional.cross_entropy(logits[:5], labels[:5], reduction="sum")
    assert task.count_targets(batch) == 5
    assert torch.allclose(task.loss_sum(model, batch), expected)


def test_bits_per_byte_counts_the_bytes_behind_tokens(tiny_tokenizer) -> None:
    task = LanguageModelingTask(ModelConfig(vocab_size=384), tiny_tokenizer)
    text = "To be, or not to be — that is the question"
    ids = torch.tensor([0, *tiny_tokenizer.encode(text), *tiny_tokenizer.eos_ids])
    batch = TokenBatch(ids[:-1], ids[1:], (len(ids) - 1,))
    assert task.count_bytes(batch) == len(text.encode())
    assert task.validation_metrics(8 * math.log(2), 4, 2)["bits_per_byte"] == pytest.approx(4.0)


def test_the_regression_task_trains_and_its_checkpoint_opens(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(
        config(task="regression", max_steps=300, batch_size=64, log_every=10),
        data=DataConfig(kind="synthetic", num_samples=512),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=10),
    )
    checkpoint = launch(settings, tmp_path / "run")
    losses = losses_of(tmp_path / "run")
    assert losses[-1] < 0.25 * losses[0]
    assert load_model(checkpoint)(torch.zeros(3, 16)).shape == (3,)


def test_experts_train_with_their_losses_and_open_in_transformers(tmp_path: Path) -> None:
    experts = ExpertsConfig(num_experts=4, moe_intermediate_size=24, load_balancing_weight=0.5, router_z_weight=0.01)
    model = msgspec.structs.replace(MODEL, mlp="moe", experts=experts)
    settings = msgspec.structs.replace(config(max_steps=60, log_every=1), model=model)
    checkpoint = launch(settings, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "expert_load" in line]
    assert len(steps) == 60
    assert len(steps[0]["expert_load"]) == 2
    assert steps[-1]["loss"] < steps[0]["loss"]
    for line in steps:
        assert line["load_balancing"] >= 1.9  # k = 2 when even, and hardly ever below
        assert line["router_z"] > 0
        assert all(sum(layer) == pytest.approx(1, abs=1e-3) for layer in line["expert_load"])
    evenness = [max(max(layer) for layer in line["expert_load"]) for line in (steps[0], steps[-1])]
    assert evenness[1] < max(evenness[0], 0.35)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    assert theirs.config.model_type == "mixtral"
    token_ids = torch.randint(0, 32, (9,))
    ours = load_model(checkpoint)(token_ids, positions_of((9,)), ForwardContext.for_sequences((9,)))
    assert (ours - theirs(token_ids[None]).logits[0]).abs().max() <= 1e-4


def test_recomputed_blocks_train_to_the_same_weights(tmp_path: Path) -> None:
    paths = [
        launch(config(max_steps=5, gradient_checkpointing=recompute), tmp_path / str(recompute))
        for recompute in (False, True)
    ]
    one, other = (load_model(path).state_dict() for path in paths)
    assert all(torch.equal(one[name], other[name]) for name in one)


class MemoryWatch(Callback):
    """Resident bytes after each step."""

    def __init__(self) -> None:
        self.resident: list[int] = []

    def on_step_end(self, metrics: StepMetrics, should_log: bool) -> None:
        self.resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_does_not_grow_with_steps(tmp_path: Path) -> None:
    watch = MemoryWatch()
    launch(config(max_steps=400, validate_every=1000, checkpoint_every=1000), tmp_path / "run", callbacks=[watch])
    assert watch.resident[-1] - watch.resident[100] < 8 * 2**20


def test_weight_decay_is_for_matrices_only() -> None:
    from llm.training.optim import build_optimizer

    model = LanguageModelingTask(MODEL).build_model()
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.3))
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decays[parameter] == (0.0 if "norm" in name else 0.3), name


def test_auto_precision_follows_the_device() -> None:
    native = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    assert autocast_dtype("auto", torch.device("cpu")) == (torch.bfloat16 if native else torch.float32)
    assert autocast_dtype("float16", torch.device("cpu")) == torch.float16


def test_a_missing_gpu_is_said(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="PyTorch sees 0 CUDA devices"):
        launch(config(device="cuda"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"must be auto, cpu or cuda\[:N\], got 'tpuu'"):
        launch(config(device="tpuu"), tmp_path / "run")
