"""The official JSON Schema test suite, held against our grammars: what the suite calls invalid is never accepted.

A schema is refused by name or enforced. An instance that is valid may still be refused, since a grammar fixes the order
of keys and how numbers are written; those are counted.

Usage: python -m tests.schemas.suite DIRECTORY, the folder `json/tests` of the suite.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from llm import _rust
from llm.errors import InvalidArgumentError
from llm.settings.engine import EngineConfig

DRAFTS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}


def core() -> _rust.EngineCore:
    """An engine without a model whose tokens are single bytes."""
    config = EngineConfig(max_model_len=64, max_batch_tokens=64)
    table = [bytes([byte]) for byte in range(256)]
    return _rust.EngineCore(config, token_bytes=table, special_ids=[], eos_ids=[], pad_id=None, num_blocks=8)


def ordered(instance: Any, schema: Any) -> Any:
    """The instance with its keys in the order of the schema's properties, as an answer writes them."""
    if not isinstance(instance, dict) or not isinstance(schema, dict):
        return instance
    first = [key for key in schema.get("properties", {}) if key in instance]
    return {key: instance[key] for key in [*first, *(key for key in instance if key not in first)]}


def check(files: list[Path], draft: str, counts: Counter[str], refused: Counter[str]) -> list[str]:
    """Returns each invalid instance that a grammar accepts."""
    engine, wrong = core(), []
    for file in files:
        for case in json.loads(file.read_text(encoding="utf-8")):
            schema = case["schema"]
            if isinstance(schema, dict):
                schema = {"$schema": DRAFTS[draft]} | schema
            counts["schemas"] += 1
            try:
                grammar = engine.compile_grammar("json", json.dumps(schema))
            except InvalidArgumentError as error:
                counts["schemas refused"] += 1
                named = re.search(r"`(\$?\w+)` at #|keyword `([^`]+)`|`(oneOf)`|patternProperty", str(error))
                refused["other" if named is None else next(filter(None, named.groups()), "patternProperties")] += 1
                continue
            for test in case["tests"]:
                text = json.dumps(ordered(test["data"], schema), ensure_ascii=False)
                is_accepted = grammar.accepts(text.encode())
                counts[f"{'valid' if test['valid'] else 'invalid'}, {'accepted' if is_accepted else 'refused'}"] += 1
                if is_accepted and not test["valid"]:
                    wrong.append(f"{draft}/{file.name}: {case['description']}: {test['description']}: {text[:80]}")
    return wrong


def main() -> None:
    """Checks every version of the standard and prints the counts of each."""
    wrong = []
    refused: Counter[str] = Counter()
    for draft in DRAFTS:
        counts: Counter[str] = Counter()
        directory = Path(sys.argv[1]) / draft
        files = [*sorted(directory.glob("*.json")), *sorted(directory.glob("optional/format/*.json"))]
        wrong += check(files, draft, counts, refused)
        print(f"{draft}: " + ", ".join(f"{name} {number}" for name, number in sorted(counts.items())))
    print("schemas refused for: " + ", ".join(f"{name} {number}" for name, number in refused.most_common()))
    print("\n".join([f"{len(wrong)} invalid instances accepted", *wrong]))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
