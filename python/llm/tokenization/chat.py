"""Rendering of conversations to text and ids with a checkpoint's chat template."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict, Unpack

import msgspec
import numpy as np

from llm.errors import ChatTemplateError, InvalidArgumentError
from llm.tokenization.base import BaseTokenizer
from llm.tokenization.chat_sandbox import compile_template, render_template
from llm.tokenization.options import check_names
from llm.tokenization.settings import DEFAULT_TEMPLATE, TokenizerSettings

Message: TypeAlias = Mapping[str, Any]

# The name of an optional template for conversations with tools.
TOOL_TEMPLATE = "tool_use"

# Keys of a message's reasoning text: most templates read the first, gpt-oss's template the second.
_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")

# Marks the place where the model continues a message. The space reveals whether the template trims text.
_OPEN_END = "MESSAGE_GOES_ON_HERE "

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


class ConversationOptions(TypedDict, total=False):
    """Inputs of a chat template besides the messages.

    Attributes:
        tools: Tools that the model may call, in the format of OpenAI's API: `{"type": "function", "function": {…}}`.
        documents: Documents to answer from, each with `title` and `text`.
        variables: Additional variables by name, such as `{"enable_thinking": False}` for Qwen 3.
    """

    tools: Sequence[Mapping[str, Any]] | None
    documents: Sequence[Mapping[str, Any]] | None
    variables: Mapping[str, Any] | None


class ChatOptions(ConversationOptions, total=False):
    """Options for rendering a conversation.

    Attributes:
        add_generation_prompt: Whether to end with the opening of the assistant's turn; by default the opposite of
            `continue_final_message`.
        continue_final_message: Whether to end with the text of the last message, so that the model continues it.
    """

    add_generation_prompt: bool
    continue_final_message: bool


class ChatTemplate(msgspec.Struct, frozen=True):
    """A Jinja template for conversations, with the strings that end its turns.

    Templates run in a sandbox, because they come with checkpoints from untrusted sources.
    """

    source: str
    stop: tuple[str, ...] = ()

    def render(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> str:
        """Returns a conversation as text, equal to the result of `transformers`.

        Args:
            messages: Mappings with `role` and `content`; the template may use their other keys. Content that is a list
                of parts is passed to the template unchanged.
            **options: Tools, documents and the end of the text; see `ChatOptions`.

        Raises:
            ChatTemplateError: The template is invalid, fails, rejects the conversation, tries to leave its sandbox or
                exceeds its budget of time or memory, or a message has no role or content.
            InvalidArgumentError: Options contradict each other.
        """
        _check_messages(messages)
        return render_any(self.source, messages, options)


TEMPLATES = {
    "chatml": ChatTemplate(_CHATML, stop=("<|im_end|>",)),
    "play": ChatTemplate(_PLAY, stop=("\n\n",)),
}


def use_chat_template(tokenizer: BaseTokenizer, template: str | ChatTemplate) -> None:
    """Replaces the tokenizer's chat template and stop strings; `save` stores them.

    Args:
        tokenizer: The tokenizer to change in place.
        template: A name in `TEMPLATES`, or a template.

    Raises:
        ChatTemplateError: The name is unknown, or the template is not valid Jinja.
    """
    if isinstance(template, str):
        if template not in TEMPLATES:
            raise ChatTemplateError(
                f"a chat template's name must be one of {sorted(TEMPLATES)}, got {template!r}\n"
                "hint: pass `ChatTemplate(source)` to use your own template"
            )
        template = TEMPLATES[template]
    compile_template(template.source)
    tokenizer.settings = msgspec.structs.replace(
        tokenizer.settings, chat_template=template.source, named_templates={}, chat_stop=template.stop
    )


def render_chat(
    tokenizer: BaseTokenizer,
    messages: Sequence[Message],
    *,
    template_name: str | None = None,
    **options: Unpack[ChatOptions],
) -> str:
    """Returns a conversation as text, rendered with the tokenizer's template.

    Args:
        tokenizer: A tokenizer with a chat template. The template gets special tokens as variables such as `bos_token`.
        messages: The conversation; see `ChatTemplate.render`.
        template_name: Name of one of the tokenizer's templates. None chooses `tool_use` if there are tools and a
            template of that name, otherwise the default template.
        **options: Rendering options; see `ChatOptions`.

    Raises:
        ChatTemplateError: The tokenizer has no such template, or rendering failed; see `ChatTemplate.render`.
        InvalidArgumentError: Options contradict each other.
    """
    template, options = tokenizer_template(tokenizer, template_name, options)
    return template.render(messages, **options)


def encode_chat(
    tokenizer: BaseTokenizer,
    messages: Sequence[Message],
    *,
    template_name: str | None = None,
    **options: Unpack[ChatOptions],
) -> list[int]:
    """Returns a conversation as token ids; special tokens that the template writes become their ids.

    The ids equal those of `transformers`. The arguments are those of `render_chat`.

    Raises:
        ChatTemplateError: The tokenizer has no such template, or rendering failed; see `ChatTemplate.render`.
        InvalidArgumentError: Options contradict each other.
    """
    text = render_chat(tokenizer, messages, template_name=template_name, **options)
    return tokenizer.encode(text, allow_special=True)


def tokenizer_template(
    tokenizer: BaseTokenizer, name: str | None, options: ChatOptions
) -> tuple[ChatTemplate, ChatOptions]:
    """Returns the tokenizer's template for these options, and the options with special tokens as variables.

    Raises:
        ChatTemplateError: The tokenizer has no such template.
    """
    settings = tokenizer.settings
    named = settings.named_templates
    if settings.chat_template is not None:
        named = {DEFAULT_TEMPLATE: settings.chat_template} | named
    if name is None:
        with_tools = options.get("tools") is not None and TOOL_TEMPLATE in named
        name = TOOL_TEMPLATE if with_tools else DEFAULT_TEMPLATE
    if name not in named:
        raise _no_template(name, sorted(named))
    variables = _special_tokens(settings) | dict(options.get("variables") or {})
    return ChatTemplate(named[name], settings.chat_stop), {**options, "variables": variables}


def render_any(
    source: str, messages: Sequence[Message], options: ChatOptions, marks: tuple[str, str] = ("", "")
) -> str:
    """Renders any messages like `ChatTemplate.render`, with `marks` around the text of `{% generation %}` blocks."""
    check_names(options, ChatOptions)
    try:
        conversation = [_plain_message(message) for message in messages]
        variables = _variables(conversation, options)
    except RecursionError as error:
        raise ChatTemplateError("messages, tools and variables are nested too deeply") from error
    goes_on = options.get("continue_final_message", False)
    final = _open_final(conversation) if goes_on else ""
    text = render_template(source, variables, marks=marks)
    return _cut_at_open_end(text, final) if goes_on else text


def _variables(conversation: list[dict[str, Any]], options: ChatOptions) -> dict[str, Any]:
    goes_on = options.get("continue_final_message", False)
    add_generation_prompt = options.get("add_generation_prompt", not goes_on)
    if goes_on and add_generation_prompt:
        raise InvalidArgumentError("`continue_final_message` and `add_generation_prompt` must not both be True")
    own = {
        "messages": conversation,
        "tools": _mappings("tools", options.get("tools")),
        "documents": _mappings("documents", options.get("documents")),
        "add_generation_prompt": add_generation_prompt,
    }
    variables = options.get("variables") or {}
    if taken := sorted(variables.keys() & own.keys()):
        raise InvalidArgumentError(f"`variables` must not contain names of options, got {taken[0]!r}")
    return {name: _plain(value) for name, value in variables.items()} | own


def _mappings(name: str, values: Any) -> list[Any] | None:
    if values is None:
        return None
    wrong = [values] if isinstance(values, Mapping) else [value for value in values if not isinstance(value, Mapping)]
    if wrong:
        raise InvalidArgumentError(f"`{name}` must be a list of mappings, got {wrong[0]!r}")
    return [_plain(value) for value in values]


def _plain_message(message: Message) -> dict[str, Any]:
    """Returns a message as templates expect it: without null values, and with reasoning under all known names."""
    plain: dict[str, Any] = {name: value for name, value in _plain(message).items() if value is not None}
    thinking = next((plain[name] for name in _REASONING_NAMES if name in plain), None)
    return plain if thinking is None else {"thinking": thinking, **plain, "reasoning_content": thinking}


def _plain(value: Any) -> Any:
    """Returns a copy that consists of JSON types only; methods of other types could escape the sandbox."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else list(map(_plain, value))
    return _plain(value.item()) if isinstance(value, np.generic) else f"<{type(value).__name__}>"


