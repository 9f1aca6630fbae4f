"""Exchanges adapters with PEFT: `write` writes some for `adapters_peft.py`, `read` opens those that it wrote."""

import sys
from pathlib import Path

import numpy as np
import torch

from llm.checkpoint import AdapterLayout, Checkpoint, write_model
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.models.adapters import adapt, adapters_of
from llm.models.families import FAMILIES
from llm.settings.run import GenerationConfig, LoraConfig
from tests.compat.written import FAMILY_VALUES, PLAIN, SMALL

LIMIT = 1e-4
FAMILIES_TRIED = ("llama", "qwen2", "gemma2", "gpt2", "mixtral", "qwen2_moe", "cohere2")
KINDS = {
    "lora": LoraConfig(rank=4, alpha=6),
    "rslora": LoraConfig(rank=8, use_rslora=True),
    "dora": LoraConfig(rank=4, use_dora=True),
}


def logits_of(model: torch.nn.Module) -> np.ndarray:
    """Returns the logits of a fixed text."""
    with torch.no_grad():
        return model(IDS, positions_of((len(IDS),)), ForwardContext.for_sequences((len(IDS),))).numpy()


IDS = torch.arange(3, 33)


def write(root: Path) -> int:
    """Writes each family's model with an adapter of each kind, and the logits that they give here."""
    for name in FAMILIES_TRIED:
        family = FAMILIES[name]
        config = family.config_from(SMALL | (FAMILY_VALUES | PLAIN)[name])
        torch.manual_seed(1)
        base = root / name / "base"
        base.mkdir(parents=True)
        write_model(base, DecoderModel(config).eval(), None)
        for kind, settings in KINDS.items():
            _write_adapter(base, root / name / kind, settings)
    return 0


def _write_adapter(base: Path, folder: Path, settings: LoraConfig) -> None:
    model = Checkpoint(base).model("float32")
    adapt(model, settings)
    torch.manual_seed(2)
    with torch.no_grad():
        for _, _, adapter in adapters_of(model):
            adapter.lora_b.normal_(0, 0.1)
            if adapter.magnitude is not None:
                adapter.magnitude.mul_(torch.rand_like(adapter.magnitude) + 0.5)
    layout = AdapterLayout(model, settings, Checkpoint(base))
    folder.mkdir()
    for file in layout.files:
        layout.write_weights(folder, file, layout.state())
    layout.write_description(folder, None, GenerationConfig())
    np.savez(folder / "expected.npz", token_ids=IDS.numpy(), logits=logits_of(model.eval()))


def read(root: Path) -> int:
    """Opens what PEFT wrote; returns how many adapters give other logits here, 1 if there are none."""
    found = sorted(root.glob("*/peft-*"))
    wrong = 0
    for folder in found:
        expected = np.load(folder / "expected.npz")["logits"]
        distance = float(np.abs(logits_of(Checkpoint(folder).model("float32")) - expected).max())
        wrong += distance > LIMIT
        print(f"  PEFT's {folder.parent.name} {folder.name}: logits differ by {distance:.2g}")
    return wrong if found else 1


if __name__ == "__main__":
    sys.exit(bool({"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))))
