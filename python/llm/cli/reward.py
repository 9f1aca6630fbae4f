"""`llm reward`."""

from llm.cli.tuning import Verb

CONTEXT = {"ignore_unknown_options": True}
EXAMPLE = "Example:  llm reward runs/base --data pairs.jsonl --out runs/judge"

command = Verb(
    name="reward",
    kind="preference",
    about="Train a reward model on pairs of answers, or resume such a run.",
    options={"preference.centering": ()},
    fixed=("preference.loss=reward",),
).command()
