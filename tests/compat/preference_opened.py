"""Compares losses and gradients of TRL's trainers with those in a folder of `preference_written`.

TRL reads the rows itself for DPO, IPO and KTO. For SimPO and ORPO, whose trainers append tokens of their own, it gets
the ids. ORPO's likelihood is over the answer, as in the paper; TRL's trainer would add the prompt's.

Runs in an environment of its own: `python preference_opened.py DIR`.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

# Largest difference of a loss, and of a gradient relative to the largest gradient of its tensor.
BOUND = 1e-5


def main(folder: Path) -> None:
    """Raises `SystemExit` if a loss or a gradient differs by more than the bound."""
    worst = {loss: _compared(folder, loss) for loss in ("dpo", "ipo", "simpo", "orpo", "kto")}
    if bad := {loss: value for loss, value in worst.items() if not value <= BOUND}:
        raise SystemExit(f"losses or gradients differ by more than {BOUND:.0e}: {bad}")


def _compared(folder: Path, name: str) -> float:
    about = json.loads((folder / name / "about.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    model, loss = {"dpo": _dpo, "ipo": _dpo, "kto": _kto, "simpo": _simpo, "orpo": _orpo}[name](folder, about, model)
    loss.backward()
    ours = float(load_file(folder / name / "loss.safetensors")["loss"])
    gradients = load_file(folder / name / "gradient" / "model.safetensors")
    worst = abs(loss.item() - ours)
    for key, parameter in model.named_parameters():
        difference = (parameter.grad - gradients[key]).abs().max() / parameter.grad.abs().max().clamp_min(1)
        worst = max(worst, float(difference))
    print(f"{name}: TRL {loss.item():.7f}, here {ours:.7f}; largest difference {worst:.1e}")
    return worst


def _common(folder: Path, name: str) -> dict:
    return {
        "output_dir": str(folder / "trl" / name), "per_device_train_batch_size": 20, "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "report_to": [], "max_length": None, "remove_unused_columns": False,
    }  # fmt: skip


def _rows(file: Path) -> Dataset:
    return Dataset.from_list([json.loads(line) for line in file.read_text().splitlines()])


def _parts(folder: Path) -> tuple:
    reference = AutoModelForCausalLM.from_pretrained(folder / "reference", dtype=torch.float32)
    return reference, AutoTokenizer.from_pretrained(folder / "model")


def _dpo(folder: Path, about: dict, model: torch.nn.Module) -> tuple:
    reference, tokenizer = _parts(folder)
    kind = {"dpo": "sigmoid", "ipo": "ipo"}[about["loss"]]
    trainer = DPOTrainer(
        model=model, ref_model=reference, processing_class=tokenizer, train_dataset=_rows(folder / "pairs.jsonl"),
        args=DPOConfig(**_common(folder, about["loss"]), beta=about["beta"], loss_type=[kind]),
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    tokens = int(batch["completion_mask"].sum())
    assert tokens == sum(map(sum, about["answers"])), "other tokens are the answers"
    trainer.model.train()
    return trainer.model, trainer.compute_loss(trainer.model, batch)


def _kto(folder: Path, about: dict, model: torch.nn.Module) -> tuple:
    reference, tokenizer = _parts(folder)
    trainer = KTOTrainer(
        model=model, ref_model=reference, processing_class=tokenizer, train_dataset=_rows(folder / "labels.jsonl"),
        args=KTOConfig(
            **_common(folder, "kto"), beta=about["beta"], train_sampling_strategy="sequential",
            desirable_weight=about["wanted_weight"], undesirable_weight=about["unwanted_weight"],
        ),
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    return trainer.model, trainer.compute_loss(trainer.model, batch)


def _simpo(folder: Path, about: dict, model: torch.nn.Module) -> tuple:
    _, tokenizer = _parts(folder)
    trainer = CPOTrainer(
        model=model, processing_class=tokenizer, train_dataset=_texts(folder),
        args=CPOConfig(
            **_common(folder, "simpo") | {"max_length": 256}, loss_type="simpo", cpo_alpha=0.0, beta=about["beta"],
            simpo_gamma=about["gamma_ratio"] * about["beta"],
        ),
    )  # fmt: skip
    trainer.model.train()
    return trainer.model, trainer.get_batch_loss_metrics(trainer.model, _batch(about))[0]


def _orpo(folder: Path, about: dict, model: torch.nn.Module) -> tuple:
    _, tokenizer = _parts(folder)
    trainer = ORPOTrainer(
        model=model, processing_class=tokenizer, train_dataset=_texts(folder),
        args=ORPOConfig(**_common(folder, "orpo") | {"max_length": 256}, beta=about["beta"]),
    )  # fmt: skip
    trainer.model.train()
    chosen, rejected, *_ = trainer.concatenated_forward(trainer.model, _batch(about))
    odds_term = trainer.odds_ratio_loss(chosen, rejected)[0]
    return trainer.model, -chosen.mean() - odds_term.mean()


def _texts(folder: Path) -> Dataset:
    """The rows as texts, which the trainers want to have though the batch is given."""
    rows = (json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines())
    return Dataset.from_list([{name: turns[0]["content"] for name, turns in row.items()} for row in rows])


def _batch(about: dict) -> dict:
    longest = max(map(len, about["ids"]))
    found = {}
    for side, name in enumerate(("chosen", "rejected")):
        ids, answers = about["ids"][side::2], about["answers"][side::2]
        padded = [one + [0] * (longest - len(one)) for one in ids]
        labels = [
            [token if is_answer else -100 for token, is_answer in zip(one, own, strict=True)]
            + [-100] * (longest - len(one))
            for one, own in zip(ids, answers, strict=True)
        ]
        found[f"{name}_input_ids"] = torch.tensor(padded)
        found[f"{name}_attention_mask"] = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in ids])
        found[f"{name}_labels"] = torch.tensor(labels)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
