"""Chat templates: equal to transformers', kept by saving, safe with hostile ones."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llm.errors import ChatTemplateError, InvalidArgumentError
from llm.tokenization import (
    TEMPLATES,
    BPETokenizer,
    ChatTemplate,
    SimpleCharacterTokenizer,
    encode_chat,
    encode_chat_with_mask,
    load_tokenizer,
    render_chat,
    use_chat_template,
    write_tokenizer,
)
from tests.unit.chat_samples import (
    FAMILIES,
    TOOL_CONVERSATION,
    TOOLS,
    family_tokenizer,
    family_twin,
    tokenizer_with,
    twin_of,
)
from tests.unit.tokenization_samples import TRAINING_TEXT

SMOLLM = Path(__file__).parents[2] / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"

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


def contents() -> st.SearchStrategy[str]:
    characters = st.characters(exclude_categories=("Cs",)) | st.sampled_from(" \n\t<>&'\"{}%")
    return st.text(characters, max_size=12) | st.sampled_from(
        ["", " a ", "<|im_end|>", "<think>\na\n</think>\n\nb", "</s>"]
    )


def conversations(min_size: int = 1) -> st.SearchStrategy[list[dict[str, str]]]:
    roles = st.sampled_from(["system", "user", "assistant", "tool"])
    message = st.fixed_dictionaries({"role": roles, "content": contents()})
    return st.lists(message, min_size=min_size, max_size=5) | turns()


@st.composite
def turns(draw: st.DrawFn) -> list[dict[str, str]]:
    """User and assistant in turn, as templates want it that check."""
    system = [{"role": "system", "content": draw(contents())}] if draw(st.booleans()) else []
    texts = draw(st.lists(contents(), min_size=1, max_size=5))
    return system + [{"role": ("user", "assistant")[idx % 2], "content": text} for idx, text in enumerate(texts)]


def rendered(function: Callable[[], str]) -> str | None:
    """None where the template fails or refuses, as it must on both sides."""
    try:
        return function()
    except (ChatTemplateError, jinja2.TemplateError, TypeError, ValueError):
        return None


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(messages=conversations(), prompt=st.booleans(), tools=st.sampled_from([None, [], TOOLS]))
def test_families_render_as_in_transformers(
    family: str, messages: list[dict[str, str]], prompt: bool, tools: list[dict[str, Any]] | None
) -> None:
    ours, theirs = family_tokenizer(family), family_twin(family)
    expected = rendered(
        lambda: theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, tokenize=False)
    )
    text = rendered(lambda: render_chat(ours, messages, tools=tools, add_generation_prompt=prompt))
    assert text == expected
    if text is not None:
        ids = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, return_dict=False)
        assert encode_chat(ours, messages, tools=tools, add_generation_prompt=prompt) == ids


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(messages=conversations())
def test_final_message_goes_on_as_in_transformers(family: str, messages: list[dict[str, str]]) -> None:
    ours, theirs = family_tokenizer(family), family_twin(family)
    expected = rendered(lambda: theirs.apply_chat_template(messages, continue_final_message=True, tokenize=False))
    assert rendered(lambda: render_chat(ours, messages, continue_final_message=True)) == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("num_messages", range(1, len(TOOL_CONVERSATION) + 1))
def test_tool_calls_render_as_in_transformers(
    family: str, tools: list[dict[str, Any]] | None, num_messages: int
) -> None:
    ours, theirs = family_tokenizer(family), family_twin(family)
    messages = TOOL_CONVERSATION[:num_messages]
    expected = rendered(lambda: theirs.apply_chat_template(messages, tools=tools, tokenize=False))
    assert rendered(lambda: render_chat(ours, messages, tools=tools, add_generation_prompt=False)) == expected
    if family in ("llama-3.1", "qwen-2.5"):
        assert expected is not None
        assert ('Weather <now> & \\"here\\" – é' in expected) == (tools is not None)


def test_variables_reach_the_template_as_in_transformers() -> None:
    ours, theirs = family_tokenizer("qwen-3"), family_twin("qwen-3")
    text = render_chat(ours, MESSAGES, variables={"enable_thinking": False})
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    expected = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, enable_thinking=False, tokenize=False)
    assert text == expected
    source = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token is defined }}{{ x.y }}{{ documents[0].title }}"
    ours = tokenizer_with(source)
    variables = {"bos_token": "B", "x": {"y": np.float32(0.5)}}
    documents = [{"title": "T", "text": "t"}]
    expected = twin_of(ours).apply_chat_template(MESSAGES, documents=documents, tokenize=False, **variables)
    assert render_chat(ours, MESSAGES, documents=documents, variables=variables) == expected
    assert expected == "B</s><|endoftext|>False0.5T"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]},
        {"role": "assistant", "content": "a", "reasoning": "b", "name": None},
        {"role": "assistant", "content": "a", "thinking": "b", "reasoning_content": "c"},
        {"role": "assistant", "content": "a", "tool_calls": [], "more": (1, 2.5, True, None, Path)},
    ],
)
def test_messages_reach_the_template_as_in_transformers(message: dict[str, Any]) -> None:
    source = "{% for m in messages %}{% for name, value in m.items() %}{{ name }}={{ value }};{% endfor %}{% endfor %}"
    ours = tokenizer_with(source)
    theirs = twin_of(ours)
    for goes_on in (False, True):
        options = {"continue_final_message": goes_on}
        expected = theirs.apply_chat_template(
            [message], chat_template=source + "{# content #}", tokenize=False, **options
        )
        text = render_chat(ours, [message], continue_final_message=goes_on)
        assert text == expected


def test_named_template_is_chosen_as_in_transformers(tmp_path: Path) -> None:
    tokenizer = tokenizer_with("default {{ messages[0].role }}")
    tokenizer.settings = msgspec.structs.replace(
        tokenizer.settings, named_templates={"tool_use": "tools {{ tools | length }}", "rag": "rag"}
    )
    tokenizer.save(tmp_path)
    theirs, again = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert again.settings == tokenizer.settings
    for tools in (None, [], TOOLS):
        expected = theirs.apply_chat_template(MESSAGES, tools=tools, tokenize=False)
        assert render_chat(again, MESSAGES, tools=tools, add_generation_prompt=False) == expected
    assert render_chat(again, MESSAGES, tools=TOOLS, template_name="rag") == "rag"
    with pytest.raises(ChatTemplateError, match=r"must be one of .* \(\['default', 'rag', 'tool_use'\]\), got 'rug'"):
        render_chat(again, MESSAGES, template_name="rug")
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "additional_chat_templates" / "rag.jinja").is_file()
    assert load_tokenizer(tmp_path).settings.named_templates == tokenizer.settings.named_templates
    tokenizer.settings = msgspec.structs.replace(tokenizer.settings, chat_template=None)
    with pytest.raises(ChatTemplateError, match=r"must be one of .* \(\['rag', 'tool_use'\]\), got 'default'"):
        render_chat(tokenizer, MESSAGES)
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).settings == tokenizer.settings
    use_chat_template(tokenizer, "chatml")
    assert tokenizer.settings.named_templates == {}


def test_named_templates_pass_through_gguf(tmp_path: Path) -> None:
    tokenizer = tokenizer_with("default")
    tokenizer.settings = msgspec.structs.replace(tokenizer.settings, named_templates={"tool_use": "T"})
    write_tokenizer(tokenizer, tmp_path / "t.gguf", "gguf")
    again = load_tokenizer(tmp_path / "t.gguf")
    assert (again.chat_template, again.settings.named_templates) == ("default", {"tool_use": "T"})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            InvalidArgumentError,
            "`continue_final_message` and `add_generation_prompt` must not both be True",
        ),
        ({"variables": {"tools": 1}}, InvalidArgumentError, "must not contain names of options, got 'tools'"),
        ({"tools": ["weather"]}, InvalidArgumentError, "`tools` must be a list of mappings, got 'weather'"),
        ({"tools": TOOLS[0]}, InvalidArgumentError, "`tools` must be a list of mappings, got {'type'"),
        ({"documents": [5]}, InvalidArgumentError, "`documents` must be a list of mappings, got 5"),
        (
            {"tool": TOOLS},
            TypeError,
            "unknown option 'tool'; options are add_generation_prompt, continue_final_message",
        ),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        encode_chat(family_tokenizer("chatml"), MESSAGES, **options)


def test_message_that_can_not_go_on_is_named() -> None:
    with pytest.raises(ChatTemplateError, match=r"needs text in the last message, got none"):
        render_chat(family_tokenizer("qwen-2.5"), TOOL_CONVERSATION[:2], continue_final_message=True)
    with pytest.raises(ChatTemplateError, match=r"needs a template that writes the last message unchanged"):
        ChatTemplate("{{ messages[0].content }}").render(MESSAGES, continue_final_message=True)


def test_smollm2_renders_as_in_transformers(tmp_path: Path) -> None:
    if not SMOLLM.is_file():
        pytest.skip(f"{SMOLLM.name} is not here; `make test-data` fetches it")
    ours = load_tokenizer(SMOLLM)
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for messages in (MESSAGES, MESSAGES[1:]):
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert encode_chat(ours, messages) == ids
    encoding = encode_chat_with_mask(ours, MESSAGES)
    assert ours.decode(encoding.ids[encoding.is_assistant]) == "I.<|im_end|>"
