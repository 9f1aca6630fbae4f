"""Checks a commit's subject: `part: imperative sentence`, at most 72 characters, without a full stop.

The `commit-msg` hook of pre-commit calls this with the file that holds the message.
"""

import re
import sys
from pathlib import Path

MAX_LENGTH = 72
# Git writes these subjects itself.
_BY_GIT = re.compile(r"(Merge|Revert|fixup!|squash!|amend!) ")
_FORM = re.compile(r"[a-z][a-z0-9 ,_./-]*: (?P<verb>\w+)\b.*[^.\s]")
# A first word that ends like these is a past tense, a third person or a participle, not a command.
_NOT_IMPERATIVE = re.compile(r"\w+(ed|ing|[^su]s)", re.IGNORECASE)
_IMPERATIVES = {"bring", "embed", "feed", "need", "process", "seed", "shed", "speed", "spring", "string", "focus"}
_NOT_VERBS = {"a", "an", "the", "all", "it", "its", "no", "where", "what", "when", "whose", "whether", "this"}


def problem(subject: str) -> str | None:
    """What is wrong with a subject; `None` if it is fine."""
    if _BY_GIT.match(subject):
        return None
    if len(subject) > MAX_LENGTH:
        return f"the subject must have at most {MAX_LENGTH} characters, got {len(subject)}"
    found = _FORM.fullmatch(subject)
    if found is None:
        return "the subject must be `part: imperative sentence` in lower case without a full stop"
    verb = found["verb"].lower()
    if verb in _NOT_VERBS or (verb not in _IMPERATIVES and _NOT_IMPERATIVE.fullmatch(verb)):
        return f"the subject must begin with an imperative (`add`, `fix`), got {found['verb']!r}"
    return None


def main() -> None:
    """Exits with 1 and the reason if the message's first line breaks a rule."""
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    subject = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    found = problem(subject)
    if found is not None:
        sys.exit(f"error: {found}\n  {subject}\nhint: scheduler: reuse prefix blocks across requests")


if __name__ == "__main__":
    main()
