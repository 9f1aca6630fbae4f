"""Undoes the content encoding of a request body, within the body limit."""

import zlib

from llm.serving.errors import bad_request, body_too_large, unsupported_encoding

_GZIP_WINDOW = 16 + zlib.MAX_WBITS  # zlib's number for gzip's header and checksum
_ENCODINGS = ("gzip", "identity")


def is_encoded(encoding: str) -> bool:
    """Returns whether a body with this `Content-Encoding` has to be decoded.

    Raises:
        APIError: 415 that names the encoding, if the server can't decode it.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return False
    if name in ("gzip", "x-gzip"):
        return True
    raise unsupported_encoding(encoding, _ENCODINGS)


def gunzip(body: bytes, limit_bytes: int) -> bytes:
    """Returns the content of a gzip body; it never holds more than the limit in memory.

    Raises:
        APIError: 400 if the body isn't gzip, 413 if its content exceeds the limit.
    """
    content = b""
    while body:
        member = zlib.decompressobj(_GZIP_WINDOW)
        try:
            content += member.decompress(body, limit_bytes + 1 - len(content))
        except zlib.error as error:
            raise bad_request(f"The request body is not valid gzip: {error}", code="invalid_encoding") from None
        if len(content) > limit_bytes:
            raise body_too_large(limit_bytes)
        if not member.eof:
            raise bad_request("The request body is not valid gzip: it ends too early", code="invalid_encoding")
        body = member.unused_data
    return content
