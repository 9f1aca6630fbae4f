"""`llm dpo`."""

from llm.cli.tuning import Verb

CONTEXT = {"ignore_unknown_options": True}
EXAMPLE = "Example:  llm dpo runs/base --data pairs.jsonl --out runs/style"

command = Verb(
    name="dpo",
    kind="preference",
    about="Teach a model to prefer answers to others (DPO, IPO, SimPO, ORPO, KTO), or resume such a run.",
    options={"preference.loss": (), "preference.beta": ()},
).command()
