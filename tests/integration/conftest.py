"""One server of a tiny checkpoint, which the tests of this folder share."""

import openai
import pytest

from llm.inference import EngineConfig
from llm.serving import ServerConfig, ServerHandle
from tests.integration.server_client import write_checkpoint


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", "play")


@pytest.fixture(scope="package")
def server(checkpoint):
    with ServerHandle(checkpoint, ServerConfig(port=0, engine=EngineConfig(max_running_requests=64))) as handle:
        yield handle


@pytest.fixture(scope="package")
def client(server):
    return openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0, timeout=60)
