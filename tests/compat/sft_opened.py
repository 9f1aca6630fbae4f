"""Compares loss and gradient of TRL's SFTTrainer, unpacked, with those in a folder of `sft_written`.

Runs in an environment of its own: `python sft_opened.py DIR`.
"""

import json
import sys
from pathlib import Path

import torch
import trl
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

# Largest difference of a gradient, relative to the largest gradient of its tensor.
BOUND = 1e-4


def main(folder: Path) -> None:
    """Raises `SystemExit` if a gradient differs by more than the bound."""
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    settings = trl.SFTConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=len(rows), packing=False, max_length=None,
        assistant_only_loss=True, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], loss_type="nll",
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    model = trainer.model
    model.train()
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    ours = load_file(folder / "loss.safetensors")
    targets = int((batch["labels"] != -100).sum())
    print(
        f"TRL {trl.__version__}: {targets} targets, loss {loss.item():.6f}; "
        f"here {int(ours['targets'])}, {float(ours['loss']):.6f}"
    )
    assert targets == int(ours["targets"]), "other tokens are learnt"
    assert abs(loss.item() - float(ours["loss"])) <= BOUND
    gradients = load_file(folder / "gradient" / "model.safetensors")
    worst = 0.0
    for name, parameter in model.named_parameters():
        difference = (parameter.grad - gradients[name]).abs().max() / parameter.grad.abs().max()
        worst = max(worst, float(difference))
    print(f"largest relative difference of {len(gradients)} gradients: {worst:.2e}")
    if not worst <= BOUND:
        raise SystemExit(f"gradients differ by {worst:.2e}, more than {BOUND:.0e}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
