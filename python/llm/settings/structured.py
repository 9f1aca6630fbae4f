"""The form that an answer must have: structured outputs, in the words of vLLM."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from llm.errors import InvalidArgumentError


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The form of the answer: exactly one of `json`, `json_object`, `regex`, `choice` and `grammar`.

    A finished answer always has this form; one that ends with `length`, or at a stop text, is the beginning of one.

    Example:
        >>> from llm import LLM, SamplingParams
        >>> year = StructuredOutputs(regex="(19|20)[0-9]{2}")
        >>> LLM("runs/demo").generate("It was in", SamplingParams(structured_outputs=year))  # doctest: +SKIP

    Raises:
        InvalidArgumentError: None or several of the fields are set.
    """

    json: (
        Annotated[
            dict[str, Any] | bool | str, Meta(description="JSON schema of the answer, as an object or as JSON text.")
        ]
        | None
    ) = None
    json_object: Annotated[bool, Meta(description="Any JSON object.")] = False
    regex: (
        Annotated[str, Meta(description="Regular expression that the whole answer matches, in Rust's syntax.")] | None
    ) = None
    choice: Annotated[tuple[str, ...], Meta(min_length=1, description="Texts, one of which is the answer.")] | None = (
        None
    )
    grammar: (
        Annotated[
            str,
            Meta(
                description="Grammar in llguidance's variant of Lark; `%json {…}` is JSON of that schema, `<|name|>` a "
                "special token."
            ),
        ]
        | None
    ) = None
    disable_any_whitespace: Annotated[
        bool, Meta(description="Forbid white space between the tokens of JSON, so that keys come faster.")
    ] = False

    def __post_init__(self) -> None:
        """Checks that exactly one form is given."""
        if len(given := self.given) != 1:
            raise InvalidArgumentError(
                "give exactly one of `json`, `json_object`, `regex`, `choice` and `grammar`, "
                f"got {', '.join(f'`{name}`' for name in given) or 'none'}"
            )

    @property
    def given(self) -> list[str]:
        """The names of the forms that are set."""
        forms = {
            "json": self.json is not None,
            "json_object": self.json_object,
            "regex": self.regex is not None,
            "choice": self.choice is not None,
            "grammar": self.grammar is not None,
        }
        return [name for name, is_set in forms.items() if is_set]

    @property
    def source(self) -> tuple[str, str | Sequence[str]]:
        """The kind of grammar and its text, as the Rust compiler takes them."""
        if self.regex is not None:
            return "regex", self.regex
        if self.choice is not None:
            return "choice", self.choice
        if self.grammar is not None:
            return "grammar", self.grammar
        schema = {"type": "object"} if self.json is None else self.json
        return "json", schema if isinstance(schema, str) else msgspec.json.encode(schema).decode()
