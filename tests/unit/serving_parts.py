"""The parts of an answer that the tests of several APIs turn into responses and events."""

from llm.inference.parts import Part

PARTS = [
    Part("reasoning", None, "Let me see. é"),
    Part("text", None, "\n\nI look"),
    Part("text", None, " now 🙂"),
    Part("call", 0, "look"),
    Part("arguments", 0, '{"at": "é🙂", "n": 1}'),
    Part("text", None, " \n"),
    Part("call", 1, "look"),
    Part("arguments", 1, "{}"),
]
