"""What of a conversation is learned: the assistant's turns with their ends, by ids equal to those served."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import ChatTemplateError
from llm.tokenization import SimpleCharacterTokenizer, encode_chat, encode_chat_with_mask, use_chat_template
from tests.unit.chat_samples import (
    CHATML,
    FAMILIES,
    GENERATION,
    TOOL_CONVERSATION,
    TOOLS,
    family_tokenizer,
    family_twin,
    tokenizer_with,
    twin_of,
)

MESSAGES = [
    {"role": "user", "content": " Who's there?\n"},
    {"role": "assistant", "content": "I. é😀 "},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "The prince."},
]


def learned(family: str, messages: list[dict[str, Any]], **options: Any) -> list[str]:
    """The text of each run of learned tokens, once the ids are found to be those served."""
    tokenizer = family_tokenizer(family)
    encoding = encode_chat_with_mask(tokenizer, messages, **options)
    assert encoding.ids.dtype == np.uint32
    assert encoding.ids.tolist() == encode_chat(tokenizer, messages, add_generation_prompt=False, **options)
    borders = np.flatnonzero(np.diff(np.concatenate([[False], encoding.is_assistant, [False]]).astype(np.int8)))
    return [tokenizer.decode(encoding.ids[start:end]) for start, end in borders.reshape(-1, 2)]


@pytest.mark.parametrize(
    ("family", "turns"),
    [
        ("chatml", ["I. é😀 <|im_end|>", "The prince.<|im_end|>"]),
        ("generation", ["I. é😀 <|im_end|>", "The prince.<|im_end|>"]),
        ("qwen-2.5", ["I. é😀 <|im_end|>", "The prince.<|im_end|>"]),
        ("qwen-3", ["I. é😀 <|im_end|>", "<think>\n\n</think>\n\nThe prince.<|im_end|>"]),
        ("llama-3.1", ["I. é😀<|eot_id|>", "The prince.<|eot_id|>"]),
        ("mistral", [" I. é😀 </s>", " The prince.</s>"]),
        ("gemma", ["I. é😀<end_of_turn>", "The prince.<end_of_turn>"]),
        ("zephyr", ["I. é😀 </s>", "The prince.</s>"]),
    ],
)
def test_turns_with_their_ends_are_learned(family: str, turns: list[str]) -> None:
    assert learned(family, MESSAGES) == turns


def test_content_may_be_written_otherwise_once_others_follow() -> None:
    content = "(message['content'] if loop.last or message['role'] == 'user' else message['content'] | upper)"
    tokenizer = tokenizer_with(CHATML.replace("message['content']", content))
    encoding = encode_chat_with_mask(tokenizer, MESSAGES)
    assert tokenizer.decode(encoding.ids[encoding.is_assistant]) == "I. É😀 <|im_end|>The prince.<|im_end|>"


def test_tool_calls_are_learned_and_answers_of_tools_are_not() -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Verona – é"}}\n</tool_call><|im_end|>'
    assert learned("qwen-2.5", TOOL_CONVERSATION, tools=TOOLS) == [call, "It is.<|im_end|>"]


def test_thinking_is_learned_where_the_template_keeps_it() -> None:
    thinking = [
        MESSAGES[0],
        {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nI.\n\n"},
        MESSAGES[2],
        {"role": "assistant", "content": "The prince.", "reasoning_content": "Hm."},
    ]
    turns = ["I.\n\n<|im_end|>", "<think>\nHm.\n</think>\n\nThe prince.<|im_end|>"]
    assert learned("qwen-3", thinking) == turns
    # Served with this the prompt ends behind the thinking.
    assert learned("qwen-3", MESSAGES[2:], variables={"enable_thinking": False}) == ["The prince.<|im_end|>"]


@pytest.mark.parametrize("family", ["chatml", "qwen-2.5", "zephyr", "generation"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_turn_is_found(family: str, data: st.DataObject) -> None:
    text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
    message = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": text})
    messages = [{"role": "system", "content": "s"}, *data.draw(st.lists(message, max_size=5))]
    end = "</s>" if family == "zephyr" else "<|im_end|>"
    # Zephyr's prompt has no line end, and `\n` before the turn may be one token with its beginning.
    found = [turn.strip() for turn in learned(family, messages)]
    turns = [message["content"] + end for message in messages if message["role"] == "assistant"]
    assert len(found) == len(turns)
    assert all(turn.strip().endswith(part) and part.endswith(end) for turn, part in zip(turns, found, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    roles=st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=5),
    content=st.text(st.characters(exclude_categories=("Cs",)), max_size=8).map(lambda text: f"<{text}>"),
)
def test_generation_blocks_are_read_as_in_transformers(roles: list[str], content: str) -> None:
    messages = [{"role": role, "content": content} for role in roles]
    theirs = family_twin("generation").apply_chat_template(messages, return_assistant_tokens_mask=True)
    ours = encode_chat_with_mask(family_tokenizer("generation"), messages)
    assert ours.ids.tolist() == theirs["input_ids"]
    assert ours.is_assistant.tolist() == list(map(bool, theirs["assistant_masks"]))


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.role }}:{%- generation -%} {{ m.content }} {%- endgeneration %}{% endfor %}",
        "{% for m in messages %}{% generation %}\n{{ m.content }}\n{% endgeneration %}\n{{ eos_token }}{% endfor %}",
        "{% if false %}{% generation %}{% endgeneration %}{% endif %}{{ messages[0].content }}",
    ],
)
def test_generation_blocks_trim_as_in_transformers(source: str) -> None:
    ours = tokenizer_with(source)
    theirs = twin_of(ours).apply_chat_template(MESSAGES, return_assistant_tokens_mask=True)
    encoding = encode_chat_with_mask(ours, MESSAGES)
    assert encoding.ids.tolist() == theirs["input_ids"]
    assert encoding.is_assistant.tolist() == list(map(bool, theirs["assistant_masks"]))


@pytest.mark.parametrize(
    "source",
    [
        "{% macro f(m) %}{{ m.role }}:{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endmacro %}"
        "{% for m in messages if m.role == 'assistant' %}{{ f(m) }}{% endfor %}",
        "{% for m in messages if m.role == 'assistant' %}{% set x %}{{ m.role }}:{% generation %}{% generation %}"
        "{{ m.content }}{% endgeneration %}{{ eos_token }}{% endgeneration %}{% endset %}{{ x }}{% endfor %}",
    ],
)
def test_generation_blocks_are_found_in_macros_and_variables(source: str) -> None:
    tokenizer = tokenizer_with(source)
    encoding = encode_chat_with_mask(tokenizer, MESSAGES)
    assert tokenizer.decode(encoding.ids[encoding.is_assistant]) == "I. é😀 </s>The prince.</s>"


def test_generation_block_that_is_changed_outside_is_an_error() -> None:
    source = "{% for m in messages %}{% set x %}{% generation %}{{ m.content }}{% endgeneration %}{% endset %}"
    for end in ("{{ x | trim }}", "{{ x | length }}", "{{ x[:-1] }}", "{{ x[2:] }}"):
        tokenizer = tokenizer_with(source + end + "{% endfor %}")
        with pytest.raises(ChatTemplateError, match=r"must write the text of `\{% generation %\}` blocks unchanged"):
            encode_chat_with_mask(tokenizer, MESSAGES)


def test_token_over_a_border_is_not_learned() -> None:
    tokenizer = tokenizer_with(
        "{% for m in messages %}a {% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    encoding = encode_chat_with_mask(tokenizer, [{"role": "assistant", "content": "the the"}])
    ids, _, offsets = tokenizer.encode_with_offsets("a the the")
    assert encoding.ids.tolist() == ids.tolist()
    assert any(start < 2 < end for start, end in offsets)
    assert encoding.is_assistant.tolist() == [start >= 2 for start, _ in offsets]


def test_conversation_without_assistant_has_nothing_to_learn() -> None:
    for family in FAMILIES:
        assert learned(family, MESSAGES[:1]) == []


def test_conversation_may_begin_with_the_assistant() -> None:
    assert learned("chatml", MESSAGES[1:2]) == ["I. é😀 <|im_end|>"]


def test_play_is_learned_up_to_its_blank_line() -> None:
    tokenizer = SimpleCharacterTokenizer.train("ROMEJULIT:\n Whos there?I.é😀Tpinc")
    use_chat_template(tokenizer, "play")
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}] * 2
    encoding = encode_chat_with_mask(tokenizer, messages)
    assert encoding.ids.tolist() == encode_chat(tokenizer, messages, add_generation_prompt=False)
    assert tokenizer.decode(encoding.ids[encoding.is_assistant]) == "I.\n\nI.\n\n"


@pytest.mark.parametrize(
    ("source", "messages", "index", "reason"),
    [
        # The system message stands before the last question, wherever that is.
        (FAMILIES["mistral"], [{"role": "system", "content": "s"}, *MESSAGES], 2, "doesn't begin with the text before"),
        ("{{ messages | length }}" + CHATML, MESSAGES, 1, "doesn't begin with the text before"),
        (FAMILIES["qwen-3"], MESSAGES[1:], 0, "failed: "),
        (
            CHATML.replace("'<|im_end|>'", "('<|im_end|>' if loop.last or message['role'] == 'user' else '')"),
            MESSAGES,
            1,
            "the template changes it once other messages follow",
        ),
        (CHATML.replace("assistant\\n", "assistant\\n<think>"), MESSAGES, 1, "doesn't begin with the text before"),
    ],
)
def test_turn_that_can_not_be_told_is_named(
    source: str, messages: list[dict[str, str]], index: int, reason: str
) -> None:
    message = (
        rf"^the turn of message {index} can't be separated from the rest of the conversation: .*{re.escape(reason)}"
    )
    with pytest.raises(ChatTemplateError, match=message) as caught:
        encode_chat_with_mask(tokenizer_with(source), messages)
    assert "hint: enclose the assistant's part of the template in `{% generation %}`" in str(caught.value)


def test_unknown_options_are_named() -> None:
    with pytest.raises(
        TypeError, match="unknown option 'add_generation_prompt'; options are documents, tools, variables"
    ):
        encode_chat_with_mask(tokenizer_with(GENERATION), MESSAGES, add_generation_prompt=True)  # type: ignore[call-arg]
