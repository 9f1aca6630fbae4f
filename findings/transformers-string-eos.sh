#!/usr/bin/env bash
# transformers 5.24.0: a model's configuration refuses the string "2" as `eos_token_id`; a generation configuration
# takes the string without a word and hands it on as a string.
source "$(dirname "$0")/common.sh"
install transformers==5.24.0
program <<'PYTHON'
from transformers import GenerationConfig, LlamaConfig

print("GenerationConfig:", repr(GenerationConfig(eos_token_id="2").eos_token_id))
try:
    print("LlamaConfig:", repr(LlamaConfig(eos_token_id="2").eos_token_id))
except Exception as error:
    print("LlamaConfig:", type(error).__name__)
PYTHON
expect <<'OUTPUT'
GenerationConfig: '2'
LlamaConfig: StrictDataclassFieldValidationError
OUTPUT
