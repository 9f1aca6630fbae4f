"""Two real servers behind HAProxy with the configuration of docker/: what users of the router see."""

import asyncio
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import httpx
import openai
import pytest

from tests.integration.router import (
    CONFIG,
    NAMES,
    HAProxy,
    NameServer,
    Replicas,
    needs_haproxy,
    of_session,
    with_replaced,
)
from tests.integration.server_client import DEADLINE_S, complete, metric, wait_until, write_checkpoint

pytestmark = needs_haproxy

# A token takes a millisecond or more, so that the client can tell one from the next.
WIDTH = 512
IGNORE_EOS = {"ignore_eos": True}
ENDLESS = {"max_tokens": 7000, "extra_body": IGNORE_EOS}


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    directory = tmp_path_factory.mktemp("router")
    checkpoint = write_checkpoint(directory / "tiny", "play", width=WIDTH)
    with Replicas(checkpoint, directory) as replicas:
        yield replicas


@pytest.fixture
def replicas(started):
    return started.ready()


def answered(server):
    """How many requests for text a server has answered, by its own count."""
    page = httpx.get(f"{server.url}/metrics", trust_env=False).text
    counts = [line for line in page.splitlines() if line.startswith('llm_requests_total{route="/v1/c')]
    return sum(float(line.split()[-1]) for line in counts)


def test_configuration_is_valid_without_a_warning():
    check = subprocess.run(["haproxy", "-c", "-dW", "-f", CONFIG], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout + check.stderr


def test_places_that_the_configuration_lacks_are_noticed():
    with pytest.raises(AssertionError, match=r"'bind :9999' is 0 times in haproxy\.cfg"):
        with_replaced(CONFIG.read_text(), {"bind :9999": ""})


def test_router_s_own_errors_have_the_api_s_form(tmp_path):
    names = NameServer()
    router = HAProxy(tmp_path, names, dict.fromkeys(NAMES, 9))
    try:
        with pytest.raises(openai.InternalServerError, match="No server is ready") as caught:
            complete(router.client())
        assert (caught.value.status_code, caught.value.code) == (503, "no_server")
        assert caught.value.response.headers["retry-after"] == "1"
    finally:
        router.close()
        names.close()


def test_requests_of_one_session_go_to_one_server_and_sessions_to_both(replicas):
    sessions = [f"session-{number}" for number in range(16)]
    homes = {session: replicas.home(session) for session in sessions}
    assert {*homes.values()} == {*NAMES}
    before = {name: answered(server) for name, server in replicas.servers.items()}
    for turn in range(2):
        for session in sessions:
            complete(replicas.client, prompt=f"{turn} of {session}", max_tokens=1, extra_headers=of_session(session))
    expected = {name: before[name] + 2 * [*homes.values()].count(name) for name in NAMES}
    wait_until(lambda: {name: answered(server) for name, server in replicas.servers.items()} == expected)


def test_requests_that_begin_the_same_go_to_one_server_which_has_their_beginning_in_its_cache(replicas):
    def counts():
        return [answered(server) for server in replicas.servers.values()]

    chosen = []
    for play in range(6):
        beginning = {"role": "system", "content": f"{play}. To be, or not to be, that is the question. " * 25}
        before, hit_tokens = counts(), num_hit_tokens(replicas)
        for turn in range(2):
            messages = [beginning, {"role": "user", "content": f"Line {turn}?"}]
            replicas.client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
        wait_until(lambda before=before: sum(counts()) == sum(before) + 2)
        gained = [after - earlier for after, earlier in zip(counts(), before, strict=True)]
        assert sorted(gained) == [0, 2]
        assert num_hit_tokens(replicas) > hit_tokens
        chosen.append(gained.index(2))
    assert {*chosen} == {0, 1}


def num_hit_tokens(replicas):
    return sum(metric(server, "llm_prefix_cache_hit_tokens_total") for server in replicas.servers.values())


def test_tokens_of_a_stream_are_not_held_back(replicas):
    server = replicas.servers["llm-1"]
    own = num_arrivals(openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0))
    assert num_arrivals(replicas.client) > own / 4 > 10


def num_arrivals(client):
    """How many times something came: events that come together come within a quarter of a token's time."""
    stream = complete(client, stream=True, max_tokens=150, extra_body=IGNORE_EOS)
    times = [time.perf_counter() for _ in stream]
    together_s = (times[-1] - times[0]) / len(times) / 4
    return sum(later - earlier > together_s for earlier, later in pairwise(times))


