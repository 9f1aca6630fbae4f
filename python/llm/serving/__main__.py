"""The server as a bare module, `python -m llm.serving PATH`, with fewer options than `llm serve`."""

import argparse
import os
import socket
import sys

import msgspec

from llm.errors import LLMError
from llm.serving.handle import CONFIG_VARIABLE
from llm.serving.server import end_process, serve
from llm.settings.merge import from_builtins
from llm.settings.server import ServerConfig


def main() -> int:
    """Serves until stopped and returns the exit code; 2 means an error that the user can fix."""
    arguments = _parser().parse_args()
    try:
        inherited = socket.socket(fileno=arguments.fd) if arguments.fd is not None else None
        serve(arguments.path, _config(arguments), listener=inherited)
    except LLMError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llm.serving", description="Serve a checkpoint over OpenAI's API.")
    parser.add_argument("path", help="checkpoint or run directory")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on; 0 picks a free one")
    parser.add_argument("--api-key", action="append", dest="api_keys", help="API key to accept; repeat for several")
    parser.add_argument("--served-model-name", action="append", help="model name for clients; repeat for several")
    parser.add_argument("--dtype", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--log-level", help="debug, info, warning, error or critical")
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)  # a socket inherited from `ServerHandle`
    return parser


def _config(arguments: argparse.Namespace) -> ServerConfig:
    """Returns the settings from the environment, overridden by the given arguments."""
    config = msgspec.json.decode(os.environ.get(CONFIG_VARIABLE, "{}"))
    fields = {name: value for name, value in vars(arguments).items() if name in ServerConfig.__struct_fields__}
    return from_builtins(config | {name: value for name, value in fields.items() if value is not None}, ServerConfig)


if __name__ == "__main__":
    end_process(main())
