"""The server's logs, as text or JSON: one line per request, never with a prompt, an answer or an API key."""

import json
import logging
import re
import time
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import msgspec

from llm.serving.errors import APIError
from llm.serving.http import Exchange

access_logger = logging.getLogger("llm.serving.access")

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")

_WATCHED = {"/health", "/ready", "/ping", "/metrics"}

# A text, list or object that a message quotes; numbers, types and words of JSON are no prompts.
_SENT = re.compile(r"""got (?=["'\[{])[^\n]*""")

_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


class Line:
    """Named values: `key=value` pairs in a log of text, and keys of their own in a log of JSON."""

    def __init__(self, **values: Any) -> None:
        self.values = {name: value for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        return " ".join(f"{name}={_quoted(value)}" for name, value in self.values.items())


def _quoted(value: object) -> str:
    """Returns a value as one word: a text with spaces or line breaks in quotes."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if len(text.split()) > 1 else text


class JSONFormatter(logging.Formatter):
    """Writes each record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record on one line."""
        time_text = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time_text, "level": record.levelname.lower(), "logger": record.name}
        line |= record.msg.values if isinstance(record.msg, Line) else {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


_FORMATTERS: dict[str, dict[str, Any]] = {"text": {"format": _FORMAT}, "json": {"()": JSONFormatter}}


def configure_logging(level: str, log_format: str = "text") -> None:
    """Sends the package's logs to stderr; stdout stays free for the program's own output."""
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter() if log_format == "json" else logging.Formatter(_FORMAT))
    logger = logging.getLogger("llm")
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def granian_logging(log_format: str = "text") -> dict[str, object]:
    """Returns a logging configuration that sends granian's logs to stderr instead of its default, stdout."""
    return {
        "formatters": {"line": _FORMATTERS[log_format]},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {"_granian": {"handlers": ["stderr"], "propagate": False}},
    }


def log_refusal(exchange: Exchange, error: APIError) -> None:
    """Logs what was wrong with a request; texts that the client sent are left out, because they may be prompts."""
    if error.status == HTTPStatus.BAD_REQUEST:  # the status of any other error says enough
        message = _SENT.sub("got …", error.body.message)
        access_logger.info(Line(refused=error.body.param or "body", message=message, request_id=exchange.request_id))


def log_access(exchange: Exchange, status: int, model_name: str) -> None:
    """Logs one finished request; those that only watch the server are logged at level debug."""
    level = logging.DEBUG if exchange.path in _WATCHED else logging.INFO
    if not access_logger.isEnabledFor(level):
        return
    usage, first_token_s = exchange.usage, exchange.first_token_s
    line = Line(
        method=exchange.method,
        path=exchange.shown_path,
        status=status,
        ms=_milliseconds(time.perf_counter() - exchange.started_at),
        first_token_ms=None if first_token_s is None else _milliseconds(first_token_s),
        key=exchange.key_name,
        model=None if usage is None else model_name,
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
        request_id=exchange.request_id,
        trace_id=exchange.trace_id,
    )
    access_logger.log(level, line)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
