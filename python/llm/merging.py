"""`merge`: an adapter and its base as one whole checkpoint."""

import copy
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec
import torch

from llm.checkpoint import Checkpoint, atomic_directory, read_checkpoint, resolve, write_model
from llm.errors import InvalidArgumentError, LLMWarning
from llm.export import check_exportable, generation_of
from llm.models import DecoderModel, ForwardContext, positions_of
from llm.quantizing.compare import Head, compare
from llm.quantizing.run import check_target, quantize
from llm.quantizing.stored import stored_settings
from llm.quantizing.text import read_windows
from llm.settings.quantization import QuantizationConfig, quantization_config

# Divergence from the unmerged model, in nats a token, above which rounding is worth a warning.
_LARGE_KL = 1e-3


class MergeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a merge.

    Attributes:
        path: The directory that was written.
        dtype: Number type of the merged weights.
        scheme: How they are quantised; None for plain numbers.
        kl: Kullback-Leibler divergence of the written weights from the base with its adapter apart, in nats a token, on
            held-out text; None if nothing was rounded.
        base_is_quantised: Whether the base's weights are quantised.
    """

    path: Path
    dtype: str
    scheme: str | None = None
    kl: float | None = None
    base_is_quantised: bool = False


@torch.no_grad()
def merge(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: str = "auto",
    scheme: str | None = None,
    calibration: Sequence[str | os.PathLike[str]] = (),
) -> MergeReport:
    """Writes an adapter and its base as one checkpoint. The output is complete, or nothing is.

    Weights of a quantised base are unpacked, because few bits cannot hold a small change, unless `scheme` is given.

    Args:
        path: A directory with an adapter, or a run that trained one.
        out: A new directory in Hugging Face's format, or a `.gguf` file for a scheme of GGUF.
        base: The base, where it is elsewhere than the adapter says; its weights must be those it was trained on.
        dtype: Number type of the weights; `auto` keeps the base's own.
        scheme: Quantises the result as `quantize` does: one of its schemes, or `base` for that of a quantised base.
        calibration: Text that quantising learns from and that the result is compared on; default: Shakespeare's plays.

    Returns:
        What was written, and how far rounding took it from the unmerged model.

    Raises:
        CheckpointError: Files are missing or damaged, the adapter is another base's, or the scheme can't be written.
        ConfigError: The scheme is unknown.
        InvalidArgumentError: `out` exists, or `path` holds no adapter.

    Example:
        >>> from llm.merging import merge
        >>> merge("runs/tuned", "merged").path  # doctest: +SKIP
    """
    target = Path(out)
    if target.exists():
        raise InvalidArgumentError(f"`out` must be new, got {str(target)!r}, which exists\nhint: name another one")
    texts = tuple(os.fspath(each) for each in calibration)
    return read_checkpoint(path, lambda found: _merged(found, target, base, dtype, (scheme, texts)))


def _merged(
    adapter: Checkpoint,
    target: Path,
    base: str | os.PathLike[str] | None,
    dtype: str,
    quantized: tuple[str | None, tuple[str, ...]],
) -> MergeReport:
    if not adapter.is_adapter:
        raise InvalidArgumentError(f"`path` must hold an adapter, got a whole model in {adapter}")
    if quantized[0] is None and target.suffix == ".gguf":
        raise InvalidArgumentError(
            f"`out` must be a directory without a `scheme`, got {target}\n"
            "hint: `scheme=q8_0` writes a GGUF file of merged weights; `llm export --format gguf` one of a directory"
        )
    place = adapter.base if base is None else resolve(base)
    settings = _settings(place, *quantized)
    if quantized[0] is not None:
        check_target(target, place.path, settings, overwrite=False)
    words = adapter if (adapter.path / "tokenizer.json").is_file() else place
    model = adapter.merged_into(place, dtype)
    check_exportable(model)
    number_type = str(model.dtype).removeprefix("torch.")
    kl: float | None = None
    if quantized[0] is not None:
        _write_quantized(target, model, words, settings)
        rounded = cast(DecoderModel, resolve(target).model("float32"))
        kl = _divergence(adapter.merged_into(place, "float32"), rounded, words, settings)
    else:
        if model.dtype != torch.float32:
            kl = _divergence(adapter.merged_into(place, "float32"), model, words, settings)
        with atomic_directory(target) as directory:
            write_model(directory, model, words.tokenizer(), generation_of(words))
    scheme = None if quantized[0] is None else settings.stored
    _warn_of_rounding(kl, scheme or number_type)
    return MergeReport(path=target, dtype=number_type, scheme=scheme, kl=kl, base_is_quantised=place.is_quantised)


def _settings(base: Checkpoint, scheme: str | None, calibration: tuple[str, ...]) -> QuantizationConfig:
    if scheme is None:
        return quantization_config(calibration=calibration)
    wanted = stored_settings(base) if scheme == "base" else {"scheme": scheme}
    return quantization_config(**wanted, calibration=calibration)


def _write_quantized(target: Path, model: DecoderModel, words: Checkpoint, settings: QuantizationConfig) -> None:
    """Writes the merged weights beside `target`, and quantises them from there, a layer in memory at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".llm-merge-") as folder:
        whole = Path(folder) / "whole"
        with atomic_directory(whole) as directory:
            write_model(directory, model, words.tokenizer(), generation_of(words))
        quantize(whole, target, **msgspec.structs.asdict(settings))


def _warn_of_rounding(kl: float | None, kind: str) -> None:
    if kl is not None and kl > _LARGE_KL:
        warnings.warn(
            f"rounding the merged weights to {kind} took the model {kl:.2g} nats a token from the unmerged one, more "
            f"than {_LARGE_KL:g}; `dtype` float32 without `scheme` keeps it, as does the adapter beside its base",
            LLMWarning,
            stacklevel=2,
        )


def _divergence(
    original: DecoderModel, rounded: DecoderModel, words: Checkpoint, settings: QuantizationConfig
) -> float:
    """Returns the divergence of the rounded weights from the original's on held-out text, in nats a token."""
    ids = read_windows(settings, words.tokenizer(), original.config.max_position_embeddings).heldout
    # Both compute in fp32, so that what differs is the weights.
    models = (original, rounded if rounded.dtype == torch.float32 else copy.deepcopy(rounded).float())
    streams = [torch.stack([_stream(model, window) for window in ids]) for model in models]
    heads = [Head(model.norm, model.lm_head.weight, model.config) for model in models]
    return compare((heads[0], heads[1]), (streams[0], streams[1]), ids).kl


def _stream(model: DecoderModel, ids: torch.Tensor) -> torch.Tensor:
    lengths = (len(ids),)
    return model.hidden_states(ids, positions_of(lengths), ForwardContext.for_sequences(lengths))