def _open_final(conversation: list[dict[str, Any]]) -> str:
    """Appends `_OPEN_END` to the text of the last message and returns the text."""
    content = conversation[-1].get("content")
    if isinstance(content, str):
        conversation[-1]["content"] = content + _OPEN_END
        return content
    parts = [part for part in content or () if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if not parts:
        raise ChatTemplateError("`continue_final_message` needs text in the last message, got none")
    text: str = parts[-1]["text"]
    parts[-1]["text"] = text + _OPEN_END
    return text


def _cut_at_open_end(text: str, final: str) -> str:
    place = text.rfind(_OPEN_END.strip())
    if place < 0 or final.strip() not in text:
        raise ChatTemplateError(
            "`continue_final_message` needs a template that writes the last message unchanged, got one that changes it"
        )
    kept = text[:place]
    return kept if text.startswith(_OPEN_END, place) else kept.rstrip()


def _special_tokens(settings: TokenizerSettings) -> dict[str, Any]:
    tokens = {
        "bos_token": settings.bos_token,
        "eos_token": next(iter(settings.eos_tokens), None),
        "pad_token": settings.pad_token,
        "unk_token": settings.unk_token,
    }
    return {name: token for name, token in tokens.items() if token is not None}


def _no_template(name: str, names: list[str]) -> ChatTemplateError:
    if not names:
        return ChatTemplateError(
            "a chat needs a tokenizer with a chat template, got one without\n"
            f"hint: `use_chat_template(tokenizer, name)` with one of {sorted(TEMPLATES)}, or complete plain text"
        )
    return ChatTemplateError(f"`template_name` must be one of this tokenizer's chat templates ({names}), got {name!r}")


def check_roles(messages: Any) -> None:
    """Checks that a conversation is a list of mappings with a role.

    Raises:
        ChatTemplateError: It is something else, or empty.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise ChatTemplateError(
            f"a conversation must be a list of messages, got {messages!r}\n"
            'hint: a question is `[{"role": "user", "content": "…"}]`'
        )
    if not messages:
        raise ChatTemplateError("a conversation must have at least one message, got none")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ChatTemplateError(f"messages must be mappings with a `role`, got {message!r} at index {index}")


def _check_messages(messages: Sequence[Any]) -> None:
    check_roles(messages)
    for index, message in enumerate(messages):
        if message.get("content") is None and not message.get("tool_calls"):
            raise ChatTemplateError(f"messages must have `content`, got {message!r} at index {index}")
