"""`llm quantize`."""

from typing import Annotated, Any

import typer

from llm.cli.options import Path, with_options
from llm.settings.quantization import QuantizationConfig

EXAMPLE = "Example:  llm quantize runs/base --scheme int4 --calibration corpus.txt --out base-int4"


@with_options(QuantizationConfig)
def quantize(
    path: Path,
    out: Annotated[str, typer.Option(metavar="PATH", help="New directory, or .gguf file, to write.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", metavar="", help="Replace a checkpoint of llm, or a GGUF file, at --out.")
    ] = False,
    **settings: Any,
) -> None:
    """Quantise a checkpoint to 4 or 8 bits, for llm, transformers and vLLM (a directory) or llama.cpp (a GGUF file)."""
    from llm.quantizing import quantize as quantize_path

    report = quantize_path(path, out, overwrite=overwrite, **settings)
    before, after = (f"{size / 1e6:,.1f} MB" for size in (report.bytes_before, report.bytes_after))
    print(f"{report.path}: {before} → {after}, {report.bits_per_weight:.2f} bits a quantised weight")
    print(
        f"on {report.num_heldout_tokens:,} held-out tokens: KL {report.kl:.4f} nats a token, perplexity "
        f"{report.original_perplexity:.3f} → {report.perplexity:.3f}, same likeliest token {report.same_choice:.1%}"
    )


command = quantize
