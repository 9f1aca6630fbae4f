"""`quantize`: a checkpoint with weights of few bits."""

import os
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.progress import MofNCompleteColumn

from llm.checkpoint import Checkpoint, foreign_in, read_checkpoint
from llm.errors import InvalidArgumentError, LLMWarning
from llm.models.families import Piece
from llm.progress import progress_bar
from llm.quantizing.inputs import matrices, routers
from llm.quantizing.outputs import Directory, Facts, File, check_cuts, check_gguf, open_directory, open_file, refuse
from llm.quantizing.rounding import Rounding
from llm.quantizing.source import Source
from llm.quantizing.text import read_windows, say_text_is_general
from llm.quantizing.walk import Walk
from llm.settings.quantization import QuantizationConfig, quantization_config
from llm.settings.run import GenerationConfig


class QuantizationReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a quantisation.

    Attributes:
        path: What was written.
        settings: How.
        kl: Kullback-Leibler divergence from the original on held-out text, in nats a token.
        perplexity: Perplexity of the result on held-out text.
        original_perplexity: Perplexity of the original on the same text.
        same_choice: Share of the held-out tokens after which both models hold the same token for likeliest.
        num_heldout_tokens: Length of the held-out text.
        bits_per_weight: Mean bits of a quantised weight, scales included.
        bytes_before: Size of the original's weights on disk.
        bytes_after: Size of the result's weights on disk.
    """

    path: Path
    settings: QuantizationConfig
    kl: float
    perplexity: float
    original_perplexity: float
    same_choice: float
    num_heldout_tokens: int
    bits_per_weight: float
    bytes_before: int
    bytes_after: int


def quantize(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> QuantizationReport:
    """Writes a checkpoint with quantised weights. The output is complete, or nothing is written.

    Memory holds one layer at a time, beside the text's activations.

    Args:
        path: A checkpoint, a run or a GGUF file.
        out: A new directory (compressed-tensors, for transformers, vLLM and this package) or file (GGUF).
        overwrite: Whether to replace a checkpoint of this package, or a GGUF file, at `out`.
        progress: Whether to show a progress bar; None shows one on a terminal.
        **settings: Fields of `QuantizationConfig`, such as `scheme="int4"` and `calibration=("corpus.txt",)`.

    Returns:
        How far the result is from the original on text that was held out, and sizes.

    Raises:
        CheckpointError: The checkpoint is broken, or the scheme can't hold a matrix of it, which is named.
        ConfigError: A setting is unknown, out of range or contradicts another.
        DataError: The text can't be read or is too short.
        InvalidArgumentError: `out` exists, or holds other files than a checkpoint of this package.

    Example:
        >>> from llm import quantize
        >>> quantize("runs/demo", "demo-int4", calibration=("corpus.txt",)).kl  # doctest: +SKIP
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if isinstance(given.get("calibration"), str | os.PathLike):
        given["calibration"] = (given["calibration"],)
    if "calibration" in given:
        given["calibration"] = tuple(os.fspath(each) for each in given["calibration"])
    config = quantization_config(**given)
    target = Path(out)
    check_target(target, Path(path), config, overwrite=overwrite)
    return read_checkpoint(path, lambda found: _quantized(found, target, config, progress))


def check_target(target: Path, source: Path, config: QuantizationConfig, *, overwrite: bool) -> None:
    """Checks that the result may be written to `target`.

    Raises:
        InvalidArgumentError: It exists, is the source, has the ending of another format, or holds what is no checkpoint
            of this package though it may be replaced.
    """
    if config.is_gguf and target.suffix != ".gguf":
        raise InvalidArgumentError(f"`out` must end in .gguf for {config.stored}, got {str(target)!r}")
    if not config.is_gguf and target.suffix == ".gguf":
        raise InvalidArgumentError(
            f"`out` must be a directory for {config.stored}, got {str(target)!r}\nhint: `format` gguf writes a file"
        )
    if not target.exists():
        return
    ours, theirs = target.resolve(), source.resolve()
    if ours == theirs or ours in theirs.parents or theirs in ours.parents:
        raise InvalidArgumentError(
            f"`out` must not be the checkpoint that is read, nor hold it or be a part of it, got {str(target)!r}"
        )
    if not overwrite:
        raise InvalidArgumentError(
            f"`out` must be new, got {str(target)!r}, which exists\nhint: name another one, or add `overwrite`"
        )
    if config.is_gguf != target.is_file():
        what = "a directory" if config.is_gguf else "a file"
        raise InvalidArgumentError(f"`out` must be new or a checkpoint to replace, got {what}, {str(target)!r}")
    if not config.is_gguf and (foreign := foreign_in(target)):
        raise InvalidArgumentError(
            "`overwrite` replaces a checkpoint that this package wrote and nothing else, got "
            f"{str(target)!r}, which holds {', '.join(foreign[:5])}\nhint: name another one"
        )


