"""Bodies and connections that go wrong, written byte by byte to a real port."""

import gzip
import json
import socket

import openai
import pytest

from llm.inference import EngineConfig
from llm.serving import ServerConfig, ServerHandle
from tests.integration.server_client import DEADLINE_S, complete, is_idle, metric, wait_until

LIMIT = 20_000
REQUEST = {"model": "tiny", "prompt": "To be", "max_tokens": 2}
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def strict(checkpoint):
    limits = {"max_body_bytes": LIMIT, "body_timeout_s": 0.5, "write_timeout_s": 0.3}
    with ServerHandle(checkpoint, ServerConfig(port=0, grace_s=0, engine=EngineConfig(), **limits)) as handle:
        yield handle


def connect(server, receive_bytes=None):
    connection = socket.socket()
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(DEADLINE_S)
    connection.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
    return connection


def answer_of(server, request):
    """The status and the JSON that come back, up to where the server closes the connection."""
    with connect(server) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body else None


def posted(body, headers=b""):
    return POST + headers + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def error_code(answer):
    return answer[0], answer[1]["error"]["code"]


@pytest.mark.parametrize("encoding", [b"gzip", b"GZIP", b"x-gzip"])
def test_gzip_body_is_read(strict, encoding):
    body = gzip.compress(json.dumps(REQUEST).encode(), mtime=0)
    status, answer = answer_of(strict, posted(body, b"Content-Encoding: " + encoding + b"\r\n"))
    assert (status, answer["usage"]["completion_tokens"]) == (200, 2)


def test_gzip_body_in_two_members_is_read(strict):
    text = json.dumps(REQUEST).encode()
    body = gzip.compress(text[:9], mtime=0) + gzip.compress(text[9:], mtime=0)
    assert answer_of(strict, posted(body, b"Content-Encoding: gzip\r\n"))[0] == 200


@pytest.mark.parametrize(
    ("body", "encoding", "expected"),
    [
        (gzip.compress(b" " * 50_000_000, mtime=0), b"gzip", (413, "request_too_large")),
        (gzip.compress(b"{}", mtime=0)[:-4], b"gzip", (400, "invalid_encoding")),
        (b"{}", b"gzip", (400, "invalid_encoding")),
        (b"", b"gzip", (400, None)),
        (b"{}", b"br", (415, "unsupported_encoding")),
        (b"{}", b"gzip, gzip", (415, "unsupported_encoding")),
        (b" " * (LIMIT + 1), b"identity", (413, "request_too_large")),
    ],
)
def test_body_that_cannot_be_decoded_is_refused(strict, body, encoding, expected):
    answer = answer_of(strict, posted(body, b"Content-Encoding: " + encoding + b"\r\n"))
    assert error_code(answer) == expected
    if expected[0] == 415:
        assert encoding.decode() in answer[1]["error"]["message"]


def test_half_a_body_is_408_and_the_connection_closes(strict):
    answer = answer_of(strict, POST + b'Content-Length: 100\r\n\r\n{"model"')
    assert error_code(answer) == (408, "request_timeout")
    assert answer[1]["error"]["message"] == "The request body did not arrive within 0.5 s"


@pytest.mark.parametrize(
    "chunks", [b"ZZ\r\n{}\r\n0\r\n\r\n", b"-1\r\n{}", b"2\r\n{}XX\r\n", b"fffffffffffffffff\r\n{}"]
)
def test_broken_chunk_is_400(strict, chunks):
    answer = answer_of(strict, POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    assert error_code(answer) == (400, "incomplete_body")


def test_body_that_ends_early_is_400(strict):
    with connect(strict) as connection:
        connection.sendall(POST + b"Content-Length: 100\r\n\r\n{")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        (b"GET /health HTTP/1.1", b"".join(b"X-%d: a\r\n" % number for number in range(200)), 431),
        (b"GET /health HTTP/1.1", b"X: " + b"a" * 200_000 + b"\r\n", 431),
        (b"GET /" + b"a" * 200_000 + b" HTTP/1.1", b"", 431),
        (b"GET /\xff\xfe HTTP/1.1", b"", 400),
        (b"POST /v1/completions HTTP/1.1", b"Content-Length: x\r\n", 400),
        (b"POST /v1/completions HTTP/1.1", b"Content-Length: 2\r\nContent-Length: 3\r\n", 400),
        (b"\x16\x03\x01", b"", 400),
    ],
)
def test_malformed_head_is_refused(strict, request_line, headers, status):
    assert answer_of(strict, request_line + b"\r\nHost: localhost\r\n" + headers + b"\r\n")[0] == status


@pytest.mark.parametrize(
    "path",
    [b"/../../etc/passwd", b"/%2e%2e/%2e%2e/etc/passwd", b"/v1/models/../../etc/passwd", b"/%00%ff", b"/v1//"],
)
def test_no_path_leaves_the_table_of_routes(strict, path):
    request = b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert answer_of(strict, request)[0] == 404


def test_client_that_does_not_read_is_cut_off_and_its_blocks_are_freed(strict):
    body = {"stream": True, "max_tokens": 4000, "n": 8, "logprobs": 5, "ignore_eos": True}
    with connect(strict, receive_bytes=4096) as connection:
        connection.sendall(posted(json.dumps(REQUEST | body).encode()))
        wait_until(lambda: metric(strict, "llm_requests_running") > 0)
        wait_until(lambda: is_idle(strict))
        wait_until(lambda: metric(strict, 'llm_requests_total{route="/v1/completions",status="499"}') == 1)


def test_server_still_answers_after_all_that(strict):
    client = openai.OpenAI(base_url=strict.base_url, api_key="any", max_retries=0)
    assert complete(client).usage.completion_tokens == 24
