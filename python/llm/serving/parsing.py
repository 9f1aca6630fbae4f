"""Parses request bodies into typed requests; an `APIError` names the parameter, its value and the allowed values.

A key of a request is of one of four kinds. Fields of the request types are acted on. `known_keys` lists the other keys
of this field: those that would change the answer are a 400 with the way out, the rest is accepted. A key that nobody
knows is logged once and ignored, or refused if the server is strict.
"""

import difflib
import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar, get_args

import msgspec

from llm.serving.errors import APIError, bad_request, unsupported
from llm.serving.known_keys import (
    ACCEPTED,
    ACCEPTED_IN_MESSAGE,
    NESTED,
    REFUSED,
    REFUSED_IN_MESSAGE,
    REFUSED_IN_STREAM_OPTIONS,
    Refused,
)
from llm.serving.protocol.chat import ChatCompletionRequest, ChatMessage, ReasoningEffort, Role, TextPart, Verbosity
from llm.serving.protocol.common import GenerationRequest
from llm.serving.protocol.completions import MAX_PROMPTS, CompletionRequest
from llm.serving.protocol.formats import FORMAT_TYPES
from llm.serving.protocol.tools import ToolMode
from llm.serving.tool_checks import tool_problem

logger = logging.getLogger(__name__)

RequestT = TypeVar("RequestT", bound=msgspec.Struct)

# Clients send these keys of older or other answers back empty.
NEUTRAL_IN_MESSAGE: dict[str, tuple[object, ...]] = {
    "function_call": (None,),
    "audio": (None,),
    "refusal": (None,),
}
UNSUPPORTED_ROLE = "function"

# The allowed values of enumerated fields, by the end of the field's path.
_ALLOWED: dict[str, tuple[str, ...]] = {
    "response_format": FORMAT_TYPES,
    "response_format.type": FORMAT_TYPES,
    "role": get_args(Role),
    "tools.type": ("function",),
    "tool_calls.type": ("function",),
    "tool_choice.type": ("function",),
    "tool_choice": get_args(ToolMode),
    "type": (str(TextPart.__struct_config__.tag),),
    "reasoning_effort": get_args(ReasoningEffort),
    "verbosity": get_args(Verbosity),
}
_KNOWN_IN_MESSAGE = {
    f"messages[].{key}"
    for keys in (ChatMessage.__struct_fields__, NEUTRAL_IN_MESSAGE, REFUSED_IN_MESSAGE, ACCEPTED_IN_MESSAGE)
    for key in keys
}
# Inputs of every template, which `chat_template_kwargs` must not replace.
_OWN = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}
_SHOWN_CHARS = 80
_LOCATION = re.compile(r"^(?P<problem>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>[^`]*?)(?:\[\.\.\.\])?`)?$", re.DOTALL)
_ESCAPE = re.compile(rb"\\(?:u([0-9a-f]{4})|.)", re.IGNORECASE | re.DOTALL)
_INDEX = re.compile(r"\[\d+\]")
_PATH_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


class UnknownKeys:
    """Logs each unknown request key once, and at most `limit` keys in all, because clients choose the keys.

    Args:
        strict: Whether to refuse unknown keys instead.
        limit: Largest number of keys to log.
    """

    def __init__(self, *, strict: bool = False, limit: int = 1000) -> None:
        self._strict = strict
        self._seen: set[str] = set()
        self._limit = limit

    def handle(self, keys: Iterable[str], known: Iterable[str]) -> None:
        """Logs the keys that were not logged before, or refuses the first key.

        Raises:
            APIError: 400 with the nearest of the `known` keys, if the server is strict.
        """
        for key in keys:
            if self._strict:
                raise _unknown_key(key, known)
            if key in self._seen or len(self._seen) >= self._limit:
                continue
            self._seen.add(key)
            logger.warning("unknown request key %r is ignored", key[:_SHOWN_CHARS])


def parse_request(body: bytes, request_type: type[RequestT], unknown_keys: UnknownKeys) -> RequestT:
    """Parses a request's body and checks its parameters.

    Raises:
        APIError: 400, with the name of the invalid parameter if there is one.
    """
    return typed_request(parse_object(body), request_type, unknown_keys)


def typed_request(raw: dict[str, Any], request_type: type[RequestT], unknown_keys: UnknownKeys) -> RequestT:
    """Checks the parameters of a decoded body.

    Raises:
        APIError: 400, with the name of the invalid parameter if there is one.
    """
    _check_messages(raw.get("messages"))
    fields = request_type.__struct_encode_fields__
    _check_nested(raw.get(NESTED), fields)
    check_refused(raw, REFUSED, fields)
    options = raw.get("stream_options")
    check_refused(options if isinstance(options, dict) else {}, REFUSED_IN_STREAM_OPTIONS, (), "stream_options.")
    request = convert(raw, request_type)
    if isinstance(request, GenerationRequest):
        _check_combinations(request)
    known = REFUSED.keys() | ACCEPTED | set(fields)
    unknown_keys.handle((key for key in raw if key not in known), known)
    unknown_keys.handle(_unknown_in_messages(raw.get("messages")), _KNOWN_IN_MESSAGE)
    return request


