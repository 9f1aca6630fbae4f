"""`llm serve`."""

from typing import Annotated

import typer

from llm.cli.options import Dtype

EXAMPLE = "Example:  llm serve runs/demo --port 8000 --api-key secret"


def serve(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A checkpoint, run or .gguf file.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None, typer.Option(envvar="LLM_API_KEY", help="Key that clients must send; may be repeated.")
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="Name clients use; default: the directory's.")] = None,
    dtype: Dtype = "auto",
) -> None:
    """Serve a model behind OpenAI-compatible endpoints until Ctrl-C."""
    from llm.api import serve as serve_path
    from llm.serving import end_process

    serve_path(
        path,
        host=host,
        port=port,
        api_keys=tuple(api_key or ()),
        served_model_name=served_model_name,
        dtype=dtype,
    )
    end_process(0)


command = serve
