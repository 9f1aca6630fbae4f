#!/usr/bin/env bash
# llguidance 1.9.1: a string of a JSON schema may hold "é" and "\n", but neither "\u00e9" nor "\/", which JSON allows.
# Text that `json.dumps` writes with its default `ensure_ascii=True` is therefore refused.
source "$(dirname "$0")/common.sh"
install llguidance==1.9.1
program <<'PYTHON'
from llguidance import LLMatcher, LLTokenizer

tokenizer = LLTokenizer("byte")
for text in ('"é"', r'"\n"', r'"\u00e9"', r'"\/"'):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema('{"type": "string"}'))
    tokens = tokenizer.tokenize_str(text)
    print(text, matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())
PYTHON
expect <<'OUTPUT'
"é" True
"\n" True
"\u00e9" False
"\/" False
OUTPUT
