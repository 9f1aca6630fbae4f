"""Opens with PEFT what `adapters.py` wrote, without this package, and writes adapters of PEFT's own beside them."""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

LIMIT = 1e-4
# Of these, PEFT adapts the stacked experts as well, which this package leaves as they are.
WITH_EXPERTS = ("mixtral", "qwen2_moe")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
KINDS = {
    "lora": {"r": 4, "lora_alpha": 6},
    "patterns": {"r": 4, "rank_pattern": {"q_proj": 6, "c_attn": 6}, "alpha_pattern": {"v_proj": 12, "c_fc": 12}},
    "rslora": {"r": 8, "use_rslora": True},
    "dora": {"r": 4, "use_dora": True},
}


def base_of(folder: Path) -> torch.nn.Module:
    """Returns the model of a folder."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "base", attn_implementation="eager").eval()


def logits_of(model: torch.nn.Module, token_ids: np.ndarray) -> np.ndarray:
    """Returns the logits of one text."""
    with torch.no_grad():
        return model(torch.from_numpy(token_ids)[None]).logits[0].numpy()


def opened(folder: Path) -> float:
    """Returns the largest difference between the logits of PEFT and those stored."""
    expected = np.load(folder / "expected.npz")
    model = PeftModel.from_pretrained(base_of(folder.parent), str(folder)).eval()
    return float(np.abs(logits_of(model, expected["token_ids"]) - expected["logits"]).max())


def write(folder: Path, kind: str, token_ids: np.ndarray) -> None:
    """Writes an adapter with values that are not zero, and the logits that it gives here."""
    torch.manual_seed(5)
    targets = ATTENTION if folder.name in WITH_EXPERTS else "all-linear"
    config = LoraConfig(target_modules=targets, task_type="CAUSAL_LM", **KINDS[kind])
    model = get_peft_model(base_of(folder), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
            if "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    target = folder / f"peft-{kind}"
    model.save_pretrained(target)
    np.savez(target / "expected.npz", logits=logits_of(model, token_ids))


def main(root: Path) -> int:
    """Prints the differences; returns how many adapters give other logits, 1 if there are none."""
    transformers.logging.set_verbosity_error()
    found = sorted(file.parent for file in root.glob("*/*/expected.npz"))
    wrong = 0
    for folder in found:
        distance = opened(folder)
        wrong += distance > LIMIT
        print(f"  {folder.parent.name} {folder.name} in PEFT: logits differ by {distance:.2g}")
    for folder in sorted({each.parent for each in found}):
        for kind in KINDS:
            write(folder, kind, np.load(folder / "lora" / "expected.npz")["token_ids"])
    return wrong if found else 1


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]))))
