"""Writes the estimates at the head of the example configs: `python tools/config_estimates.py`.

The lines stand between `# Estimate:` and the first blank line of a file of `examples/configs/`.
"""

import re
import sys
from pathlib import Path

import msgspec
import torch

from llm.models.costs import estimate_memory, flops_per_token, num_parameters
from llm.settings.merge import load_run_config
from llm.settings.run import RunConfig
from llm.training.plan import expected_flops
from llm.training.utilization import cuda_peak

CONFIGS = Path(__file__).parents[1] / "examples" / "configs"
_MARKED = re.compile(r"# Estimate:.*?\n(?=\n)", re.DOTALL)
# Vocabulary of a text in English with a character for each token.
_CHARACTERS = 67
_MFU = 0.4
_THREADS = 2


def with_vocabulary(config: RunConfig) -> RunConfig:
    """Returns `config` with the vocabulary that its tokenizer will have."""
    size = _CHARACTERS if config.tokenizer.kind == "character" else config.tokenizer.vocab_size
    model = msgspec.structs.replace(config.model, vocab_size=config.model.vocab_size or size)
    return msgspec.structs.replace(config, model=model)


def estimate(config: RunConfig) -> str:
    """Returns the lines about a config's memory and time."""
    config = with_vocabulary(config)
    training, length = config.training, config.context_length
    samples = -(-training.batch_size // training.gradient_accumulation_steps)
    tokens = (training.max_steps or 0) * training.batch_size * length
    operations = tokens * flops_per_token(config.model, length)
    cpu = operations / (_THREADS * expected_flops(torch.device("cpu"), torch.bfloat16) / torch.get_num_threads())
    gpu = operations / (_MFU * (cuda_peak("H100", torch.bfloat16) or 0.0))
    memory = estimate_memory(config.model, samples, length, optimizer=config.optimizer.name)
    return (
        f"# Estimate: {_short(num_parameters(config.model))} parameters, {_short(tokens)} tokens, "
        f"{_short(operations)} operations.\n"
        f"# Memory on one device, {samples} samples a pass in bf16: {_short(memory.total)}B, of which "
        f"{_short(memory.activations)}B are activations.\n"
        f"# Time: {_time(cpu)} on {_THREADS} cores with bf16, {_time(gpu)} on one H100 at {100 * _MFU:.0f} % of its "
        "peak.\n"
    )


def _short(number: float) -> str:
    for power, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= power:
            return f"{number / power:.3g} {unit}"
    return f"{number:.3g} "


def _time(seconds: float) -> str:
    for length, unit in ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} seconds"


def with_estimate(text: str, lines: str) -> str:
    """Returns a config's text with new lines of estimates."""
    return _MARKED.sub(lambda _: lines, text, count=1)


def main() -> None:
    """Writes the estimates of all example configs and prints the files that changed."""
    for file in sorted(CONFIGS.glob("*.toml")):
        old = file.read_text(encoding="utf-8")
        new = with_estimate(old, estimate(load_run_config(file, environ={})))
        if new != old:
            file.write_text(new, encoding="utf-8")
            sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    main()
