"""`llm export`."""

from typing import Annotated, Literal

import typer

EXAMPLE = "Example:  llm export runs/demo --format gguf --quantization q8_0 --out demo.gguf"


def export(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Checkpoint, run or .gguf file.")],
    out: Annotated[str, typer.Option(metavar="PATH", help="New directory (hf) or file (gguf, onnx) to write.")],
    format_: Annotated[Literal["hf", "gguf", "onnx"], typer.Option("--format", help="Target format.")] = "hf",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Number type of the weights (hf, onnx).")
    ] = "auto",
    quantization: Annotated[
        Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q4_k", "q4_0"],
        typer.Option(help="Number type of the weights (gguf)."),
    ] = "f16",
) -> None:
    """Export a checkpoint for transformers (hf), llama.cpp (gguf) or ONNX Runtime (onnx)."""
    from llm.export import export as export_checkpoint

    print(export_checkpoint(path, out, format_, dtype=dtype, quantization=quantization))


command = export
