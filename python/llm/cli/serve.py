"""`llm serve`."""

from typing import Annotated, Any

import typer

from llm.cli.options import Path, speculation, with_options
from llm.settings.engine import EngineConfig
from llm.settings.kv_events import parsed_kv_events
from llm.settings.server import ServerConfig, load_server_config

EXAMPLE = "Example:  llm serve runs/demo --port 8000 --api-key secret"


@with_options(EngineConfig, skip={"speculative"}, flags={"kv_cache_memory_bytes": "--kv-cache-memory"}, fallback=True)
@with_options(
    ServerConfig,
    skip={"engine", "kv_events_config"},
    flags={"api_keys": "--api-key", "adapters": "--adapter"},
    envvars={"api_keys": "LLM_API_KEY"},
    fallback=True,
)
def serve(
    path: Path,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="TOML file of settings; variables and options override it.")
    ] = None,
    draft_model: Annotated[
        str | None, typer.Option(metavar="PATH", help="Smaller model of the same vocabulary that drafts tokens.")
    ] = None,
    ngram_drafts: Annotated[
        bool, typer.Option("--ngram-drafts", metavar="", help="Draft tokens from the request's text.")
    ] = False,
    num_draft_tokens: Annotated[int | None, typer.Option(min=1, max=64, help="Largest number of draft tokens.")] = None,
    kv_events_config: Annotated[str | None, typer.Option(metavar="JSON", help="vLLM's JSON for cache events.")] = None,
    **settings: Any,
) -> None:
    """Serve a model behind OpenAI-compatible endpoints until Ctrl-C."""
    from llm.serving import end_process
    from llm.serving import serve as serve_path

    count = {} if num_draft_tokens is None else {"num_draft_tokens": num_draft_tokens}
    drafts = speculation(draft_model, ngram_drafts=ngram_drafts, **count)
    if drafts is not None:
        settings["speculative"] = drafts
    if kv_events_config is not None:
        settings["kv_events_config"] = parsed_kv_events(kv_events_config)
    serve_path(path, load_server_config(config, settings))
    end_process(0)


command = serve
