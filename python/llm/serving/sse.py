"""Server-sent events in OpenAI's format: `data: JSON`, a blank line, and `[DONE]` as the last event.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import msgspec

from llm.serving.protocol.common import encoder

DONE = b"data: [DONE]\n\n"

# `no-cache` and `X-Accel-Buffering` keep proxies from buffering tokens that should arrive one by one.
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


def event(payload: msgspec.Struct) -> bytes:
    """Returns one event's bytes; JSON escapes every newline, so a payload can't break the framing."""
    return b"data: " + encoder.encode(payload) + b"\n\n"


def named_event(payload: msgspec.Struct) -> bytes:
    """Returns an event whose name is the payload's own tag, as the APIs of messages and responses send it."""
    return b"event: %b\n%b" % (str(payload.__struct_config__.tag).encode(), event(payload))
