"""A server in a child process, for demos and tests."""

import os
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from llm.errors import ServerError
from llm.serving.server import bind, url_of
from llm.settings.merge import validated
from llm.settings.server import ServerConfig

CONFIG_VARIABLE = "LLM_SERVER_CONFIG"

_POLL_S = 0.05
_PROBE_TIMEOUT_S = 5.0
_KILL_AFTER_S = 10.0
_SHOWN_LOG_CHARS = 2000


class ServerHandle:
    """Runs `python -m llm.serving` as a child process.

    As a context manager, the server is ready on entry and stopped on exit. The handle binds the port and the child
    inherits it, so the port number is known at once and no other process can take it meanwhile. The child gets API keys
    through its environment, never through its command line, which every user of the machine can read. Inheriting a
    socket this way needs Linux or macOS.

    Raises:
        ConfigError: A setting is out of range.
        ServerError: The port is taken.
    """

    def __init__(self, path: str | Path, config: ServerConfig | None = None) -> None:
        self._config = validated(config or ServerConfig(port=0))
        self._opener = _opener(self._config.tls_certificate)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        with bind(self._config.host, self._config.port) as listener:
            self.url = url_of(listener, self._config)
            descriptor = listener.fileno()
            command = [sys.executable, "-m", "llm.serving", str(path), "--fd", str(descriptor)]
            environment = os.environ | {CONFIG_VARIABLE: msgspec.json.encode(self._config).decode()}
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command, env=environment, pass_fds=(descriptor,), stdout=self._log, stderr=subprocess.STDOUT
            )

    @property
    def base_url(self) -> str:
        """Returns the `base_url` for OpenAI's clients."""
        return f"{self.url}/v1"

    def wait_until_ready(self, timeout_s: float = 120.0) -> Self:
        """Waits until `/health` reports that the model is ready.

        Raises:
            ServerError: The server exited or isn't ready in time; the message includes the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while not self._is_healthy():
            if self._exit_code(_POLL_S) is not None:
                raise ServerError(f"the server exited with code {self.process.returncode}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ServerError(f"the server isn't ready after {timeout_s:g} s:\n{self.log_tail()}")
        return self

    def terminate(self) -> int:
        """Stops the server, waits for it to exit and returns its exit code."""
        self.process.terminate()
        if self._exit_code(self._config.drain_delay_s + self._config.grace_s + _KILL_AFTER_S) is None:
            self.process.kill()
        return self.process.wait()

    def log_tail(self) -> str:
        """Returns the end of the server's output."""
        size = os.fstat(self._log.fileno()).st_size
        offset = max(0, size - _SHOWN_LOG_CHARS)
        return os.pread(self._log.fileno(), _SHOWN_LOG_CHARS, offset).decode(errors="replace")

    def _exit_code(self, timeout_s: float) -> int | None:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def _is_healthy(self) -> bool:
        try:
            with self._opener.open(f"{self.url}/health", timeout=_PROBE_TIMEOUT_S) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def close(self) -> None:
        """Stops the server and deletes its log."""
        self.terminate()
        self._log.close()

    def __enter__(self) -> Self:
        try:
            return self.wait_until_ready()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _opener(certificate: str | None) -> urllib.request.OpenerDirector:
    """Ignores proxies set in the environment, which would look for 127.0.0.1 on their own machine."""
    context = None
    if certificate is not None and Path(certificate).is_file():
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False  # the certificate names the server's public host, not this address
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
