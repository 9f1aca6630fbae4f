"""`llm merge`."""

import sys
from typing import Annotated, Literal

import typer

EXAMPLE = "Example:  llm merge runs/tuned --out merged"


def merge(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Directory of an adapter, or run that trained one.")],
    out: Annotated[str, typer.Option(metavar="PATH", help="New directory, or .gguf file, to write.")],
    base: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The adapter's base, where it is elsewhere than the adapter says."),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Number type of the weights.")
    ] = "auto",
    scheme: Annotated[
        str | None,
        typer.Option(help="Quantise the result: base (as a quantised base is), or a scheme of `llm quantize`."),
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Text to quantise and compare on; default: Shakespeare's plays."),
    ] = None,
) -> None:
    """Write an adapter and its base as one checkpoint in Hugging Face's format, or as a quantised one."""
    from llm.merging import merge as merge_path

    report = merge_path(path, out, base=base, dtype=dtype, scheme=scheme, calibration=calibration or ())
    kl = "" if report.kl is None else f", KL from the unmerged model {report.kl:.2g} nats a token"
    print(f"{report.path}: {report.scheme or report.dtype}{kl}")
    if report.base_is_quantised and report.scheme is None:
        print("note: the base is quantised; `--scheme base` writes the result so as well", file=sys.stderr)


command = merge
