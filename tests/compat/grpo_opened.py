"""Compares losses and gradients of TRL's GRPOTrainer and RLOOTrainer on fixed answers with those of `grpo_written`.

Runs in an environment of its own: `python grpo_opened.py DIR`.
"""

import json
import sys
from pathlib import Path

import torch
import trl
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

# Largest difference of a loss, and of a gradient relative to the largest gradient of its tensor.
BOUND, GRADIENT_BOUND = 1e-5, 1e-4


def padded(values: list[list[float]], left: bool, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of equal length, and 1 where a value is."""
    size = max(map(len, values))
    rows, masks = [], []
    for value in values:
        gap = [0] * (size - len(value))
        rows.append([*gap, *value] if left else [*value, *gap])
        masks.append([*gap, *[1] * len(value)] if left else [*[1] * len(value), *gap])
    return torch.tensor(rows, dtype=dtype), torch.tensor(masks)


def trainer_of(name: str, folder: Path, longest: int) -> trl.GRPOTrainer | trl.RLOOTrainer:
    """The trainer of a loss, with settings that mean those of `grpo_written`."""
    common = {
        "output_dir": str(folder / "trl"), "beta": 0.1, "epsilon": 0.2, "epsilon_high": 0.28, "use_cpu": True,
        "bf16": False, "gradient_checkpointing": False, "report_to": [], "max_completion_length": longest,
        "per_device_train_batch_size": 8, "num_generations": 4, "temperature": 1.0,
    }  # fmt: skip
    if name == "rloo":
        kind, settings = trl.RLOOTrainer, trl.RLOOConfig(**common)
    else:
        # Without the correction of a later paper, which TRL makes by default: the divergence is DeepSeekMath's.
        kind, settings = trl.GRPOTrainer, trl.GRPOConfig(**common, loss_type=name, use_bias_correction_kl=False)
    return kind(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 8),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )


def main(folder: Path) -> None:
    """Raises `SystemExit` if a loss or gradient differs by more than the bound."""
    written = json.loads((folder / "rollouts.json").read_text())
    columns = {key: [one[key] for one in written["rollouts"]] for key in written["rollouts"][0]}
    prompts, prompt_mask = padded(columns["prompt"], True, torch.int64)
    answers, answer_mask = padded(columns["answer"], False, torch.int64)
    old = padded(columns["old"], False, torch.float32)[0]
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": prompt_mask,
        "completion_ids": answers,
        "completion_mask": answer_mask,
        "old_per_token_logps": old,
        "old_logps": old.sum(1),
        "ref_per_token_logps": padded(columns["reference"], False, torch.float32)[0],
        "num_items_in_batch": answer_mask.sum(),
    }
    for name, ours in written["losses"].items():
        inputs["advantages"] = torch.tensor(written["advantages"][name], dtype=torch.float32)
        trainer = trainer_of(name, folder, written["longest"])
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        gradients = load_file(folder / f"gradient-{name}" / "model.safetensors")
        worst = max(
            float((parameter.grad - gradients[key]).abs().max() / parameter.grad.abs().max())
            for key, parameter in trainer.model.named_parameters()
        )
        print(
            f"TRL {trl.__version__}, {name}: loss {loss.item():.7f}, here {ours:.7f}; gradients differ by {worst:.1e}"
        )
        if abs(loss.item() - ours) > BOUND or not worst <= GRADIENT_BOUND:
            raise SystemExit(f"{name} differs by more than {BOUND:.0e}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
