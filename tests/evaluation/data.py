"""Tasks whose data is made here: samples as JSONL files, and the harness's description of each as YAML."""

import json
import random
from pathlib import Path

from llm.demo import demo_corpus

SEPARATOR = " "
NUM_CHOICES = 4
SHOTS = 3

CHOICES = """\
task: oxide_choices
dataset_path: json
dataset_kwargs:
  data_files:
    train: {train}
    test: {test}
output_type: multiple_choice
test_split: test
fewshot_split: train
num_fewshot: {shots}
fewshot_config:
  sampler: first_n
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""
TEXTS = """\
task: oxide_texts
dataset_path: json
dataset_kwargs:
  data_files:
    test: {texts}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
"""
ANSWERS = """\
task: oxide_answers
dataset_path: json
dataset_kwargs:
  data_files:
    test: {answers}
output_type: generate_until
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["\\n"]
  do_sample: false
  max_gen_toks: 12
metric_list:
  - metric: exact_match
"""


def write_tasks(directory: Path, num_samples: int) -> Path:
    """Writes the three tasks with their data and returns the samples of multiple choice for `llm eval`."""
    lines = [line for line in demo_corpus().splitlines() if len(line.split()) >= 6]
    chance = random.Random(0)
    rows = [_choice(lines, chance) for _ in range(SHOTS + num_samples)]
    files = {
        "train": _write(directory / "train.jsonl", rows[:SHOTS]),
        "test": _write(directory / "test.jsonl", rows[SHOTS:]),
        "texts": _write(directory / "texts.jsonl", [{"text": _text(lines, chance)} for _ in range(3)]),
        "answers": _write(
            directory / "answers.jsonl",
            [{"context": row["context"], "answer": row["choices"][row["answer"]]} for row in rows[:5]],
        ),
    }
    for name, task in (("choices", CHOICES), ("texts", TEXTS), ("answers", ANSWERS)):
        (directory / f"{name}.yaml").write_text(task.format(shots=SHOTS, **files), encoding="utf-8")
    return Path(_write(directory / "samples.jsonl", rows))


def _choice(lines: list[str], chance: random.Random) -> dict[str, object]:
    """Returns a line of the corpus and half of the next one, to be continued with its rest."""
    at = chance.randrange(len(lines) - 1)
    words = lines[at + 1].split()
    cut = len(words) // 2
    others = [" ".join(chance.choice(lines).split()[-chance.randint(2, 5) :]) for _ in range(NUM_CHOICES - 1)]
    answer = chance.randrange(NUM_CHOICES)
    others.insert(answer, " ".join(words[cut:]))
    return {"context": "\n".join([lines[at], " ".join(words[:cut])]), "choices": others, "answer": answer}


def _text(lines: list[str], chance: random.Random) -> str:
    at = chance.randrange(len(lines) - 40)
    return "\n".join(lines[at : at + 8]) + "\nÉté 🙂"


def _write(file: Path, rows: list[dict[str, object]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)
