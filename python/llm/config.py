"""Every setting of a run: its type, range and meaning, and how a file, the environment and arguments fill it.

The structs are the one source for validation, command-line help and documentation.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args, get_type_hints

import msgspec

from llm.errors import ConfigError
from llm.model_config import ModelConfig

T = TypeVar("T", bound=msgspec.Struct)
ENV_PREFIX = "LLM_"
# How text is cut into pieces that merges stay within; `llama3` and `gpt4` are the same.
PatternName: TypeAlias = Literal["gpt2", "gpt4", "cl100k", "o200k", "llama3", "qwen2", "whitespace"]


class TokenizerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which tokenizer a run uses, or how one is trained from its training text."""

    path: Annotated[str, msgspec.Meta(description="An existing tokenizer; null: train one.")] | None = None
    kind: Annotated[Literal["bpe", "character"], msgspec.Meta(description="What to train.")] = "bpe"
    vocab_size: Annotated[int, msgspec.Meta(ge=1, description="Entries of a tokenizer trained here.")] = 4096
    pattern: Annotated[PatternName, msgspec.Meta(description="How text is split before merging.")] = "gpt4"
    chat_template: Annotated[str, msgspec.Meta(description="A built-in one: `chatml` or `play`.")] | None = None


class DataConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run learns from."""

    kind: Annotated[Literal["text", "synthetic"], msgspec.Meta(description="Text files, or made-up samples.")] = "text"
    paths: Annotated[tuple[str, ...], msgspec.Meta(description="Files, directories or globs.")] = ()
    validation_fraction: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0, description="Held out from the end.")] = 0.1
    context_length: Annotated[int, msgspec.Meta(ge=1, description="Tokens a sample; null: the model's.")] | None = None
    num_samples: Annotated[int, msgspec.Meta(ge=1, description="Use or make this many samples; null: all.")] | None = (
        None
    )


class OptimizerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: Annotated[float, msgspec.Meta(gt=0, description="Peak, reached after warm-up.")] = 1e-3
    min_learning_rate_ratio: Annotated[float, msgspec.Meta(ge=0, le=1, description="Last rate / peak.")] = 0.1
    warmup_steps: Annotated[int, msgspec.Meta(ge=0, description="Steps from 0 to the peak.")] = 100
    weight_decay: Annotated[float, msgspec.Meta(ge=0, description="On matrices only, not norms.")] = 0.1
    beta1: Annotated[float, msgspec.Meta(ge=0, lt=1, description="Decay of the first moment.")] = 0.9
    beta2: Annotated[float, msgspec.Meta(ge=0, lt=1, description="Decay of the second moment.")] = 0.95
    eps: Annotated[float, msgspec.Meta(gt=0, description="Added to the root of the second moment.")] = 1e-8
    max_grad_norm: Annotated[float, msgspec.Meta(gt=0, description="Clip the global norm; null: never.")] | None = 1.0


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long, how wide and on what a run trains."""

    task: Annotated[Literal["lm", "regression"], msgspec.Meta(description="What is learnt.")] = "lm"
    epochs: Annotated[int, msgspec.Meta(ge=1, description="Passes over the data.")] = 1
    max_steps: (
        Annotated[
            int, msgspec.Meta(ge=1, description="Optimizer steps, instead of whole epochs; null: after the epochs.")
        ]
        | None
    ) = None
    batch_size: Annotated[int, msgspec.Meta(ge=1, description="Samples per optimizer step, over all devices.")] = 16
    gradient_accumulation_steps: Annotated[int, msgspec.Meta(ge=1, description="Forward passes per step.")] = 1
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1, description="Weights, order and dropout.")] = 0
    device: Annotated[str, msgspec.Meta(description="`auto`, `cpu`, `cuda`, `cuda:1`, …")] = "auto"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        msgspec.Meta(description="Of the products; weights stay fp32."),
    ] = "auto"
    attention_backend: Annotated[
        Literal["auto", "sdpa", "math", "flex", "flash"], msgspec.Meta(description="What computes attention.")
    ] = "auto"
    gradient_checkpointing: Annotated[
        bool, msgspec.Meta(description="Recompute blocks in the backward pass: less memory, more time.")
    ] = False
    log_every: Annotated[int, msgspec.Meta(ge=1, description="Steps between lines of the log.")] = 10
    validate_every: Annotated[int, msgspec.Meta(ge=1, description="Steps between validations.")] = 250
    checkpoint_every: Annotated[int, msgspec.Meta(ge=1, description="Steps between checkpoints.")] = 250
    keep_checkpoints: Annotated[int, msgspec.Meta(ge=1, description="Newest ones kept.")] = 3


class GenerationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling values saved with every checkpoint, for requests that name none; null: `SamplingParams`' own."""

    temperature: Annotated[float, msgspec.Meta(ge=0.0, description="0 is greedy.")] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0, description="Keep the k likeliest tokens; 0: all.")] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0.0, le=1.0, description="Keep the smallest set of this mass.")] | None = (
        None
    )


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides a training run; saved in its `run.json`."""

    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    generation: GenerationConfig = GenerationConfig()

    @property
    def context_length(self) -> int:
        """Tokens of one training sample."""
        return self.data.context_length or self.model.max_position_embeddings

    def __post_init__(self) -> None:
        """Checks the rules across sections."""
        if self.context_length > self.model.max_position_embeddings:
            raise ConfigError(
                f"`data.context_length` must be at most `model.max_position_embeddings` "
                f"({self.model.max_position_embeddings}), got {self.context_length}\n"
                "hint: shorten the context or raise `model.max_position_embeddings`"
            )
        if self.training.batch_size % self.training.gradient_accumulation_steps:
            raise ConfigError(
                f"`training.batch_size` must be a multiple of `training.gradient_accumulation_steps` "
                f"({self.training.gradient_accumulation_steps}), got {self.training.batch_size}"
            )


def validated(config: T) -> T:
    """Returns `config` with every field's type and range checked.

    Raises:
        ConfigError: A field breaks its declared type or range; the message names it, the value and what is allowed.
    """
    return from_builtins(msgspec.to_builtins(config), type(config))


def from_builtins(values: Any, kind: type[T]) -> T:
    """Builds a `kind` from plain dicts and lists.

    Raises:
        ConfigError: An unknown key (the nearest valid one is named), a wrong type or a value out of range.
    """
    _refuse_unknown_keys(values, kind, "")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise ConfigError(_explain(error, values, kind)) from None


def load_run_config(
    file: str | os.PathLike[str] | None = None,
    overrides: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
    base: RunConfig | None = None,
) -> RunConfig:
    """Merges defaults (or `base`), a TOML file, `LLM_SECTION__FIELD` variables, `section.field=value`: the last wins.

    Args:
        file: TOML with the sections of `RunConfig`.
        overrides: Texts like `training.epochs=3`; the value is read as TOML, else taken as text.
        environ: Variables to look at; the process's own by default.
        base: Settings to start from instead of the defaults.

    Raises:
        ConfigError: The file is missing or not TOML, a key is unknown, a value is of the wrong type or out of range.
    """
    values: dict[str, Any] = msgspec.to_builtins(base) if base else {}
    _merge(values, _read_toml(Path(file)) if file else {})
    for dotted, value in _from_environment(os.environ if environ is None else environ):
        _assign(values, dotted, value)
    for override in overrides:
        dotted, separator, text = override.partition("=")
        if not separator or "." not in dotted:
            raise ConfigError(f"a setting must look like `section.field=value`, got {override!r}")
        _assign(values, dotted.strip(), _parse_value(text.strip()))
    return from_builtins(values, RunConfig)


def suggest(name: str, valid: Iterable[str]) -> str:
    """A sentence's end that names the nearest valid word and all of them."""
    words = sorted(valid)
    nearest = difflib.get_close_matches(name, words, n=1, cutoff=0.5)
    guess = f"did you mean `{nearest[0]}`? " if nearest else ""
    return f"{guess}Valid: {', '.join(words)}"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no config file {str(path)!r}\nhint: pass the path of a TOML file") from None
    except OSError as error:
        raise ConfigError(f"the config {str(path)!r} can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, Any]]:
    """`LLM_TRAINING__EPOCHS=3` as `("training.epochs", 3)`; variables without `__` are not settings of a run."""
    found = []
    for name, text in sorted(environ.items()):
        if name.startswith(ENV_PREFIX) and "__" in name:
            dotted = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            found.append((dotted, _parse_value(text)))
    return found


def _parse_value(text: str) -> Any:
    if text in ("null", "none", "None"):
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _merge(values: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    for key in reversed(dotted.split(".")):
        value = {key: value}
    _merge(values, value)


def _refuse_unknown_keys(values: Any, kind: type[msgspec.Struct], prefix: str) -> None:
    """Raises for the first key that `kind` has no field for, naming the nearest valid one."""
    if not isinstance(values, Mapping):
        return
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in values.items():
        if key == kind.__struct_config__.tag_field:
            continue
        if key not in fields:
            raise ConfigError(f"unknown setting `{prefix}{key}`; {suggest(str(key), fields)}")
        for nested in _chosen(_structs_of(fields[key]), value, f"{prefix}{key}"):
            _refuse_unknown_keys(value, nested, f"{prefix}{key}.")


def _chosen(kinds: list[type[msgspec.Struct]], values: Any, name: str) -> list[type[msgspec.Struct]]:
    """Of the structs that a field may hold those that these values are for: where they have tags, the one named."""
    tags = {kind.__struct_config__.tag: kind for kind in kinds if kind.__struct_config__.tag_field is not None}
    if not tags or not isinstance(values, Mapping):
        return kinds
    tag_field = next(iter(tags.values())).__struct_config__.tag_field
    if values.get(tag_field) not in tags:
        allowed = ", ".join(map(str, tags))
        raise ConfigError(f"`{name}.{tag_field}` must be one of {allowed}, got {values.get(tag_field)!r}")
    return [tags[values[tag_field]]]


def _structs_of(kind: Any) -> list[type[msgspec.Struct]]:
    """The structs that a field of this type may hold."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [found for part in get_args(kind) for found in _structs_of(part)]


def _explain(error: msgspec.ValidationError, values: Any, kind: Any) -> str:
    """Words a message of msgspec as «what must be, got», with the value it saw and the words allowed."""
    message, _, path = str(error).partition(" - at `$")
    keys = re.findall(r"[^.\[\]`]+", path)
    for key in keys:
        values = values[int(key)] if isinstance(values, list | tuple) else values.get(key)
        kind = get_type_hints(kind).get(key) if isinstance(kind, type) else None
    where = f"`{'.'.join(keys)}`" if keys else "the settings"
    allowed = message.removeprefix("Expected ").split(", got ")[0]
    if message.startswith("Invalid enum value"):
        allowed = f"one of {', '.join(map(str, get_args(kind)))}"
    return f"{where} must be {allowed}, got {values!r}"
