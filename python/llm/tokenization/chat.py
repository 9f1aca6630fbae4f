"""From a conversation to text and ids, by the template a checkpoint brings along."""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import jinja2
import msgspec
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llm.errors import ChatTemplateError
from llm.tokenization.base import BaseTokenizer

Message: TypeAlias = Mapping[str, Any]

_CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

_PLAY = """\
{%- set speakers = {'user': 'ROMEO', 'assistant': 'JULIET'} %}
{%- for message in messages %}
{%- if message['role'] == 'system' %}
{{- '[' + message['content'] | trim + ']\\n\\n' }}
{%- elif message['role'] in speakers %}
{{- (message['name'] or speakers[message['role']]) | upper + ':\\n' + message['content'] | trim + '\\n\\n' }}
{%- else %}
{{- raise_exception('a play has the roles system, user and assistant, got ' + message['role']) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- 'JULIET:\\n' }}
{%- endif %}"""


class ChatTemplate(msgspec.Struct, frozen=True):
    """A Jinja template for conversations, and the strings that end a turn written by it.

    It runs in a sandbox: a template comes with a checkpoint from strangers.
    """

    source: str
    stop: tuple[str, ...] = ()

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        bos_token: str | None = None,
        eos_token: str | None = None,
    ) -> str:
        """The conversation as text.

        Args:
            messages: Mappings with `role` and `content`; anything else in them is for the template to use.
            add_generation_prompt: End with what opens the assistant's turn.
            bos_token: The template's variable of this name.
            eos_token: The template's variable of this name.

        Raises:
            ChatTemplateError: The template is not valid, fails, refuses the conversation or tries to leave its sandbox;
                or a message has no role or content.
        """
        _check_messages(messages)
        template = _compile(self.source)
        try:
            return template.render(
                messages=[dict(message) for message in messages],
                # Templates written for transformers, which always sets these two, may not ask whether they are defined.
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                bos_token=bos_token or "",
                eos_token=eos_token or "",
            )
        except SecurityError as error:
            raise ChatTemplateError(f"the chat template tried what its sandbox forbids: {error}") from error
        except _RefusedError as error:
            raise ChatTemplateError(f"the chat template refused this conversation: {error}") from error
        except Exception as error:
            raise ChatTemplateError(f"the chat template failed: {type(error).__name__}: {error}") from error


TEMPLATES = {
    "chatml": ChatTemplate(_CHATML, stop=("<|im_end|>",)),
    "play": ChatTemplate(_PLAY, stop=("\n\n",)),
}


def use_chat_template(tokenizer: BaseTokenizer, template: str | ChatTemplate) -> None:
    """Gives the tokenizer a chat template and its stop strings; `save` keeps them.

    Args:
        tokenizer: Changed in place.
        template: A name in `TEMPLATES`, or a template.

    Raises:
        ChatTemplateError: Unknown name, or not valid Jinja.
    """
    if isinstance(template, str):
        if template not in TEMPLATES:
            raise ChatTemplateError(
                f"a chat template's name must be one of {sorted(TEMPLATES)}, got {template!r}\n"
                "hint: pass `ChatTemplate(source)` for one of your own"
            )
        template = TEMPLATES[template]
    _compile(template.source)
    tokenizer.settings = msgspec.structs.replace(
        tokenizer.settings, chat_template=template.source, chat_stop=template.stop
    )


def render_chat(tokenizer: BaseTokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
    """The conversation as text, by the tokenizer's template.

    Raises:
        ChatTemplateError: The tokenizer has no template, or as in `ChatTemplate.render`.
    """
    settings = tokenizer.settings
    if settings.chat_template is None:
        raise ChatTemplateError(
            "a chat needs a tokenizer with a chat template, got one without\n"
            f"hint: `use_chat_template(tokenizer, name)` with one of {sorted(TEMPLATES)}, or complete plain text"
        )
    return ChatTemplate(settings.chat_template).render(
        messages,
        add_generation_prompt=add_generation_prompt,
        bos_token=settings.bos_token,
        eos_token=next(iter(settings.eos_tokens), None),
    )


def encode_chat(
    tokenizer: BaseTokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> list[int]:
    """The conversation's ids: special tokens that the template writes become their ids, as in `transformers`.

    Raises:
        ChatTemplateError: As in `render_chat`.
    """
    text = render_chat(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    return tokenizer.encode(text, allow_special=True)


class _RefusedError(jinja2.TemplateError):
    """What a template raises by `raise_exception`."""


@functools.lru_cache(maxsize=32)
def _compile(source: str) -> jinja2.Template:
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"the chat template is not valid Jinja: {error.message} (line {error.lineno})"
        ) from error


def _environment() -> ImmutableSandboxedEnvironment:
    """The environment that templates on the Hugging Face hub are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, sort_keys: bool = False) -> str:
    """Jinja's own filter escapes HTML, which would change the prompt."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise _RefusedError(message)


def _strftime_now(format_: str) -> str:
    return datetime.datetime.now().astimezone().strftime(format_)


def _check_messages(messages: Sequence[Any]) -> None:
    if not messages:
        raise ChatTemplateError("a conversation must have at least one message, got none")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ChatTemplateError(f"messages must be mappings with a `role`, got {message!r} at index {index}")
        if message.get("content") is None and not message.get("tool_calls"):
            raise ChatTemplateError(f"messages must have `content`, got {message!r} at index {index}")
