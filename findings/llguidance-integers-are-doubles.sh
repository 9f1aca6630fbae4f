#!/usr/bin/env bash
# llguidance 1.9.1: integers of a JSON schema pass through a 64-bit float. A schema that allows only 9007199254740993
# (2^53 + 1) allows 9007199254740992 instead, and refuses the number that the schema names.
source "$(dirname "$0")/common.sh"
install llguidance==1.9.1
program <<'PYTHON'
import json

from llguidance import LLMatcher, LLTokenizer

tokenizer = LLTokenizer("byte")
schema = json.dumps({"enum": [9007199254740993]})
for text in ("9007199254740993", "9007199254740992"):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(schema))
    tokens = tokenizer.tokenize_str(text)
    print(text, matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())
PYTHON
expect <<'OUTPUT'
9007199254740993 False
9007199254740992 True
OUTPUT
