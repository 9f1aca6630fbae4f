"""Chat templates: equal to transformers', kept by saving, safe with hostile ones."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llm.errors import ChatTemplateError
from llm.tokenization import (
    TEMPLATES,
    BPETokenizer,
    ChatTemplate,
    SimpleCharacterTokenizer,
    encode_chat,
    load_tokenizer,
    render_chat,
    use_chat_template,
)
from tests.unit.tokenization_samples import TRAINING_TEXT

MESSAGES = [
    {"role": "system", "content": "A garden."},
    {"role": "user", "content": "  Who's there?\n"},
    {"role": "assistant", "content": "I."},
    {"role": "user", "name": "Nurse", "content": "Madam! <b> & 'é'"},
]


def chat_tokenizer(template: str | ChatTemplate) -> BPETokenizer:
    tokenizer = BPETokenizer.train_from_iterator(
        [TRAINING_TEXT], vocab_size=400, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    )
    use_chat_template(tokenizer, template)
    return tokenizer


def test_play_writes_turns_of_a_play() -> None:
    tokenizer = chat_tokenizer("play")
    assert render_chat(tokenizer, MESSAGES) == (
        "[A garden.]\n\nROMEO:\nWho's there?\n\nJULIET:\nI.\n\nNURSE:\nMadam! <b> & 'é'\n\nJULIET:\n"
    )
    assert render_chat(tokenizer, MESSAGES[2:3], add_generation_prompt=False) == "JULIET:\nI.\n\n"
    assert tokenizer.chat_stop == ("\n\n",)


def test_chatml_writes_special_tokens() -> None:
    tokenizer = chat_tokenizer("chatml")
    assert render_chat(tokenizer, MESSAGES[2:3]) == "<|im_start|>assistant\nI.<|im_end|>\n<|im_start|>assistant\n"
    ids = encode_chat(tokenizer, MESSAGES[2:3])
    start, end = (tokenizer.special_tokens[token] for token in ("<|im_start|>", "<|im_end|>"))
    assert (ids[0], ids.count(start), ids.count(end)) == (start, 2, 1)
    assert end in tokenizer.eos_ids


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_saved_template_renders_alike_in_transformers(name: str, add_generation_prompt: bool, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(name)
    tokenizer.save(tmp_path)
    twin = AutoTokenizer.from_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.chat_template, again.chat_stop) == (tokenizer.chat_template, TEMPLATES[name].stop)
    text = twin.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=add_generation_prompt)
    assert render_chat(again, MESSAGES, add_generation_prompt=add_generation_prompt) == text
    ids = twin.apply_chat_template(MESSAGES, add_generation_prompt=add_generation_prompt, return_dict=False)
    assert encode_chat(again, MESSAGES, add_generation_prompt=add_generation_prompt) == ids


@pytest.mark.parametrize(
    "source",
    [
        "{{ bos_token }}{{ messages | tojson }}{{ eos_token }}",
        "{{ messages[0] | tojson(indent=2) }}",
        "{% for m in messages %}\n    {% if loop.index0 == 1 %}{% break %}{% endif %}\n{{ m.content }}\n{% endfor %}\n",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ tools is none }}{{ documents is none }}{{ messages[0].missing }}{{ missing is defined }}",
    ],
)
def test_templates_of_others_render_as_in_transformers(source: str, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(ChatTemplate(source))
    tokenizer.save(tmp_path)
    twin = AutoTokenizer.from_pretrained(tmp_path)
    expected = twin.apply_chat_template(MESSAGES, tokenize=False)
    assert render_chat(tokenizer, MESSAGES, add_generation_prompt=False) == expected


def test_strftime_now_gives_this_year() -> None:
    assert int(ChatTemplate("{{ strftime_now('%Y') }}").render(MESSAGES)) >= 2024


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", r"tried what its sandbox forbids: .*__class__"),
        ("{{ messages.append(1) }}", r"tried what its sandbox forbids"),
        ("{{ messages.__init__.__globals__ }}", r"tried what its sandbox forbids"),
        ("{{ raise_exception('only users here') }}", r"refused this conversation: only users here"),
        ("{{ messages[9].content.x }}", r"failed: UndefinedError"),
        ("{{ 1 + 'a' }}", r"failed: TypeError"),
        ("{{ 1 // 0 }}", r"failed: ZeroDivisionError"),
        ("{% for i in range(999999999) %}{% endfor %}", r"failed: OverflowError"),
        ("{% include '/etc/passwd' %}", r"failed: TypeError: no loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", r"failed: RecursionError"),
    ],
)
def test_failing_and_hostile_templates_are_errors(source: str, message: str) -> None:
    with pytest.raises(ChatTemplateError, match=message):
        ChatTemplate(source).render(MESSAGES)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"must have at least one message"),
        ([{"content": "a"}], r"mappings with a `role`, got \{'content': 'a'\} at index 0"),
        (["hello"], r"mappings with a `role`, got 'hello' at index 0"),
        (
            [{"role": "user", "content": "a"}, {"role": "user"}],
            r"must have `content`, got \{'role': 'user'\} at index 1",
        ),
        ([{"role": "tool", "content": "a"}], r"a play has the roles system, user and assistant, got tool"),
    ],
)
def test_bad_conversations_are_named(messages: list[dict[str, str]], message: str) -> None:
    with pytest.raises(ChatTemplateError, match=message):
        render_chat(chat_tokenizer("play"), messages)


def test_missing_and_invalid_templates_are_named() -> None:
    tokenizer = SimpleCharacterTokenizer.train("ab")
    with pytest.raises(ChatTemplateError, match=r"got one without\nhint: .*\['chatml', 'play'\]"):
        render_chat(tokenizer, MESSAGES)
    with pytest.raises(ChatTemplateError, match=r"must be one of \['chatml', 'play'\], got 'llama'"):
        use_chat_template(tokenizer, "llama")
    with pytest.raises(ChatTemplateError, match=r"not valid Jinja: .*\(line 2\)"):
        use_chat_template(tokenizer, ChatTemplate("a\n{% for %}"))
    assert tokenizer.chat_template is None
