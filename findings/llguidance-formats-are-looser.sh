#!/usr/bin/env bash
# llguidance 1.9.1 follows the grammar of a string's `format` and not its other rules: it accepts the 29th of February of
# any year, leap seconds of any minute, and e-mail addresses and host names of any length, all of which jsonschema-rs
# 0.61.2, told to validate formats, refuses.
source "$(dirname "$0")/common.sh"
install llguidance==1.9.1 jsonschema-rs==0.61.2
program <<'PYTHON'
import json

import jsonschema_rs
from llguidance import LLMatcher, LLTokenizer


def accepts(schema: dict, text: str) -> bool:
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    tokens = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


values = [
    ("date", "2024-02-29"),
    ("date", "2023-02-29"),
    ("date", "2023-02-30"),
    ("time", "23:59:60Z"),
    ("time", "10:00:60Z"),
    ("email", "a" * 64 + "@b.org"),
    ("email", "a" * 65 + "@b.org"),
    ("hostname", ".".join(["b" * 62] * 4)),
    ("hostname", ".".join(["b" * 62] * 5)),
]
for format, value in values:
    schema = {"type": "string", "format": format}
    text = json.dumps(value)
    valid = jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(value)
    shown = value if len(value) < 20 else f"{len(value)} letters"
    print(f"{format} {shown}: llguidance {accepts(schema, text)}, jsonschema-rs {valid}")
PYTHON
expect <<'OUTPUT'
date 2024-02-29: llguidance True, jsonschema-rs True
date 2023-02-29: llguidance True, jsonschema-rs False
date 2023-02-30: llguidance False, jsonschema-rs False
time 23:59:60Z: llguidance True, jsonschema-rs True
time 10:00:60Z: llguidance True, jsonschema-rs False
email 70 letters: llguidance True, jsonschema-rs True
email 71 letters: llguidance True, jsonschema-rs False
hostname 251 letters: llguidance True, jsonschema-rs True
hostname 314 letters: llguidance True, jsonschema-rs False
OUTPUT
