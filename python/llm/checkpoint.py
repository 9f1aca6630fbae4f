"""Checkpoints and runs on disk: what every stage takes and returns.

A *checkpoint* is a directory with `config.json`, `model.safetensors`, `tokenizer.json` and `tokenizer_config.json` in
Hugging Face's layout. A *run* holds checkpoints under `checkpoints/step_00000500/`; whatever takes a checkpoint also
takes a run and uses its newest complete one.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm.errors import CheckpointError
from llm.models import DecoderModel, RegressionModel
from llm.models.families import Piece, family_named, family_of
from llm.models.gguf import GGUFModel, read_config
from llm.models.hf import check_shapes, empty_model, fill_model, weight_parts
from llm.models.tensor_files import INDEX, SINGLE, OnDisk, open_tensors
from llm.settings.merge import from_builtins
from llm.settings.model import ModelConfig
from llm.settings.run import GenerationConfig
from llm.settings.sampling import SamplingParams
from llm.tokenization import BaseTokenizer

T = TypeVar("T")
COMPLETE = "COMPLETE"
CHECKPOINTS = "checkpoints"
LATEST = "latest"
MAX_SHARD_BYTES = 5 * 10**9
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MAX_READS = 5


def resolve(path: str | os.PathLike[str]) -> Path:
    """The checkpoint that `path` means: the directory or GGUF file itself, or the newest complete one of a run.

    Raises:
        CheckpointError: Nothing there, or a run without a complete checkpoint.
    """
    directory = Path(path)
    if (directory / "config.json").is_file() or is_gguf(directory):
        return directory
    if not directory.is_dir():
        raise CheckpointError(
            f"no checkpoint at {str(path)!r}\nhint: pass a directory with a config.json, a run, or a .gguf file"
        )
    newest = newest_checkpoint(directory)
    if newest is None:
        raise CheckpointError(
            f"{str(path)!r} holds neither a config.json nor a complete checkpoint under {CHECKPOINTS}/\n"
            "hint: pass a checkpoint or run directory, as made by `llm train --out DIR`"
        )
    return newest


def read_checkpoint(path: str | os.PathLike[str], read: Callable[[Path], T]) -> T:
    """Calls `read` with the checkpoint that `path` means and returns the result.

    A run that trains meanwhile may remove that checkpoint; `read` is then called anew with the newest one. The marker
    of a checkpoint is removed first, so a marker that outlives `read` proves that every file was there.

    Raises:
        CheckpointError: No checkpoint, or the run removes each one before it is read.
    """
    for _ in range(_MAX_READS):
        checkpoint = resolve(path)
        is_of_run = checkpoint != Path(path)
        try:
            result = read(checkpoint)
        except Exception:
            if is_of_run and not (checkpoint / COMPLETE).is_file():
                continue
            raise
        if not is_of_run or (checkpoint / COMPLETE).is_file():
            return result
    raise CheckpointError(
        f"the run in {str(path)!r} removed {_MAX_READS} checkpoints while they were read\n"
        "hint: raise `training.keep_checkpoints` or `training.checkpoint_every`, or pass a copy of a checkpoint"
    )


def is_gguf(path: Path) -> bool:
    """Whether this is a file of llama.cpp's."""
    return path.suffix == ".gguf" and path.is_file()


