"""Times XGrammar's masks over a workload of `bench_grammar.py`; prints JSON with the nanoseconds of each.

Usage: PYTHON xgrammar_masks.py VOCABULARY WORKLOAD, a tiktoken file and a JSON list of `{schema, ids}`.
"""

import base64
import json
import sys
import time
from pathlib import Path

import torch
import xgrammar as xgr


def main() -> None:
    """Compiles each schema, then fills and accepts token by token."""
    torch.set_num_threads(1)
    lines = Path(sys.argv[1]).read_bytes().splitlines()
    vocabulary = [base64.b64decode(line.split()[0]) for line in lines]
    end = len(vocabulary)
    info = xgr.TokenizerInfo([*vocabulary, b"</s>"], vocab_type=xgr.VocabType.RAW, stop_token_ids=[end])
    compiler = xgr.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    bitmask = xgr.allocate_token_bitmask(1, info.vocab_size)
    masks, compilations, refused = [], [], 0
    for case in json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")):
        schema = json.dumps(case["schema"])
        began = time.perf_counter_ns()
        try:
            grammar = compiler.compile_json_schema(schema, any_whitespace=True, strict_mode=False)
        except RuntimeError:
            refused += 1
            continue
        matcher = xgr.GrammarMatcher(grammar)
        compilations.append(time.perf_counter_ns() - began)
        for token in case["ids"]:
            began = time.perf_counter_ns()
            matcher.fill_next_token_bitmask(bitmask)
            masks.append(time.perf_counter_ns() - began)
            if not matcher.accept_token(token):
                break
    print(json.dumps({"masks": masks, "compilations": compilations, "refused": refused}))


if __name__ == "__main__":
    main()
