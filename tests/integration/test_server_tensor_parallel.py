"""A server whose model is split over two processes: its answers, and how they end together."""

import os
import signal
import time
from pathlib import Path

import msgspec
import openai
import pytest

from llm import LLM, SamplingParams
from llm.inference import EngineConfig
from llm.serving import ServerConfig, ServerHandle
from tests.integration.server_client import wait_until
from tests.small_families import small
from tests.unit.test_tensor_parallel import VOCABULARY, write_checkpoint
from tests.unit.test_tensor_parallel_ranks import ranks_of

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of child processes")
PROMPTS = ["To be", "First Citizen: Before we proceed", "O"]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
ENDS_WITHIN_S = 20.0


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tiny_tokenizer):
    config = msgspec.structs.replace(small("llama"), vocab_size=VOCABULARY, max_position_embeddings=8192)
    return write_checkpoint(tmp_path_factory.mktemp("split") / "llama", config, tiny_tokenizer)


@pytest.fixture
def server(llama):
    with ServerHandle(llama, ServerConfig(port=0, engine=EngineConfig(tensor_parallel_size=2))) as handle:
        yield handle


def client_of(server):
    return openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0, timeout=60)


def complete(client, prompt, **options):
    request = {"model": "llama", "prompt": prompt, "max_tokens": 12, "temperature": 0}
    return client.completions.create(**request | {"extra_body": {"ignore_eos": True}} | options)


def is_running(process_id):
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_two_processes_answer_as_one_and_end_on_sigterm(llama, server):
    alone = LLM(llama, config=EngineConfig(backend="torch")).generate(PROMPTS, GREEDY)
    client = client_of(server)
    assert [complete(client, prompt).choices[0].text for prompt in PROMPTS] == [output.text for output in alone]
    with pytest.raises(openai.BadRequestError, match="need the whole model in one process, got 1/2"):
        client.embeddings.create(model="llama", input="To be")
    assert server.log_tail().count("in each of 2 processes") == 2
    [rank] = ranks_of(server.process.pid)
    assert server.terminate() == 0
    assert not is_running(rank)


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_killed_process_ends_the_server_with_its_message(server, is_busy):
    client = client_of(server)
    [rank] = ranks_of(server.process.pid)
    if is_busy:
        stream = complete(client, "To be", max_tokens=7000, stream=True)
        next(iter(stream))
    began = time.monotonic()
    os.kill(rank, signal.SIGKILL)
    if is_busy:
        with pytest.raises(openai.APIError):
            list(stream)
    assert server.process.wait(ENDS_WITHIN_S) == 2
    assert time.monotonic() - began < ENDS_WITHIN_S
    assert f"rank 1 of 2, process {rank}, which holds a part of the model, was killed by SIGKILL" in server.log_tail()


def test_a_killed_server_ends_the_other_process(server):
    [rank] = ranks_of(server.process.pid)
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not is_running(rank))
