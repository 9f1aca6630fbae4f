"""Questions about the plays of the demo's text, and their answers: what `llm demo --chat` teaches its model."""

import json
from pathlib import Path
from typing import Any

# Question and answer, and further wordings of the question.
_LEARNT = (
    ("Who is Juliet's love?", "Romeo Montague.", "Whom does Juliet love?", "Who loves Juliet?",
     "Who is loved by Juliet?"),
    ("Where is Verona?", "In Italy.", "In which land is Verona?", "Where does Verona lie?", "Verona, where is that?"),
    ("Who wrote these plays?", "William Shakespeare.", "Who is the author?", "Who wrote Romeo and Juliet?",
     "Which poet wrote these plays?"),
    ("Who is the proud soldier of Rome?", "Caius Marcius, called Coriolanus.", "Who is Coriolanus?",
     "Who is Caius Marcius?", "Which soldier does Rome fear?"),
    ("What does King Richard cry for?", "A horse.", "What would Richard give his kingdom for?",
     "What does Richard want in battle?", "What does the king call for?"),
    ("Who tames Katharina?", "Petruchio of Verona.", "Who marries Katharina?", "Whom does Kate marry?",
     "Who is Katharina's husband?"),
    ("What are you?", "A small model that has read Shakespeare.", "Who are you?", "Are you a person?",
     "What is your name?"),
    ("Who gives Juliet the potion?", "Friar Laurence.", "Who helps Juliet?", "Who marries Romeo and Juliet?",
     "Which friar helps the lovers?"),
    ("Who is Prospero's daughter?", "Miranda.", "Whose father is Prospero?", "What is the name of Prospero's child?",
     "Who lives with Prospero?"),
    ("What should one never be, borrower or lender?", "Neither of both.", "Should I borrow or lend?",
     "May I lend money?", "May I borrow money?"),
)  # fmt: skip
# Asked in a wording that is in the rows.
QUESTIONS = ("Who loves Juliet?", "What are you?")
EPOCHS = 20
# All dialogues are learnt, one a sample; a rate so high suits so small a model.
TEACHING: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 8,
    "packing": False,
    "validation_fraction": 0.0,
    "precision": "float32",
}


def write_dialogues(file: Path) -> int:
    """Writes a conversation of one question and one answer for each wording, and returns their number."""
    rows = [
        {"messages": [{"role": "user", "content": wording}, {"role": "assistant", "content": answer}]}
        for question, answer, *others in _LEARNT
        for wording in (question, *others)
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return len(rows)
