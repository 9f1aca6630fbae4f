"""`llm serve`."""

from typing import TYPE_CHECKING, Annotated

import typer

from llm.cli.options import Dtype, size_in_bytes
from llm.errors import ConfigError

if TYPE_CHECKING:
    from llm.inference import DraftSpeculation, NgramSpeculation

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
    max_model_len: Annotated[int | None, typer.Option(help="Longest context; default: the model's.")] = None,
    max_running_requests: Annotated[int | None, typer.Option(help="Requests generated at once.")] = None,
    max_batch_tokens: Annotated[int | None, typer.Option(help="Tokens computed in a step.")] = None,
    kv_cache_memory: Annotated[
        int | None, typer.Option(parser=size_in_bytes, metavar="SIZE", help="Such as 2GiB.")
    ] = None,
    no_prefix_caching: Annotated[
        bool, typer.Option("--no-prefix-caching", help="Compute each prompt as a whole.")
    ] = False,
    backend: Annotated[str, typer.Option(help="auto, kernels or torch.")] = "auto",
    no_cuda_graphs: Annotated[
        bool, typer.Option("--no-cuda-graphs", help="On a GPU start sooner and decode slower.")
    ] = False,
    num_threads: Annotated[int | None, typer.Option(help="Of the CPU kernels; default: all.")] = None,
    draft_model: Annotated[
        str | None, typer.Option(metavar="PATH", help="A smaller model of the same vocabulary that guesses tokens.")
    ] = None,
    ngram_drafts: Annotated[
        bool, typer.Option("--ngram-drafts", help="Guess tokens from what came before in the request.")
    ] = False,
    num_draft_tokens: Annotated[
        int | None, typer.Option(min=1, max=64, help="Tokens guessed at most; default: 4.")
    ] = None,
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
        max_model_len=max_model_len,
        max_running_requests=max_running_requests,
        max_batch_tokens=max_batch_tokens,
        kv_cache_memory_bytes=kv_cache_memory,
        enable_prefix_caching=not no_prefix_caching,
        backend=backend,
        enable_cuda_graphs=not no_cuda_graphs,
        num_threads=num_threads,
        speculative=_speculation(draft_model, num_draft_tokens, ngram_drafts=ngram_drafts),
    )
    end_process(0)


def _speculation(
    draft_model: str | None, num_draft_tokens: int | None, *, ngram_drafts: bool
) -> "DraftSpeculation | NgramSpeculation | None":
    from llm.inference import DraftSpeculation, NgramSpeculation

    if draft_model is not None and ngram_drafts:
        raise ConfigError("guesses come from `--draft-model` or `--ngram-drafts`, got both\nhint: leave one out")
    count = {} if num_draft_tokens is None else {"num_draft_tokens": num_draft_tokens}
    if draft_model is not None:
        return DraftSpeculation(path=draft_model, **count)
    if ngram_drafts:
        return NgramSpeculation(**count)
    if count:
        raise ConfigError("`--num-draft-tokens` needs `--draft-model` or `--ngram-drafts`, got neither")
    return None


command = serve
