#!/usr/bin/env bash
# msgspec 0.22.0: JSON's grammar allows a lone surrogate as an escape (RFC 8259, section 8.2). msgspec refuses one, and
# reports a high surrogate at the end of a string as truncated input though nothing is missing.
source "$(dirname "$0")/common.sh"
install msgspec==0.22.0
program <<'PYTHON'
import json

import msgspec

for text in (rb'["\ud800"]', rb'["\udc00"]'):
    print(text, "json:", [hex(ord(part)) for part in json.loads(text)])
    try:
        print(text, "msgspec:", msgspec.json.decode(text))
    except msgspec.DecodeError as error:
        print(text, "msgspec:", error)
PYTHON
expect <<'OUTPUT'
b'["\\ud800"]' json: ['0xd800']
b'["\\ud800"]' msgspec: Input data was truncated
b'["\\udc00"]' json: ['0xdc00']
b'["\\udc00"]' msgspec: JSON is malformed: invalid utf-16 surrogate pair (byte 8)
OUTPUT
