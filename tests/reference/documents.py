"""Documents of a text, found the slow and obvious way."""


def documents(text: str, separator: str) -> list[str]:
    """Returns what lies between separators and isn't blank; a line break after a separator belongs to it."""
    first, *others = text.split(separator)
    bare = [part.removeprefix("\r\n") if part.startswith("\r") else part.removeprefix("\n") for part in others]
    return [part for part in (first, *bare) if part.strip()]
