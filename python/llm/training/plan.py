"""The settings that a new run chooses for itself, from its text and its machine."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from llm.errors import ConfigError
from llm.models.costs import num_parameters
from llm.settings.run import RunConfig
from llm.training.precision import autocast_dtype
from llm.training.sizes import learning_rate_of, parameters_of_size, passes_of_batch, shape_of_size, tokens_per_step
from llm.training.utilization import cuda_peak

# Bytes of a token of a vocabulary that suits the text, before it is known.
_BYTES_PER_TOKEN = 2.6
# The time that the rule aims at for 1 MB of text on two cores; it grows with the cube root of the text.
_SECONDS_FOR_1_MB = 480.0
# Passes over the text that still teach a small model: the first four are worth almost as much as new text.
# Source: Muennighoff et al. 2023, "Scaling Data-Constrained Language Models", figure 1.
_MOST_EPOCHS = 5.0
# Tokens per parameter that compute is best spent on. Source: Hoffmann et al. 2022, "Training Compute-Optimal Large
# Language Models", table 3.
_TOKENS_PER_PARAMETER = 20.0
# A larger model learns a text by heart within these passes: parameters per token of a text of up to about 1 MB, and
# tokens trained on per parameter of a longer one.
_PARAMETERS_PER_TOKEN = 10.0
_REPEATED_PER_PARAMETER = 3.0
_SMALL = 3.5e6
# A smaller model hardly spells, so a slow machine trains on fewer tokens instead.
_SMALLEST_USEFUL = 2.5e6
# Operations per second of one thread in training, with and without native bf16.
_THREAD_FLOPS = {torch.bfloat16: 60e9, torch.float32: 30e9, torch.float16: 30e9}
_GPU_SHARE = 0.35
_UNKNOWN_GPU_PEAK = 20e12
_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
# Settings of a model that its weights were made for.
_OF_WEIGHTS = ("model.hidden_size", "model.max_position_embeddings")
_SMALLEST_VOCABULARY, _LARGEST_VOCABULARY = 512, 65_536
# Tokens of one forward and backward pass on a CPU and on a GPU; more need memory and save no time.
_PASS_TOKENS = (16_384, 65_536)
# A run that starts from trained weights changes them this much more slowly.
_CONTINUED_RATE = 0.1
# Adapters learn best at ten times the rate of the weights that they stand for.
# Source: Schulman et al. 2025, "LoRA Without Regret", figure 3.
_ADAPTER_RATE = 10.0


@dataclass(frozen=True)
class Plan:
    """Chooses each setting that nobody gave; what was given stays as it is.

    Attributes:
        given: Names of the settings that were given, as `section.field`.
        num_bytes: Bytes of the training text.
        flops: Operations per second that the machine is expected to reach in training.
        is_gpu: Whether the run is on a GPU.
    """

    given: frozenset[str]
    num_bytes: int
    flops: float
    is_gpu: bool = False

    @classmethod
    def of(cls, config: RunConfig, given: Collection[str], num_bytes: int, device: torch.device) -> "Plan":
        """Returns the plan for a text of `num_bytes` on `device`."""
        flops = expected_flops(device, autocast_dtype(config.training.precision, device))
        fixed = {*given, *(_OF_WEIGHTS if config.training.init_from else ())}
        return cls(frozenset(fixed), num_bytes, flops, device.type == "cuda")

    def before_tokenizing(self, config: RunConfig) -> RunConfig:
        """Returns `config` with the model's shape, the context and the vocabulary."""
        target = self._target_parameters(config)
        if not self._gives("data.context_length", "model.max_position_embeddings"):
            config = self._with(config, "model", max_position_embeddings=self._context(target))
        if config.tokenizer.path is not None or config.tokenizer.kind != "bpe" or config.training.init_from:
            return config
        width = shape_of_size(target, 0, config.model).hidden_size
        vocabulary = min(math.sqrt(self.num_bytes), target / (2 * width))
        power = 2 ** round(math.log2(max(1.0, vocabulary)))
        vocab_size = int(min(_LARGEST_VOCABULARY, max(_SMALLEST_VOCABULARY, power)))
        return self._with(config, "tokenizer", vocab_size=vocab_size)

    def after_tokenizing(self, config: RunConfig, num_tokens: int) -> RunConfig:
        """Returns `config` with shape, batch, steps, optimizer and cadence for a text of `num_tokens`."""
        config = self._shaped(config)
        config = self._with(config, "optimizer", **self._optimizer(config))
        total = self._total_tokens(config, num_tokens)
        config = self._batched(config, total, num_tokens)
        if not self._gives("training.epochs", "training.max_steps"):
            planned = max(1, round(total / (config.training.batch_size * config.context_length)))
            config = self._with(config, "training", max_steps=planned)
        if total > 2 * num_tokens and not self._gives("model.dropout"):
            config = self._with(config, "model", dropout=0.1)
        if (steps := config.training.max_steps) is not None:
            # Ten validations show the course of a run; a token's validation takes a third of the time of its training.
            config = self._with(config, "training", validate_every=max(1, steps // 10), log_every=max(1, steps // 100))
        return config

    def _gives(self, *names: str) -> bool:
        return any(name in self.given for name in names)

    def _with(self, config: RunConfig, section: str, **values: Any) -> RunConfig:
        """Returns `config` with those of `values` that were not given."""
        chosen = {name: value for name, value in values.items() if f"{section}.{name}" not in self.given}
        changed = msgspec.structs.replace(getattr(config, section), **chosen)
        return msgspec.structs.replace(config, **{section: changed})

    @property
    def _keeps_shape(self) -> bool:
        return self._gives(*(f"model.{name}" for name in (*_SHAPE, "head_dim", "experts", "latent", "attention")))

    def _budget(self) -> float:
        """Returns the operations of the whole run."""
        return self.flops * _SECONDS_FOR_1_MB * math.pow(self.num_bytes / 1e6, 1 / 3)

    def _target_parameters(self, config: RunConfig) -> float:
        """Returns the size of the model: the one given, or what the machine can train on this text in good time."""
        if config.training.size is not None:
            return parameters_of_size(config.training.size)
        tokens = max(1.0, self.num_bytes / _BYTES_PER_TOKEN)
        total = min(_MOST_EPOCHS * tokens, math.sqrt(self._budget() * _TOKENS_PER_PARAMETER / 6))
        by_time = max(_SMALLEST_USEFUL, self._budget() / (6 * total))
        by_text = min(_PARAMETERS_PER_TOKEN * tokens, max(_SMALL, total / _REPEATED_PER_PARAMETER))
        return max(50_000.0, min(by_time, by_text))

    def _context(self, target: float) -> int:
        """Returns the tokens of a sample: more for large models on a GPU, fewer where the text is short."""
        longest = 256 if not self.is_gpu else (1024 if target > 3e7 else 512)
        samples = self.num_bytes / _BYTES_PER_TOKEN / 32
        return int(2 ** min(math.log2(longest), max(4, math.floor(math.log2(max(1.0, samples))))))

    def _shaped(self, config: RunConfig) -> RunConfig:
        if self._keeps_shape and config.training.size is not None:
            raise ConfigError(
                f"`training.size` sets the model's shape, so none of {', '.join(f'model.{name}' for name in _SHAPE)} "
                "can be given, nor `training.init_from`"
            )
        if self._keeps_shape:
            return config
        shape = shape_of_size(self._target_parameters(config), config.model.vocab_size, config.model)
        return self._with(config, "model", **{name: getattr(shape, name) for name in _SHAPE})

    def _optimizer(self, config: RunConfig) -> dict[str, Any]:
        adapts = config.lora.rank is not None
        name = config.optimizer.name if self._gives("optimizer.name") else "adamw" if adapts else "muon"
        factor = _CONTINUED_RATE if config.training.init_from else 1.0
        rate = learning_rate_of(name, config.model.hidden_size) * factor * (_ADAPTER_RATE if adapts else 1.0)
        rate = float(f"{rate:.3g}")
        values = {"name": name, "learning_rate": rate, "schedule": "linear", "min_learning_rate_ratio": 0.0}
        return values if not self._gives("optimizer.schedule") else {"name": name, "learning_rate": rate}

    def _total_tokens(self, config: RunConfig, num_tokens: int) -> float:
        """Returns the tokens that the run trains on, each pass over the text counted."""
        training = config.training
        batch = training.batch_size * config.context_length
        if training.max_steps is not None and self._gives("training.batch_size"):
            return float(training.max_steps * batch)
        if self._gives("training.epochs"):
            return float(training.epochs * num_tokens)
        model = num_parameters(config.model)
        wanted = [_MOST_EPOCHS * num_tokens, _TOKENS_PER_PARAMETER * model]
        if training.size is None:
            wanted.append(self._budget() / (6 * model))
        return min(wanted)

    def _batched(self, config: RunConfig, total: float, num_tokens: int) -> RunConfig:
        samples = max(1, num_tokens // config.context_length)
        batch = max(1, min(samples, round(tokens_per_step(total) / config.context_length)))
        config = self._with(config, "training", batch_size=batch)
        passes = math.ceil(config.training.batch_size * config.context_length / _PASS_TOKENS[self.is_gpu])
        fitting = passes_of_batch(config.training.batch_size, passes)
        return self._with(config, "training", gradient_accumulation_steps=fitting)


def expected_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the operations per second that training is expected to reach, by threads or by the GPU's data sheet."""
    if device.type == "cuda":
        return _GPU_SHARE * (cuda_peak(torch.cuda.get_device_name(device), dtype) or _UNKNOWN_GPU_PEAK)
    return torch.get_num_threads() * _THREAD_FLOPS[dtype]


def describe(before: RunConfig, after: RunConfig) -> list[str]:
    """Returns a line for each section with settings that the plan changed."""
    lines = []
    for section in ("tokenizer", "model", "data", "training", "optimizer"):
        old, new = (msgspec.structs.asdict(getattr(config, section)) for config in (before, after))
        changed = [f"{name}={new[name]}" for name in new if new[name] != old[name]]
        if changed:
            lines.append(f"chosen {section}: {', '.join(changed)}")
    return lines
