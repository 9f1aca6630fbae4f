"""`llm sft`."""

from llm.cli.tuning import Verb

CONTEXT = {"ignore_unknown_options": True}
EXAMPLE = "Example:  llm sft SmolLM2-135M-Instruct --data chats.jsonl --out runs/mine"

command = Verb(
    name="sft",
    kind="chat",
    about="Fine-tune a model on conversations, or resume such a run.",
    options={"data.loss_on": (), "distillation.teacher": ()},
).command()