def parse_object(body: bytes) -> dict[str, Any]:
    """Decodes a body that must be a JSON object.

    Raises:
        APIError: 400 that says what is wrong and where.
    """
    try:
        raw = msgspec.json.decode(body)
    except RecursionError as error:
        raise bad_request("The request body is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if (place := _first_invalid(body)) is not None:
            raise bad_request(f"The request body is not UTF-8: byte {place} can't be decoded") from error
        if (place := _lone_surrogate(body)) is not None:
            message = f"The request body contains invalid Unicode: a lone surrogate at byte {place}"
            raise bad_request(message) from error
        raise bad_request(f"The request body is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise bad_request(f"The request body must be a JSON object, got {shown(raw)}")
    return raw


def _first_invalid(body: bytes) -> int | None:
    """Returns the offset of the first byte that isn't UTF-8; msgspec names none, or counts from a string's start."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None


def _lone_surrogate(body: bytes) -> int | None:
    """Returns the offset of the first half of a surrogate pair without its other half."""
    high: re.Match[bytes] | None = None
    for escape in _ESCAPE.finditer(body):
        unit = int(escape[1], 16) if escape[1] else 0
        completes = high is not None and high.end() == escape.start() and 0xDC00 <= unit < 0xE000
        if high is not None and not completes:
            return high.start()
        if high is None and 0xDC00 <= unit < 0xE000:
            return escape.start()
        high = escape if 0xD800 <= unit < 0xDC00 else None
    return None if high is None else high.start()


def _check_messages(messages: object) -> None:
    """Rejects unsupported roles and fields of messages; `convert` checks the types later."""
    if not isinstance(messages, list):
        return
    for position, message in enumerate(messages):
        if not isinstance(message, dict):
            continue
        where = f"messages[{position}]"
        if message.get("role") == UNSUPPORTED_ROLE:
            problem = (
                f'`{where}.role` "{UNSUPPORTED_ROLE}" is not supported\nhint: send the result with the role "tool"'
            )
            raise unsupported(problem, f"{where}.role")
        _check_neutral(message, NEUTRAL_IN_MESSAGE, prefix=f"{where}.")
        check_refused(message, REFUSED_IN_MESSAGE, (), f"{where}.")


def _unknown_in_messages(messages: object) -> Iterable[str]:
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            yield from (f"messages[].{key}" for key in message if f"messages[].{key}" not in _KNOWN_IN_MESSAGE)


def check_refused(
    raw: Mapping[str, object], table: Mapping[str, Refused], fields: Collection[str], prefix: str = ""
) -> None:
    """Refuses the keys of a table whose value would change the answer; `fields` are acted on instead."""
    for name, value in raw.items():
        row = table.get(name)
        if row is None or name in fields or _is_one_of(value, (None, *row.neutral)):
            continue
        raise _refusal(f"{prefix}{name}", value, row)


def _check_nested(nested: object, fields: Collection[str]) -> None:
    """Refuses a mapping that holds parameters below the top level, with the first one's name and way out."""
    for name, value in nested.items() if isinstance(nested, dict) else ():
        if name in fields:
            raise _refusal(f"{NESTED}.{name}", value, Refused(f"send `{name}` at the top level"))
        if name in REFUSED:
            raise _refusal(f"{NESTED}.{name}", value, REFUSED[name])


def _refusal(name: str, value: object, row: Refused) -> APIError:
    allowed = ", ".join(map(shown, (None, *row.neutral)))
    message = f"`{name}` is not supported with this value: got {shown(value)}, allowed: {allowed}"
    return unsupported(f"{message}\nhint: {row.hint}" if row.hint else message, name)


def _unknown_key(key: str, known: Iterable[str]) -> APIError:
    nearest = difflib.get_close_matches(key[:_SHOWN_CHARS], known, n=1)
    hint = f"did you mean `{nearest[0]}`?" if nearest else "leave it out; this server refuses keys it doesn't know"
    message = f"`{key[:_SHOWN_CHARS]}` is not a parameter of this endpoint\nhint: {hint}"
    return bad_request(message, param=key[:_SHOWN_CHARS], code="unknown_parameter")


def _check_neutral(raw: Mapping[str, object], neutral: Mapping[str, tuple[object, ...]], prefix: str = "") -> None:
    for name, allowed in neutral.items():
        if not _is_one_of(raw.get(name), allowed):
            raise _refusal(f"{prefix}{name}", raw.get(name), Refused("", allowed[1:]))


def _is_one_of(value: object, choices: Iterable[object]) -> bool:
    """Compares JSON values: a number equals one of the other number type, but never a boolean."""
    return any(isinstance(value, bool) is isinstance(choice, bool) and value == choice for choice in choices)


def convert(
    raw: dict[str, Any], request_type: type[RequestT], allowed: Mapping[str, tuple[str, ...]] = _ALLOWED
) -> RequestT:
    """Returns a decoded body as a typed request.

    Args:
        raw: The body.
        request_type: The type of the request.
        allowed: The allowed values of enumerated fields, by the end of the field's path without indices.

    Raises:
        APIError: 400 that names the field and its value.
    """
    try:
        return msgspec.convert(raw, request_type, str_keys=True)
    except msgspec.ValidationError as error:
        raise _type_error(str(error), raw, allowed) from error


def _type_error(text: str, raw: dict[str, Any], allowed: Mapping[str, tuple[str, ...]]) -> APIError:
    """Rewords an error of msgspec and adds the value that was sent."""
    match = _LOCATION.match(text)
    problem, path = (match["problem"], match["path"] or "") if match else (text, "")
    missing = re.search(r"missing required field `(\w+)`", problem)
    if missing:
        param = f"{path}.{missing[1]}" if path else missing[1]
        return bad_request(f"`{param}` is required", param=param, code="missing_required_parameter")
    choices = next((values for end, values in allowed.items() if _INDEX.sub("", path).endswith(end)), None)
    if choices and problem.startswith("Invalid"):
        message = f"`{path}` must be one of {', '.join(choices)}, got {shown(_value_at(raw, path))}"
        return bad_request(message, param=path)
    message = f"`{path}` is invalid: {problem[:1].lower()}{problem[1:]}"
    if ", got " not in problem:
        message += f", got {shown(_value_at(raw, path))}"
    return bad_request(message, param=path or None)


def _value_at(raw: object, path: str) -> object:
    """Returns the value at a path such as `messages[0].role`, or None if the path doesn't exist."""
    value = raw
    for key, index in _PATH_STEP.findall(path):
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and index:
            value = value[int(index)]
    return value


def shown(value: object) -> str:
    """Returns a value as JSON for a message, cut to a line."""
    try:
        text = json.dumps(value, ensure_ascii=False)  # msgspec's encoder refuses integers past 64 bits
    except RecursionError:
        return "a deeply nested value"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _check_combinations(request: GenerationRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise bad_request("`stream_options` is only allowed when `stream` is true", param="stream_options")
    if request.stream and request.prompt_logprobs is not None:
        raise bad_request("`prompt_logprobs` is not allowed when `stream` is true", param="prompt_logprobs")
    match request:
        case ChatCompletionRequest(top_logprobs=int(number), logprobs=None | False) if number > 0:
            raise bad_request("`top_logprobs` is only allowed when `logprobs` is true", param="top_logprobs")
        case ChatCompletionRequest(max_tokens=int(old), max_completion_tokens=int(new)) if old != new:
            message = f"`max_tokens` ({old}) and `max_completion_tokens` ({new}) contradict each other: send only one"
            raise bad_request(message, param="max_tokens")
        case ChatCompletionRequest(continue_final_message=True, add_generation_prompt=True):
            message = (
                "`continue_final_message` and `add_generation_prompt` contradict each other: send only one as true"
            )
            raise bad_request(message, param="continue_final_message")
        case ChatCompletionRequest() if problem := tool_problem(request):
            raise problem
        case ChatCompletionRequest(chat_template_kwargs=dict(variables)) if taken := sorted(variables.keys() & _OWN):
            message = f"`chat_template_kwargs` must not contain `{taken[0]}`\nhint: send it at the top level"
            raise bad_request(message, param="chat_template_kwargs")
        case CompletionRequest():
            _check_completion(request)
        case _:
            return


def _check_completion(request: CompletionRequest) -> None:
    if isinstance(request.prompt, list):
        _check_prompts(request.prompt)
    scores_prompt = bool(request.echo) or request.prompt_logprobs is not None
    if request.max_tokens == 0 and not scores_prompt:
        message = "`max_tokens` must be at least 1, got 0\nhint: 0 is allowed with `echo` or `prompt_logprobs`"
        raise bad_request(message, param="max_tokens")
    if request.echo and request.logprobs is not None and request.prompt_logprobs_start:
        message = "`prompt_logprobs_start` is not allowed when `echo` is true and `logprobs` is set"
        raise bad_request(message, param="prompt_logprobs_start")
    if request.best_of is None:
        return
    num_choices = request.n or 1
    if request.best_of < num_choices:
        raise bad_request(f"`best_of` must be at least `n` ({num_choices}), got {request.best_of}", param="best_of")
    if request.stream and request.best_of > num_choices:
        message = f"`best_of` must equal `n` ({num_choices}) when `stream` is true, got {request.best_of}"
        raise bad_request(message, param="best_of")


def _check_prompts(prompts: list[Any]) -> None:
    """Checks that a list is one prompt of token ids or several prompts of one kind."""
    kinds = {type(prompt) for prompt in prompts}
    if len(kinds) > 1:
        raise bad_request("`prompt` must be all strings, all token ids or all lists of token ids", param="prompt")
    if kinds != {int} and len(prompts) > MAX_PROMPTS:
        raise bad_request(f"`prompt` must hold at most {MAX_PROMPTS} prompts, got {len(prompts)}", param="prompt")
