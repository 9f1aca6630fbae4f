"""Export of checkpoints for other programs."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import msgspec
import torch
from torch import Tensor, nn

from llm.checkpoint import Checkpoint, atomic_directory, read_checkpoint, write_model
from llm.errors import CheckpointError, InvalidArgumentError, MissingExtraError
from llm.models import DecoderModel, ForwardContext
from llm.models.biases import with_biases
from llm.models.families import FAMILIES, family_of
from llm.models.gguf import QUANTIZATIONS, write_gguf_model
from llm.models.hf import weights_to_hf
from llm.settings.run import GenerationConfig
from llm.tokenization import BaseTokenizer

Format: TypeAlias = Literal["hf", "gguf", "onnx"]


def export(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    format: Format = "hf",
    *,
    dtype: str = "auto",
    quantization: str = "f16",
) -> Path:
    """Writes a checkpoint for other programs. The output is complete, or nothing is written.

    Args:
        path: A checkpoint, a run or a GGUF file.
        out: A new directory for `hf`, a new file for the other formats.
        format: `hf` for `transformers`, `gguf` for llama.cpp, `onnx` for ONNX Runtime (one sequence of any length,
            `input_ids` [1, T] to `logits` [1, T, V]).
        dtype: Number type of the weights in `hf` and `onnx`; `auto` keeps the checkpoint's own.
        quantization: Number type of the weights in `gguf`: f32, f16, bf16, q8_0, q6_k, q4_k or q4_0.

    Returns:
        The path that was written.

    Raises:
        CheckpointError: The checkpoint is broken, or the format cannot represent a component, which is named.
        InvalidArgumentError: The format or quantization is unknown, or `out` exists.
        MissingExtraError: The packages that write ONNX are not installed.
    """
    if format not in get_args(Format):
        raise InvalidArgumentError(f"`format` must be one of {', '.join(get_args(Format))}, got {format!r}")
    if format == "gguf" and quantization not in QUANTIZATIONS:
        raise InvalidArgumentError(f"`quantization` must be one of {', '.join(QUANTIZATIONS)}, got {quantization!r}")
    target = Path(out)
    if target.exists():
        raise InvalidArgumentError(f"`out` must be new, got {str(target)!r}, which exists\nhint: name another one")
    wanted = "float32" if format == "gguf" else dtype
    if format == "onnx":
        _write_onnx(read_checkpoint(path, lambda found: _decoder(found, wanted)), _in_directory(target))
        return target
    model, tokenizer, generation = read_checkpoint(
        path, lambda found: (_decoder(found, wanted), found.tokenizer(), generation_of(found))
    )
    if format == "gguf":
        _write_gguf(model, tokenizer, _in_directory(target), quantization)
    else:
        with atomic_directory(target) as directory:
            write_model(directory, model, tokenizer, generation)
    return target


def _decoder(checkpoint: Checkpoint, dtype: str) -> DecoderModel:
    model = checkpoint.model(dtype)
    if not isinstance(model, DecoderModel):
        raise CheckpointError(f"{checkpoint} holds a {type(model).__name__}; export is for decoders")
    model = with_biases(model)
    check_exportable(model)
    return model


def generation_of(checkpoint: Checkpoint) -> GenerationConfig:
    """Returns a checkpoint's sampling values for requests that name none."""
    known = {field.name for field in msgspec.structs.fields(GenerationConfig)}
    given = {name: value for name, value in checkpoint.generation_defaults().items() if name in known}
    return msgspec.convert(given, GenerationConfig)


def _in_directory(file: Path) -> Path:
    """`file`, whose directory exists from here on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def check_exportable(model: DecoderModel) -> None:
    """Checks that a family can represent the model.

    Raises:
        CheckpointError: No family can; the message lists what the nearest one lacks.
    """
    if family_of(model.config).model_type != "llm_oxide":
        return
    foreign = [family for family in FAMILIES.values() if family.model_type != "llm_oxide"]
    lacks = {family.model_type: family.difference(model.config) for family in foreign}
    # A family that can't even be asked gives one line, which is no field: it is further away than any other.
    nearest = min(lacks, key=lambda name: (not all(" = " in line for line in lacks[name]), len(lacks[name])))
    raise CheckpointError(
        f"no family of models has this mix of components; the nearest is {nearest}, but for:\n  "
        + "\n  ".join(lacks[nearest])
    )


def _write_gguf(model: DecoderModel, tokenizer: BaseTokenizer, target: Path, quantization: str) -> None:
    family = family_of(model.config)
    tensors: Mapping[str, Tensor] = weights_to_hf(model.state_dict(), model.config, family)
    write_gguf_model(target, family.config_to(model.config), tensors, tokenizer, quantization=quantization)


class _OneSequence(nn.Module):
    """The decoder behind the signature that ONNX programs expect."""

    def __init__(self, model: DecoderModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """Maps ids `[1, T]` to logits `[1, T, V]`."""
        length = input_ids.shape[1]
        context = ForwardContext.for_sequences((length,), attention_backend="math")
        logits: Tensor = self.model(input_ids[0], torch.arange(length), context)
        return logits.unsqueeze(0)


def _write_onnx(model: DecoderModel, target: Path) -> None:
    if model.config.mlp == "moe":
        raise CheckpointError(
            "ONNX export does not support mixtures of experts: the number of tokens per expert varies at run time"
        )
    example = torch.zeros(1, 8, dtype=torch.int64)
    try:
        program = torch.onnx.export(
            _OneSequence(model).eval(),
            (example,),
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_shapes={
                "input_ids": {1: torch.export.Dim("length", min=2, max=model.config.max_position_embeddings)}
            },
            dynamo=True,
            verbose=False,
        )
    except (ImportError, ModuleNotFoundError) as error:
        raise MissingExtraError(
            f"ONNX export needs `onnx` and `onnxscript`: {error}\nhint: pip install 'llm-oxide[onnx]'"
        ) from error
    if program is None:
        raise CheckpointError("PyTorch returned no ONNX program for this model")
    temporary = target.with_name(f".tmp-{target.name}")
    try:
        program.save(temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
