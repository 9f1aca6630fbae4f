"""Training loops that take turns: each prints the time and, at first, the loss of a step, then waits to be told to go.

Usage: PYTHON training_loops.py LOOP DIRECTORY, where LOOP is a name in `LOOPS` and DIRECTORY holds the weights as a
Hugging Face checkpoint, and `case.json`. Every loop takes its batches from a `Gate`; the time of a step is the time
between two of its batches, so nothing that a loop does is left out.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BETAS, WEIGHT_DECAY, RATE, CLIP = (0.9, 0.95), 0.1, 1e-3, 1.0


def peak_mib() -> int:
    """Returns the largest memory of this program; `ru_maxrss` would count that of the process which started it, too."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) / 1024)


class Gate:
    """Batches of random tokens, each handed out when a line comes from standard input."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.case = json.loads((directory / "case.json").read_text())
        self.loss: float | None = None
        # Seconds of the last step's forward, backward and optimizer, where the loop measures them.
        self.parts_seconds: float | None = None
        self._random = torch.Generator().manual_seed(1)
        self._started: tuple[float, float] | None = None
        torch.set_num_threads(self.case["threads"])

    @property
    def is_half(self) -> bool:
        """Whether products are computed in bf16."""
        return self.case["precision"] == "bfloat16"

    def next(self) -> Tensor:
        """Returns int64 `[B, block + 1]`; ends the process when no more are wanted."""
        began = self._started or (time.perf_counter(), time.process_time())
        seconds, cpu_seconds = time.perf_counter() - began[0], time.process_time() - began[1]
        state = {"seconds": seconds, "cpu_seconds": cpu_seconds, "loss": self.loss, "peak_mib": peak_mib()}
        print(json.dumps(state | {"parts_seconds": self.parts_seconds}), flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        shape = (self.case["batch"], self.case["block"] + 1)
        ids = torch.randint(0, self.case["vocab"], shape, generator=self._random)
        self._started = (time.perf_counter(), time.process_time())
        return ids

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield self.next()

    def __len__(self) -> int:
        return 10**6

    def note(self, loss: Tensor | float) -> None:
        """Keeps the first loss."""
        self.loss = float(loss) if self.loss is None else self.loss

    def autocast(self) -> Any:
        """Returns the context of a forward pass."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.is_half)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Returns PyTorch's fused AdamW, with weight decay on matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=True)


