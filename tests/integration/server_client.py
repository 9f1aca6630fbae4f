"""A tiny checkpoint to serve, and requests to its server."""

import time

import httpx
import torch

from llm.checkpoint import atomic_directory, write_model
from llm.models import DecoderModel
from llm.settings.model import ModelConfig
from llm.tokenization import BPETokenizer, use_chat_template

MESSAGES = [{"role": "user", "content": "What news?"}]
CONTEXT = 8192
LONG = {"max_tokens": 7000, "extra_body": {"ignore_eos": True}}  # about a second
DEADLINE_S = 30.0


def write_checkpoint(directory, chat_template, generation=None, context=CONTEXT, width=32):
    torch.manual_seed(0)
    tokenizer = BPETokenizer.train_from_iterator(["To be, or not to be, that is the question. "], vocab_size=270)
    if chat_template is not None:
        use_chat_template(tokenizer, chat_template)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
    )
    with atomic_directory(directory) as unfinished:
        write_model(unfinished, DecoderModel(config), tokenizer, generation)
    return directory


def metric(server, name):
    page = httpx.get(f"{server.url}/metrics", trust_env=False).text
    return next(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name))


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it didn't happen in time"


def is_idle(server):
    everything_free = metric(server, "llm_blocks_free") == metric(server, "llm_blocks_total")
    return (
        everything_free
        and metric(server, "llm_requests_in_flight") == 0
        and metric(server, "llm_requests_running") == 0
    )


def tokens_until_idle(server, stream):
    """Returns how many tokens the server generates for a stream that is closed after its first event."""
    before = metric(server, "llm_generation_tokens_total")
    next(iter(stream))
    stream.close()
    wait_until(lambda: is_idle(server))
    return metric(server, "llm_generation_tokens_total") - before


def complete(client, seed=1, **options):
    request = {"model": "tiny", "prompt": "To be", "max_tokens": 24, "seed": seed, "extra_body": {"ignore_eos": True}}
    return client.completions.create(**request | options)


def chat(client, **options):
    return client.chat.completions.create(
        **{"model": "tiny", "messages": MESSAGES, "max_tokens": 24, "seed": 1} | options
    )