def test_client_that_leaves_ends_its_request_whether_it_streams_or_waits(replicas):
    async def scenario():
        async with openai.AsyncOpenAI(base_url=f"{replicas.router.url}/v1", api_key="any", max_retries=0) as client:
            requests = [asyncio.create_task(read(client, is_streaming)) for is_streaming in (True, False)]
            await asyncio.to_thread(wait_until, lambda: num_running(replicas) == 2)
            for request in requests:
                request.cancel()
            await asyncio.wait(requests)

    async def read(client, is_streaming):
        answer = await complete(client, stream=is_streaming, **ENDLESS)
        if is_streaming:
            async for _ in answer:
                pass

    before = num_answers(replicas, "length")
    asyncio.run(scenario())
    wait_until(lambda: num_running(replicas) == 0)
    assert num_answers(replicas, "length") == before


def num_running(replicas):
    return sum(metric(server, "llm_requests_running") for server in replicas.servers.values())


def num_answers(replicas, reason):
    pages = [httpx.get(f"{server.url}/metrics", trust_env=False).text for server in replicas.servers.values()]
    lines = [line for page in pages for line in page.splitlines()]
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith(f'llm_answers_total{{finished_reason="{reason}"')
    )


def test_server_that_dies_takes_only_its_own_requests_with_it(replicas):
    victim, survivor = (replicas.servers[name] for name in NAMES)
    lost, kept = [], []
    for _ in range(2):  # in turns, as the router gives none much more than the other
        lost.append(stream_on(victim, replicas, 7000))
        kept.append(stream_on(survivor, replicas, 1000))
    used, fresh = replicas.client, replicas.router.client()
    headers = of_session(session_of(NAMES[0], replicas))
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(complete, client, extra_headers=headers, **ENDLESS) for client in (used, fresh)]
        wait_until(lambda: metric(victim, "llm_requests_running") == 4)
        victim.process.kill()
        later = [
            pool.submit(complete, replicas.router.client(), extra_headers=of_session(number)) for number in range(16)
        ]
        for stream in lost:
            with pytest.raises(openai.APIConnectionError, match="Connection error"):
                list(stream)
        # HAProxy before 3 closes a connection that has served requests; its client has to repeat this one by itself.
        with pytest.raises((openai.InternalServerError, openai.APIConnectionError)):
            waiting[0].result()
        with pytest.raises(openai.InternalServerError) as caught:
            waiting[1].result()
        assert (caught.value.status_code, caught.value.code) == (502, "server_failed")
        assert {answer.result().usage.completion_tokens for answer in later} == {24}
        for stream in kept:
            assert [*stream][-1].choices[0].finish_reason == "length"


def session_of(name, replicas):
    return next(session for session in range(64) if replicas.home(session) == name)


def stream_on(server, replicas, max_tokens):
    """A stream that has begun and comes from a server, which is not the first one asked if the router spreads load."""
    for number in range(64):
        before = metric(server, "llm_requests_running")
        stream = complete(
            replicas.router.client(),
            stream=True,
            max_tokens=max_tokens,
            extra_body=IGNORE_EOS,
            extra_headers=of_session(number),
        )
        next(iter(stream))
        if metric(server, "llm_requests_running") > before:
            return stream
        stream.close()
    raise AssertionError("no session's requests go to the server")


def test_server_made_anew_under_another_address_is_found(started):
    name = NAMES[0]
    before = started.servers[name]
    before.process.kill()
    before.process.wait()
    assert {started.home(number) for number in range(16)} == {NAMES[1]}
    started.ready()
    assert started.servers[name].url != before.url


def test_server_that_drains_loses_no_request(replicas):
    leaving = replicas.servers[NAMES[1]]
    stream = stream_on(leaving, replicas, 1000)
    stop = threading.Event()

    def ask(worker):
        client, count = replicas.router.client(), 0
        while not stop.is_set():
            answer = complete(client, max_tokens=4, extra_headers=of_session(f"{worker}-{count}"))
            assert answer.usage.completion_tokens == 4
            count += 1
        return count

    with ThreadPoolExecutor() as pool:
        workers = [pool.submit(ask, worker) for worker in range(4)]
        try:
            known = len(replicas.router.log())
            leaving.process.terminate()
            wait_until(lambda: f"Server replicas/{NAMES[1]} is DOWN" in replicas.router.log()[known:])
            # The router knows before the server refuses anything.
            complete(openai.OpenAI(base_url=leaving.base_url, api_key="any", max_retries=0), max_tokens=1)
            assert [*stream][-1].choices[0].finish_reason == "length"
            assert leaving.process.wait(DEADLINE_S) == 0
        finally:
            stop.set()
        assert all(worker.result() > 0 for worker in workers)
    assert {replicas.home(number) for number in range(16)} == {NAMES[0]}
