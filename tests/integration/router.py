"""HAProxy as `docker/replicas.yaml` runs it, on loopback, before two servers that a name server finds for it."""

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Self

import msgspec
import openai
import pytest
import yaml

from llm.serving import ServerConfig, ServerHandle, bind
from llm.settings.server import load_server_config
from tests.integration.server_client import DEADLINE_S, wait_until

DOCKER = Path(__file__).parents[2] / "docker"
CONFIG = DOCKER / "haproxy" / "haproxy.cfg"
NAMES = ("llm-1", "llm-2")
MODEL = "tiny"

needs_haproxy = pytest.mark.skipif(
    shutil.which("haproxy") is None or sys.platform != "linux",
    reason="needs HAProxy (apt-get install haproxy) and Linux, where all of 127.0.0.0/8 is loopback",
)

_PORT = "8000"
_IPV4, _INTERNET = 1, 1
_ANSWER, _NO_SUCH_NAME = 0x8180, 3
_NAME_OF_THE_QUESTION = b"\xc0\x0c"


def with_replaced(text: str, replacements: dict[str, str]) -> str:
    """Replaces texts that each must be there once."""
    for old, new in replacements.items():
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {CONFIG.name}"
        text = text.replace(old, new)
    return text


def settings_of_the_replicas() -> ServerConfig:
    """The settings that the compose file gives to each server."""
    service = yaml.safe_load((DOCKER / "replicas.yaml").read_text())["services"]["llm-1"]
    variables = {name: value for name, value in service["environment"].items() if name.startswith("LLM_SERVER__")}
    return load_server_config(None, {}, variables)


def of_session(session: object) -> dict[str, str]:
    return {"x-session-id": str(session)}


class NameServer:
    """Answers over UDP which IPv4 address a name has now, as the name server of a network of containers does."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        return self._socket.getsockname()

    def _serve(self) -> None:
        while True:
            query, peer = self._socket.recvfrom(4096)
            if not query:
                return
            self._socket.sendto(self._answer(query), peer)

    def _answer(self, query: bytes) -> bytes:
        labels, end = [], 12
        while size := query[end]:
            labels.append(query[end + 1 : end + 1 + size])
            end += 1 + size
        question = query[12 : end + 5]
        address = self.addresses.get(b".".join(labels).decode())
        is_found = address is not None and question[-4:] == struct.pack("!HH", _IPV4, _INTERNET)
        record = b""
        if is_found:
            record = _NAME_OF_THE_QUESTION + struct.pack("!HHIH", _IPV4, _INTERNET, 1, 4) + socket.inet_aton(address)
        status = _ANSWER if address is not None else _ANSWER | _NO_SUCH_NAME
        return query[:2] + struct.pack("!HHHHH", status, 1, int(is_found), 0, 0) + question + record

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.address)
        self._thread.join()
        self._socket.close()


class HAProxy:
    """The router with the project's configuration, in which only addresses, ports and the name server are others."""

    def __init__(self, directory: Path, name_server: NameServer, ports: dict[str, int]) -> None:
        file = directory / CONFIG.name
        host, port = name_server.address
        with bind("127.0.0.1", 0) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            places = {f"{name}:{_PORT}": f"{name}:{own}" for name, own in ports.items()}
            places |= {
                f"bind :{_PORT}": f"bind fd@{listener.fileno()}",
                "parse-resolv-conf": f"nameserver here {host}:{port}",
            }
            file.write_text(with_replaced(CONFIG.read_text(), places))
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the router
            self.process = subprocess.Popen(
                ["haproxy", "-db", "-f", file],
                pass_fds=(listener.fileno(),),
                stdout=self._log,
                stderr=subprocess.STDOUT,
            )

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0, timeout=DEADLINE_S)

    def log(self) -> str:
        return os.pread(self._log.fileno(), 1 << 20, 0).decode()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(DEADLINE_S)
        self._log.close()


class Replicas:
    """Two servers with the compose file's settings and the router before them.

    Args:
        checkpoint: What the servers serve.
        directory: Where the router's configuration is written.
    """

    def __init__(self, checkpoint: Path, directory: Path) -> None:
        self._checkpoint = checkpoint
        self._cleanup = contextlib.ExitStack()
        self._num_started = 0
        self.servers: dict[str, ServerHandle] = {}
        try:
            self.names = NameServer()
            self._cleanup.callback(self.names.close)
            for name in NAMES:
                self._start(name, 0)
            self.router = HAProxy(directory, self.names, {name: self._port(name) for name in NAMES})
            self._cleanup.callback(self.router.close)
            self.client = self.router.client()
        except BaseException:
            self.close()
            raise

    def _start(self, name: str, port: int) -> None:
        self._num_started += 1
        host = f"127.0.0.{1 + self._num_started}"
        own = {"host": host, "port": port, "served_model_name": (MODEL, name)}
        config = msgspec.structs.replace(settings_of_the_replicas(), **own)
        self.servers[name] = ServerHandle(self._checkpoint, config)
        self.names.addresses[name] = host

    def _port(self, name: str) -> int:
        return int(self.servers[name].url.rsplit(":", 1)[1])

    def start_anew(self, name: str) -> None:
        """Replaces a server that has ended by one under another address."""
        port = self._port(name)
        self.servers[name].close()
        self._start(name, port)

    def ready(self) -> Self:
        """Waits until the router sends requests to both servers; one that has ended is started anew before."""
        for name, server in [*self.servers.items()]:
            if server.process.poll() is not None:
                self.start_anew(name)
        for server in self.servers.values():
            server.wait_until_ready()
        wait_until(lambda: {self.home(f"ready-{number}") for number in range(16)} == {*NAMES})
        return self

    def home(self, session: str) -> str | None:
        """Which server gets the next request of a session, if any can.

        Ask and use the answer on one connection: the router may count a request on another one as in progress for some
        time after its answer has come, and hand the next to the server that seems to have less to do.
        """
        try:
            models = self.client.models.list(extra_headers=of_session(session))
        except openai.InternalServerError:
            return None
        return next(model.id for model in models if model.id in NAMES)

    def close(self) -> None:
        for server in self.servers.values():
            server.process.kill()
            server.close()
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
