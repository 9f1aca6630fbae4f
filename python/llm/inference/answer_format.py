"""How a model writes reasoning and calls of functions, found in its chat template."""

from collections.abc import Iterable

import msgspec

from llm._rust import ANSWER_FORMATS
from llm.errors import ConfigError
from llm.tokenization import BaseTokenizer
from llm.tokenization.chat_sandbox import reads_variable

# The texts around the reasoning, by the name of the setting's value.
REASONING_MARKERS = {
    "think": ("<think>", "</think>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "seed_oss": ("<seed:think>", "</seed:think>"),
}

# What a template that uses a format contains, most specific first. A template that renders tools and contains none of
# these has the plain format `json`.
_SIGNS = (
    ("deepseek", "<｜tool▁call▁begin｜>"),
    ("mistral", "[TOOL_CALLS]"),
    ("qwen_coder", "<function="),
    ("hermes", "<tool_call>"),
    ("llama4_pythonic", "func_name1("),
    ("llama3_json", "<|python_tag|>"),
    ("llama3_json", '"parameters": '),
    ("llama4_pythonic", "<|python_start|>"),
)
_FORMATS = dict(ANSWER_FORMATS)


class AnswerFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How a model writes its answers.

    Attributes:
        calls: The format of calls; None if the model has none.
        reasoning: The texts around the reasoning; None if the model has none.
        renders_tools: Whether the chat template renders tools.
        is_newer: Whether it writes calls in the newer of the format's two forms, a name and plain JSON.
        call_ids: The special tokens among the format's markers.
        reasoning_ids: The special tokens around the reasoning.
    """

    calls: str | None = None
    reasoning: tuple[str, str] | None = None
    renders_tools: bool = False
    is_newer: bool = False
    call_ids: tuple[int, ...] = ()
    reasoning_ids: tuple[int, ...] = ()


def answer_format(tokenizer: BaseTokenizer, tool_parser: str = "auto", reasoning_parser: str = "auto") -> AnswerFormat:
    """Returns how a model writes its answers.

    Args:
        tokenizer: The model's tokenizer with its chat templates.
        tool_parser: A format, `auto` for the one that the template uses, or `none`.
        reasoning_parser: A name in `REASONING_MARKERS`, `auto` for the one that the template uses, or `none`.

    Raises:
        ConfigError: The name of a parser is unknown.
        ChatTemplateError: The template is not valid Jinja.
    """
    settings = tokenizer.settings
    templates = [source for source in (settings.chat_template, *settings.named_templates.values()) if source]
    source = "\n".join(templates)
    renders_tools = any(reads_variable(template, "tools") for template in templates)
    calls = _chosen("tool_parser", tool_parser, _FORMATS, _found_calls(source) if renders_tools else None)
    found = next((name for name, (_, end) in REASONING_MARKERS.items() if end in source), None)
    name = _chosen("reasoning_parser", reasoning_parser, REASONING_MARKERS, found)
    reasoning = None if name is None else REASONING_MARKERS[name]
    special = tokenizer.special_tokens
    return AnswerFormat(
        calls=calls,
        reasoning=reasoning,
        renders_tools=renders_tools,
        is_newer={"mistral": "[ARGS]" in source, "deepseek": "```json" not in source}.get(calls or "", False),
        call_ids=tuple(special[marker] for marker in _FORMATS.get(calls or "", ()) if marker in special),
        reasoning_ids=tuple(special[marker] for marker in reasoning or () if marker in special),
    )


def _chosen(setting: str, value: str, known: Iterable[str], found: str | None) -> str | None:
    if value == "auto":
        return found
    if value != "none" and value not in known:
        raise ConfigError(f"`{setting}` must be one of auto, none, {', '.join(known)}, got {value!r}")
    return None if value == "none" else value


def _found_calls(source: str) -> str:
    return next((name for name, sign in _SIGNS if sign in source), "json")
