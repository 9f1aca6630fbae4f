"""The server's logs: one `key=value` line per request, never with a prompt, an answer or an API key."""

import logging
import time

from llm.serving.http import Exchange

access_logger = logging.getLogger("llm.serving.access")

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")

_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def configure_logging(level: str) -> None:
    """Sends the package's logs to stderr; stdout stays free for the program's own output."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger = logging.getLogger("llm")
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def granian_logging() -> dict[str, object]:
    """Returns a logging configuration that sends granian's logs to stderr instead of its default, stdout."""
    return {
        "formatters": {"line": {"format": _FORMAT}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {"_granian": {"handlers": ["stderr"], "propagate": False}},
    }


def log_access(exchange: Exchange, status: int) -> None:
    """Logs one finished request; `/health` and `/metrics` are logged only at level debug."""
    level = logging.DEBUG if exchange.path in {"/health", "/metrics"} else logging.INFO
    elapsed_ms = (time.perf_counter() - exchange.started_at) * 1000
    usage = exchange.usage
    access_logger.log(
        level,
        "method=%s path=%s status=%d ms=%.1f prompt_tokens=%d completion_tokens=%d request_id=%s",
        exchange.method,
        exchange.shown_path,
        status,
        elapsed_ms,
        usage.prompt_tokens if usage else 0,
        usage.completion_tokens if usage else 0,
        exchange.request_id,
    )
