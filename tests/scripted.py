"""A real checkpoint whose model says given texts word for word: the place in the prompt decides which one.

The residual stream is a learned position and nothing else, and each position's row of the output projection has one
large entry: the next token of the text that begins there. The chat template ends with as many dots as lead to the
text that `chat_template_kwargs` asks for as `script`; if they set `opens`, it ends with an open `<think>` instead of
the last dot, and shows what it was given if the first message is `show`.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from llm import _rust
from llm.checkpoint import atomic_directory, write_model
from llm.models import DecoderModel
from llm.settings.model import ModelConfig
from llm.tokenization import BPETokenizer, ChatTemplate, use_chat_template

# Positions from the beginning of one text to that of the next.
STRIDE = 128
END = "<end>"

# What a template of the Qwen family contains where this server looks for it.
QWEN_TEMPLATE = """\
{#- <tool_call> <think> </think> -#}
{%- if messages[0].content == 'show' %}{{ raise_exception([messages, tools] | tojson) }}{% endif -%}
{{- '.' * ((script or 0) * 128 + (0 if opens else 1)) }}{{ '<think>' if opens else '' -}}"""


def write_scripted(
    directory: Path, scripts: Sequence[str], template: str = QWEN_TEMPLATE, special_tokens: Sequence[str] = ()
) -> Path:
    """Writes the checkpoint; each script has at most `STRIDE` tokens."""
    tokenizer = BPETokenizer.train_from_iterator(
        ["\n".join(scripts).replace(".", "")] * 8, vocab_size=400, special_tokens=[END, *special_tokens], progress=False
    )
    ids = [tokenizer.encode(script, allow_special=True) for script in scripts]
    return _write(directory, tokenizer, ids, template)


def write_cut(directory: Path, scripts: Sequence[Sequence[bytes]], template: str = QWEN_TEMPLATE) -> Path:
    """Writes the checkpoint of scripts that are given as the bytes of their tokens, whole characters or not."""
    pieces = {piece[:end] for script in scripts for piece in script for end in range(2, len(piece) + 1)}
    tokens = [*(bytes([byte]) for byte in range(256)), *sorted(pieces, key=lambda piece: (len(piece), piece))]
    id_of = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = BPETokenizer(_rust.Tokenizer.from_ranks(tokens, {END: len(tokens)}, "gpt4"))
    return _write(directory, tokenizer, [[id_of[piece] for piece in script] for script in scripts], template)


def _write(directory: Path, tokenizer: BPETokenizer, scripts: Sequence[Sequence[int]], template: str) -> Path:
    use_chat_template(tokenizer, ChatTemplate(template))
    tokenizer.settings = msgspec.structs.replace(tokenizer.settings, eos_tokens=(END,), pad_token=None)
    with atomic_directory(directory) as unfinished:
        write_model(unfinished, _model(tokenizer, scripts), tokenizer)
    return directory


def _model(tokenizer: BPETokenizer, scripts: Sequence[Sequence[int]]) -> DecoderModel:
    length = STRIDE * len(scripts)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=length,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=length,
        tie_word_embeddings=False,
        position_encoding="learned",
    )
    model = DecoderModel(config)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.zero_()
        positions = next(weights for name, weights in model.named_parameters() if name.startswith("positions."))
        positions.copy_(torch.eye(length))
        for index, script in enumerate(scripts):
            ids = [*script, *tokenizer.eos_ids]
            assert len(ids) <= STRIDE, (script, len(ids))
            for offset, token_id in enumerate(ids):
                model.lm_head.weight[token_id, index * STRIDE + offset] = 10.0
    return model