def plain(gate: Gate, model: nn.Module, logits_of: Callable[[Tensor], Tensor]) -> None:
    """Runs the loop of PyTorch's tutorials."""
    optimizer = adamw(model)
    for ids in gate:
        with gate.autocast():
            logits = logits_of(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        gate.note(loss.detach())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def transformers_model(gate: Gate) -> nn.Module:
    """Returns transformers' model in training mode."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(gate.directory, dtype=torch.float32).train()


def run_plain(gate: Gate) -> None:
    """Trains transformers' Llama in a plain loop."""
    model = transformers_model(gate)
    plain(gate, model, lambda ids: model(ids, use_cache=False).logits)


def run_compiled(gate: Gate) -> None:
    """Trains transformers' Llama in a plain loop, compiled as a whole."""
    model = transformers_model(gate)
    compiled = torch.compile(model)
    plain(gate, model, lambda ids: compiled(ids, use_cache=False).logits)


def run_trainer(gate: Gate) -> None:
    """Trains with `transformers.Trainer`."""
    import transformers

    class Gated(transformers.Trainer):
        def get_train_dataloader(self) -> Any:
            return Batches()

        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            loss = super().compute_loss(*arguments, **options)
            gate.note(loss.detach())
            return loss

    class Batches:
        """Trainer's labels are shifted by the model, so each batch has the last token as well; it predicts nothing."""

        dataset = range(10**9)

        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            for ids in gate:
                yield {"input_ids": ids[:, :-1].contiguous(), "shift_labels": ids[:, 1:].contiguous(), "labels": ids}

        def __len__(self) -> int:
            return 10**6

    arguments = transformers.TrainingArguments(
        output_dir=str(gate.directory / "trainer"),
        max_steps=10**6,
        per_device_train_batch_size=gate.case["batch"],
        learning_rate=RATE,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=CLIP,
        bf16=gate.is_half,
        use_cpu=True,
        optim="adamw_torch_fused",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_steps=500,
    )
    Gated(model=transformers_model(gate), args=arguments, train_dataset=[0]).train()


def litgpt_model(gate: Gate) -> nn.Module:
    """Returns litgpt's model with the same weights, and a tied embedding."""
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from safetensors.torch import load_file

    theirs = json.loads((gate.directory / "config.json").read_text())
    config = Config(
        block_size=gate.case["block"],
        vocab_size=theirs["vocab_size"],
        padded_vocab_size=theirs["vocab_size"],
        n_layer=theirs["num_hidden_layers"],
        n_embd=theirs["hidden_size"],
        n_head=theirs["num_attention_heads"],
        n_query_groups=theirs["num_key_value_heads"],
        intermediate_size=theirs["intermediate_size"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=theirs["rms_norm_eps"],
        mlp_class_name="LLaMAMLP",
        rope_base=10_000,
    )
    model, weights = GPT(config), {}
    copy_weights_hf_llama(config, {}, weights, load_file(gate.directory / "model.safetensors"))
    model.load_state_dict(weights)
    model.lm_head.weight = model.transformer.wte.weight
    return model


def run_litgpt(gate: Gate) -> None:
    """Trains with the loop of `litgpt pretrain`, which compiles the model in `LOOPS["litgpt compiled"]` only."""
    import lightning
    from litgpt import pretrain
    from litgpt.args import EvalArgs, TrainArgs

    theirs = pretrain.chunked_cross_entropy

    def noted(*arguments: Any, **options: Any) -> Tensor:
        loss = theirs(*arguments, **options)
        if loss.device.type == "cpu" and torch.is_grad_enabled():
            gate.note(loss.detach())
        return loss

    def nothing(*_: Any, **__: Any) -> Tensor:
        return torch.zeros(())

    pretrain.chunked_cross_entropy, pretrain.validate = noted, nothing
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed" if gate.is_half else "32-true")
    fabric.print = nothing
    model = litgpt_model(gate)
    if gate.case["loop"] == "litgpt compiled":
        model = torch.compile(model)
    model = fabric.setup(model)
    optimizer = fabric.setup_optimizers(adamw(model))
    state = {"model": model, "optimizer": optimizer, "iter_num": 0, "step_count": 0}
    case = gate.case
    settings = TrainArgs(
        global_batch_size=case["batch"],
        micro_batch_size=case["batch"],
        max_tokens=10**12,
        max_norm=CLIP,
        min_lr=RATE,
        lr_warmup_steps=0,
        log_interval=10**6,
        save_interval=None,
    )
    pretrain.fit(fabric, 1, state, gate, None, gate.directory, None, settings, EvalArgs(interval=10**6))


def run_ours(gate: Gate) -> None:
    """Trains with this package's loop."""
    from training_ours import train

    train(gate)


def run_nanogpt(gate: Gate) -> None:
    """Trains nanoGPT's model, written anew, in a plain loop."""
    from training_gpt import PlainGPT

    model = PlainGPT.from_checkpoint(gate.directory)
    plain(gate, model, model)


LOOPS: dict[str, Callable[[Gate], None]] = {
    "ours": run_ours,
    "ours compiled": run_ours,
    "plain": run_plain,
    "plain compiled": run_compiled,
    "trainer": run_trainer,
    "litgpt": run_litgpt,
    "litgpt compiled": run_litgpt,
    "nanogpt": run_nanogpt,
}

if __name__ == "__main__":
    gate = Gate(Path(sys.argv[2]))
    gate.case["loop"] = sys.argv[1]
    LOOPS[sys.argv[1]](gate)