@torch.no_grad()
def _quantized(
    checkpoint: Checkpoint, target: Path, config: QuantizationConfig, progress: bool | None
) -> QuantizationReport:
    source = Source(checkpoint)
    ignore = _check(source, target, config)
    windows = read_windows(config, source.tokenizer, source.config.max_position_embeddings)
    if not config.calibration:
        say_text_is_general(learns=config.chosen_method != "rtn")
    facts = Facts(dtype=source.dtype, ignore=ignore, generation=_generation(checkpoint))
    with progress_bar(MofNCompleteColumn(), wanted=progress) as bar:
        task = bar.add_task(f"{config.chosen_method}, layer", total=len(source.layers))
        with _open(target, source, config, facts) as output:
            rounding = Rounding(config, output)
            walk = Walk(output, rounding)
            compared = walk.run(windows, lambda: bar.advance(task))
    if rounding.num_unseen:
        warnings.warn(
            f"{rounding.num_unseen} matrices of experts saw no token of the calibration text and were rounded to the "
            "nearest; more `calibration_tokens` reach more experts",
            LLMWarning,
            stacklevel=2,
        )
    return QuantizationReport(
        path=target,
        settings=config,
        kl=compared.kl,
        perplexity=compared.perplexity,
        original_perplexity=compared.original_perplexity,
        same_choice=compared.same_choice,
        num_heldout_tokens=compared.num_tokens,
        bits_per_weight=8 * walk.num_bytes / walk.num_weights,
        bytes_before=_size(checkpoint.path),
        bytes_after=_size(target),
    )


def _open(
    target: Path, source: Source, config: QuantizationConfig, facts: Facts
) -> AbstractContextManager[Directory | File]:
    if config.is_gguf:
        return open_file(target, source, config)
    return open_directory(target, source, config, facts)


def _check(source: Source, target: Path, config: QuantizationConfig) -> list[str]:
    """Checks by shapes alone that all matrices fit; returns the linear layers that keep their type."""
    ignore = ["lm_head"]
    if config.is_gguf:
        check_gguf(source, target, config.stored)
        return ignore
    problems: list[str] = []
    for idx, block in enumerate(source.layers):
        for name in routers(block):
            parameter = block.get_parameter(f"{name}.weight")
            ignore += [_module(piece) for piece in source.pieces(f"layers.{idx}.{name}.weight", parameter)]
        for name, parameter in matrices(block).items():
            whole = f"layers.{idx}.{name}"
            problems += check_cuts(config, whole, parameter.shape, source.cuts(whole, parameter.shape))
    refuse(problems[:8], "`scheme` q8_0 or q4_0 makes a GGUF file, which takes any width")
    return ignore


def _module(piece: Piece) -> str:
    return piece.name.removesuffix(".weight")


def _generation(checkpoint: Checkpoint) -> GenerationConfig:
    known = {field.name for field in msgspec.structs.fields(GenerationConfig)}
    given = {name: value for name, value in checkpoint.generation_defaults().items() if name in known}
    return msgspec.convert(given, GenerationConfig)


def _size(path: Path) -> int:
    """Returns the bytes of the weights at a path."""
    if path.is_file():
        return path.stat().st_size
    files = (file for pattern in ("*.safetensors", "*.bin", "*.pt") for file in path.glob(pattern))
    return sum(file.stat().st_size for file in files)
