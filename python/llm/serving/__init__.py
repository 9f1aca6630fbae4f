"""An HTTP server that implements OpenAI's API for one checkpoint.

`serve(path, ServerConfig(port=8000))` runs the server in this process, `ServerHandle(path)` runs it in a child process,
and `create_app` returns the bare ASGI app.
"""

from llm.serving.app import App, create_app
from llm.serving.handle import ServerHandle
from llm.serving.server import bind, end_process, run, serve
from llm.settings.server import ServerConfig

__all__ = ["App", "ServerConfig", "ServerHandle", "bind", "create_app", "end_process", "run", "serve"]
