"""`/v1/embeddings`, `/v1/score` and `/v1/rerank` on a real server, beside transformers."""

import base64
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
import torch
import transformers

from llm.inference import EngineConfig
from llm.serving import ServerConfig, ServerHandle
from llm.tokenization import BPETokenizer
from tests.integration.server_client import CONTEXT, complete, is_idle, metric, wait_until

TEXTS = ["To be", "or not to be", "that is the question. " * 30]  # the last one is longer than a pass


@pytest.fixture(scope="module")
def reference(checkpoint):
    """Returns the vectors of texts or token lists by transformers."""
    model = transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = BPETokenizer.from_pretrained(checkpoint)

    def vectors(inputs, pooling="mean", dimensions=None):
        found = []
        for one in inputs:
            ids = tokenizer.encode(one) if isinstance(one, str) else one
            with torch.inference_mode():
                states = model(torch.tensor([ids])).last_hidden_state[0]
            vector = (states.mean(0) if pooling == "mean" else states[-1])[:dimensions]
            found.append(vector / vector.norm())
        return torch.stack(found).numpy()

    return vectors


def embed(client, given, **options):
    answer = client.embeddings.create(model="tiny", input=given, **options)
    return np.array([one.embedding for one in answer.data])


def test_embeddings_equal_transformers(client, reference):
    expected = reference(TEXTS)
    answer = client.embeddings.create(model="tiny", input=TEXTS, encoding_format="float")
    assert [one.index for one in answer.data] == [0, 1, 2]
    np.testing.assert_allclose([one.embedding for one in answer.data], expected, atol=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 256
    np.testing.assert_allclose(embed(client, TEXTS), expected, atol=1e-5)  # the client asks for base64
    np.testing.assert_allclose(embed(client, TEXTS[1]), expected[1:2], atol=1e-5)


def test_embeddings_of_token_ids(client, reference):
    rows = [[5, 6, 7], [8] * 600]
    np.testing.assert_allclose(embed(client, rows), reference(rows), atol=1e-5)
    np.testing.assert_allclose(embed(client, rows[0]), reference(rows[:1]), atol=1e-5)


def test_dimensions_cut_and_normalise(client, reference):
    vectors = embed(client, TEXTS, dimensions=5)
    np.testing.assert_allclose(vectors, reference(TEXTS, dimensions=5), atol=1e-5)


def test_base64_holds_little_endian_floats(client, reference):
    raw = client.embeddings.with_raw_response.create(model="tiny", input="To be", encoding_format="base64")
    text = raw.http_response.json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(text), "<f4"), reference(["To be"])[0], atol=1e-5)


def test_last_pooling_is_a_setting_of_the_server(checkpoint, reference):
    engine = EngineConfig(max_batch_tokens=64, kv_cache_memory_bytes=2**24)
    with ServerHandle(checkpoint, ServerConfig(port=0, pooling="last", engine=engine)) as server:
        client = openai.OpenAI(base_url=server.base_url, api_key="any", max_retries=0)
        np.testing.assert_allclose(embed(client, TEXTS), reference(TEXTS, "last"), atol=1e-5)


def test_embeddings_run_beside_streams(server, client, reference):
    """Long inputs are computed between the steps of a running stream, whose answer stays the same."""
    long = [[3, 4, 5] * 700] * 4
    alone = complete(client, max_tokens=200).choices[0].text
    before = metric(server, "llm_engine_steps_total")
    with ThreadPoolExecutor() as pool:
        vectors = pool.submit(embed, client, long)
        texts = [pool.submit(lambda: complete(client, max_tokens=200).choices[0].text) for _ in range(3)]
        assert [text.result() for text in texts] == [alone] * 3
        np.testing.assert_allclose(vectors.result(), reference(long), atol=1e-5)
    assert metric(server, "llm_engine_steps_total") > before
    wait_until(lambda: is_idle(server))


def test_a_client_that_leaves_ends_its_work(server, client):
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).embeddings.create(model="tiny", input=[[1] * CONTEXT] * 100)
    wait_until(lambda: is_idle(server))
    assert embed(client, "To be").shape == (1, 32)  # not behind the hundred


def post(server, path, **body):
    return httpx.post(f"{server.url}{path}", json={"model": "tiny"} | body, trust_env=False, timeout=60)


def test_scores_are_cosines(server, reference):
    vectors = reference(TEXTS)
    answer = post(server, "/v1/score", text_1=TEXTS[0], text_2=TEXTS[1:]).json()
    assert (answer["object"], [one["index"] for one in answer["data"]]) == ("list", [0, 1])
    np.testing.assert_allclose([one["score"] for one in answer["data"]], vectors[1:] @ vectors[0], atol=1e-5)
    pairs = post(server, "/v1/score", text_1=TEXTS, text_2=TEXTS[::-1]).json()["data"]
    np.testing.assert_allclose([one["score"] for one in pairs], (vectors * vectors[::-1]).sum(-1), atol=1e-5)


def test_documents_are_ranked_by_their_cosine(server, reference):
    documents = [TEXTS[2], {"text": TEXTS[1]}, TEXTS[0]]
    vectors = reference([TEXTS[0], TEXTS[2], TEXTS[1], TEXTS[0]])
    scores = vectors[1:] @ vectors[0]
    answer = post(server, "/v1/rerank", query=TEXTS[0], documents=documents).json()
    order = [one["index"] for one in answer["results"]]
    assert order == np.argsort(-scores).tolist()
    assert order[0] == 2
    np.testing.assert_allclose([one["relevance_score"] for one in answer["results"]], scores[order], atol=1e-5)
    assert answer["results"][0]["document"] == {"text": TEXTS[0]}
    top = post(server, "/v1/rerank", query=TEXTS[0], documents=documents, top_n=1, return_documents=False).json()
    assert [one["index"] for one in top["results"]] == [2]
    assert "document" not in top["results"][0]
    assert answer["usage"]["total_tokens"] > 0


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/embeddings", {"input": ["a", 1]}, "input"),
        ("/v1/embeddings", {"input": [10**6]}, "input"),
        ("/v1/embeddings", {"input": [1] * (CONTEXT + 1)}, "input"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 33}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {}, "input"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
    ],
)
def test_bad_requests_are_refused_by_name(server, path, body, param):
    answer = post(server, path, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
