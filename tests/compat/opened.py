"""Opens what `written.py` wrote with the transformers at hand, without this package: the logits must be equal."""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

LIMIT = 1e-4


def distance(directory: Path) -> float:
    """Returns the largest difference between the logits of transformers and those stored."""
    expected = np.load(directory / "expected.npz")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(expected["token_ids"])[None]).logits[0].numpy()
    return float(np.abs(logits - expected["logits"]).max())


def main(root: Path) -> int:
    """Prints what differs; returns how many models do, 1 if there are none."""
    transformers.logging.set_verbosity_error()
    # transformers 4 lacks the factor on the scores that DeepSeek published: see the models page of the docs.
    # Ministral 3 came with transformers 5.
    skipped = {"deepseek_v2-yarn", "ministral3"} if transformers.__version__.startswith("4.") else set()
    distances = {each.name: distance(each) for each in sorted(root.iterdir()) if each.name not in skipped}
    wrong = {name: found for name, found in distances.items() if found > LIMIT}
    print(f"transformers {transformers.__version__}: {len(distances) - len(wrong)} of {len(distances)} models equal")
    for name, found in wrong.items():
        print(f"  {name}: logits differ by {found:.2g}")
    return len(wrong) if distances else 1


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]))))
