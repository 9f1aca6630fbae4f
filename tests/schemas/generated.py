"""Random JSON schemas of the kinds that people send: forms, records, tool arguments, configurations, unions."""

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

WORDS = ("name", "city", "count", "price", "tags", "unit", "id", "note", "state", "when", "items", "parent")
FORMATS = ("date", "date-time", "time", "email", "ipv4", "ipv6", "uuid", "uri", "hostname", "duration")
PATTERNS = (r"^[a-z]{2,5}$", r"^\d{3}-\d{4}$", r"^(red|green|blue)$", r"[A-F0-9]{4}", r"^v\d+\.\d+$")
DEPTH = 3


class SchemaMaker:
    """Makes schemas from a seed; the same seed gives the same schemas."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.definitions: dict[str, Schema] = {}

    def root(self) -> Schema:
        """Returns a schema that stands alone, with the definitions that it refers to."""
        self.definitions = {}
        schema = self.random.choice((self.record, self.record, self.record, self.array, self.union))(0)
        return schema | {"$defs": self.definitions} if self.definitions else schema

    def schema(self, depth: int) -> Schema:
        """Returns any schema; below `DEPTH` a simple one."""
        simple: list[Callable[[int], Schema]] = [self.text, self.number, self.constant]
        nested: list[Callable[[int], Schema]] = [self.record, self.array, self.union, self.reference]
        return self.random.choice(simple if depth >= DEPTH else simple + nested)(depth)

    def record(self, depth: int) -> Schema:
        """Returns an object with some required properties."""
        names = self.random.sample(WORDS, self.random.randint(1, 4))
        properties = {name: self.schema(depth + 1) for name in names}
        required = [name for name in names if self.random.random() < 0.7]
        schema: Schema = {"type": "object", "properties": properties, "required": required}
        extra = self.random.random()
        if extra < 0.7:
            schema["additionalProperties"] = False
        elif extra < 0.8:
            schema["additionalProperties"] = {"type": "boolean"}
        return schema

    def array(self, depth: int) -> Schema:
        """Returns a bounded list, or a tuple."""
        if self.random.random() < 0.2:
            entries = [self.schema(depth + 1) for _ in range(self.random.randint(1, 3))]
            return {"type": "array", "prefixItems": entries, "items": False, "minItems": len(entries)}
        low = self.random.randint(0, 2)
        return {"type": "array", "items": self.schema(depth + 1), "minItems": low, "maxItems": low + 2}

    def union(self, depth: int) -> Schema:
        """Returns a choice between schemas."""
        return {"anyOf": [self.schema(depth + 1) for _ in range(self.random.randint(2, 3))]}

    def reference(self, depth: int) -> Schema:
        """Returns a reference to a new definition."""
        name = f"part{len(self.definitions)}"
        self.definitions[name] = {}
        self.definitions[name] = self.schema(depth + 1)
        return {"$ref": f"#/$defs/{name}"}

    def text(self, _: int) -> Schema:
        """Returns a short string, one of a format or one of a pattern."""
        low = self.random.randint(0, 3)
        return self.random.choice(
            (
                {"type": "string", "minLength": low, "maxLength": low + 6},
                {"type": "string", "format": self.random.choice(FORMATS)},
                {"type": "string", "pattern": self.random.choice(PATTERNS), "maxLength": 12},
            )
        )

    def number(self, _: int) -> Schema:
        """Returns a bounded integer or number."""
        low = self.random.randint(-50, 50)
        high = low + self.random.randint(0, 200)
        return self.random.choice(
            (
                {"type": "integer", "minimum": low, "maximum": high},
                {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": high + 2},
                {"type": "integer", "minimum": 0, "maximum": 99, "multipleOf": self.random.choice((2, 5, 10))},
                {"type": "number", "minimum": low, "maximum": high},
                {"type": ["integer", "null"], "minimum": low, "maximum": high},
            )
        )

    def constant(self, _: int) -> Schema:
        """Returns an enumeration, a constant, a boolean or null."""
        return self.random.choice(
            (
                {"enum": ["on", "off", 3, None, True]},
                {"const": self.random.choice(WORDS)},
                {"type": "string", "enum": self.random.sample(WORDS, 3)},
                {"type": "boolean"},
                {"type": "null"},
            )
        )