def newest_checkpoint(run: Path) -> Path | None:
    """The complete checkpoint of `run` with the most steps, or `None`."""
    complete = [entry for entry in (run / CHECKPOINTS).glob("step_*") if (entry / COMPLETE).is_file()]
    return max(complete, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The optimizer step a run's checkpoint was taken after; -1 for another name."""
    match = re.fullmatch(r"step_(\d+)", checkpoint.name)
    return int(match.group(1)) if match else -1


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Gives a temporary directory that becomes `target` by a rename, or not at all.

    Every file is synced, the marker `COMPLETE` is written last, then the directory is renamed; a crash at any point
    leaves what was there before, and at most a `.tmp-…` or `.old-…` directory that nobody reads.
    """
    temporary = target.parent / f".tmp-{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            _sync(file)
        (temporary / COMPLETE).write_text("")
        _sync(temporary / COMPLETE)
        _sync(temporary)
        _swap(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _swap(temporary: Path, target: Path) -> None:
    """Puts `temporary` in the place of `target`, which is set aside first: a crash in between loses neither."""
    aside = target.parent / f".old-{target.name}"
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:
        if aside.exists():
            aside.rename(target)
        raise
    _sync(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def write_atomically(file: Path, content: str | bytes) -> None:
    """Replaces `file` in one step: readers see the old content or the new, never a part."""
    temporary = file.with_name(f".tmp-{file.name}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    _sync(temporary)
    temporary.replace(file)
    _sync(file.parent)


def write_model(
    directory: Path,
    model: nn.Module,
    tokenizer: BaseTokenizer | None,
    generation: GenerationConfig | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes weights, config and tokenizer into `directory` (use `atomic_directory` around it).

    Args:
        directory: Exists already.
        model: A `DecoderModel` or `RegressionModel`; saved in its own dtype.
        tokenizer: Saved beside a decoder, so that what was trained is what is served.
        generation: Sampling values for requests that name none.
        max_shard_bytes: Weights that are larger go into several files, with an index beside them.
    """
    if isinstance(model, DecoderModel):
        family = family_of(model.config)
        values = family.config_to(model.config)
        parts = weight_parts(model.state_dict(), model.config, family)
        _save_shards(directory, parts, max_shard_bytes)
    else:
        config = msgspec.to_builtins(model.config)
        values = {"architectures": ["RegressionModel"], "model_type": "llm_oxide", **config}
        save_tensors(directory / SINGLE, model.state_dict())
    values["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    if tokenizer is not None:
        ids = _special_ids(tokenizer)
        values |= ids
        _write_json(directory / "generation_config.json", ids | _generation_values(generation))
        tokenizer.save(directory)
    _write_json(directory / "config.json", values)


def _save_shards(directory: Path, parts: Iterator[Piece], max_bytes: int) -> None:
    """Writes pieces in files of at most `max_bytes` (one tensor at least); no more than one file's are copied."""
    shards: list[list[Piece]] = [[]]
    size = total = 0
    for piece in parts:
        if shards[-1] and size + piece.view.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size, total = size + piece.view.nbytes, total + piece.view.nbytes
    if len(shards) == 1:
        save_tensors(directory / SINGLE, {piece.name: piece.extract() for piece in shards[0]})
        return
    places: dict[str, str] = {}
    for index, shard in enumerate(shards, start=1):
        name = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        save_tensors(directory / name, {piece.name: piece.extract() for piece in shard})
        places |= {piece.name: name for piece in shard}
    _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def load_model(
    path: str | os.PathLike[str], dtype: str = "auto", device: str | torch.device = "cpu"
) -> DecoderModel | RegressionModel:
    """Builds the model of a checkpoint or run, in eval mode.

    Args:
        path: A checkpoint or run directory, or a GGUF file.
        dtype: `auto` (the checkpoint's own), `float32`, `bfloat16` or `float16`.
        device: Where the weights go.

    Raises:
        CheckpointError: Missing, torn or contradictory files, an unknown architecture or dtype.
    """
    directory = resolve(path)
    values, tensors = _opened(directory)
    place, wanted = torch.device(device), _dtype(dtype, values)
    if values.get("architectures") == ["RegressionModel"]:
        return _load_regressor(directory, values).to(device=place, dtype=wanted).eval()
    family = family_named(values)
    config = family.config_from(values)
    model = empty_model(config)
    check_shapes(tensors, model.state_dict(), config, family)
    fill_model(model, family, lambda name: tensors[name].load(wanted), dtype=wanted, device=place)
    return model.eval()


def model_config(path: str | os.PathLike[str]) -> ModelConfig:
    """The config of a checkpoint's decoder; its weights are not looked at.

    Raises:
        CheckpointError: Missing or contradictory values, an unknown architecture.
    """
    values = read_values(resolve(path))
    return family_named(values).config_from(values)


def read_values(checkpoint: Path) -> dict[str, Any]:
    """The values of `config.json`, or those that a GGUF file says in its own words.

    Raises:
        CheckpointError: Missing, not a JSON object, or no file of a model.
    """
    return read_config(checkpoint) if is_gguf(checkpoint) else read_json(checkpoint / "config.json")


def _opened(checkpoint: Path) -> tuple[dict[str, Any], Mapping[str, OnDisk]]:
    """Config and weights under Hugging Face's names, none of them read yet."""
    if is_gguf(checkpoint):
        model = GGUFModel(checkpoint)
        return model.config, model.tensors
    values = read_json(checkpoint / "config.json")
    return values, open_tensors(checkpoint)


def _load_regressor(directory: Path, values: Mapping[str, Any]) -> RegressionModel:
    known = {field.name for field in msgspec.structs.fields(ModelConfig)}
    model = RegressionModel(from_builtins({key: values[key] for key in values if key in known}, ModelConfig))
    model.load_state_dict(load_tensors(directory / "model.safetensors"))
    return model


def generation_defaults(path: str | os.PathLike[str]) -> dict[str, float]:
    """The sampling values a checkpoint asks for where a request is silent."""
    file = resolve(path) / "generation_config.json"
    values = read_json(file) if file.is_file() else {}
    return {key: values[key] for key in SamplingParams.__struct_fields__ if values.get(key) is not None}


def save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as safetensors; those that share memory are copied apart."""
    file.touch()
    mode = file.stat().st_mode  # safetensors writes 0600; others may read what the umask lets them
    own: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        place = flat.untyped_storage().data_ptr()
        is_apart = place not in places and flat.untyped_storage().nbytes() == flat.nbytes
        own[name] = flat if is_apart else flat.clone()
        places.add(place)
    save_file(own, file, metadata={"format": "pt"})
    file.chmod(mode)


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        CheckpointError: Missing, truncated or not safetensors.
    """
    try:
        return load_file(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing\nhint: copy the whole checkpoint directory") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is truncated or not a safetensors file ({file.stat().st_size} bytes): {error}\n"
            "hint: copy the checkpoint again, or use an older one of the run"
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: Missing, or not a JSON object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing\nhint: copy the whole checkpoint directory") from None
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} must hold a JSON object, got a {type(values).__name__}")
    return values


def _generation_values(generation: GenerationConfig | None) -> dict[str, Any]:
    given = msgspec.to_builtins(generation) if generation else {}
    return {"do_sample": True, **{key: value for key, value in given.items() if value is not None}}


def _special_ids(tokenizer: BaseTokenizer) -> dict[str, Any]:
    eos = list(tokenizer.eos_ids)
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": eos if len(eos) > 1 else next(iter(eos), None),
        "pad_token_id": tokenizer.pad_id,
    }


def _dtype(name: str, values: Mapping[str, Any]) -> torch.dtype:
    wanted = values.get("dtype") or values.get("torch_dtype") or "float32" if name == "auto" else name
    if not isinstance(wanted, str) or wanted not in DTYPES:
        raise CheckpointError(f"`dtype` must be one of auto, {', '.join(DTYPES)}, got {wanted!r}")
    return DTYPES[wanted]


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
