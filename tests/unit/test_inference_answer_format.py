"""What a chat template says about a model's reasoning and calls, and conversations with tools as prompts."""

import json

import pytest

from llm import LLM
from llm._rust import ANSWER_FORMATS
from llm.errors import ChatTemplateError, InvalidArgumentError
from llm.inference import AnswerSetup, Part, ToolCall
from llm.inference.answer_format import REASONING_MARKERS, AnswerFormat, answer_format
from llm.inference.chat_prompt import answer_setup, chat_ids
from llm.settings.server import ReasoningParser, ToolParser
from tests.scripted import write_scripted
from tests.unit.chat_samples import FAMILIES, TOOL_CONVERSATION, TOOLS, family_tokenizer, tokenizer_with

# Each in the words of its family, as short as the rendering of tools allows.
DEEPSEEK = """\
{%- for message in messages %}
{%- if message.tool_calls %}{{ '<｜tool▁calls▁begin｜>' }}
{%- for call in message.tool_calls %}
{{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call.function.name + '\\n```json\\n' + call.function.arguments }}
{{- '\\n```<｜tool▁call▁end｜>' }}
{%- endfor %}{% else %}{{ message.content.split('</think>')[-1] }}{% endif %}
{%- endfor %}{% if tools %}{{ tools | length }}{% endif %}{{ '<think>\\n' if add_generation_prompt }}"""
LLAMA_4 = "{% if tools %}{{ 'Answer as [func_name1(params_name1=params_value1)]' }}{% endif %}"
QWEN_CODER = "{% if tools %}{{ 'Answer as <tool_call><function=name></function></tool_call>' }}{% endif %}"
MISTRAL = "{% if tools %}{{ '[AVAILABLE_TOOLS]' }}{% endif %}{{ '[TOOL_CALLS]' if messages[0].tool_calls }}"
PLAIN = "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "calls", "reasoning"),
    [
        (FAMILIES["qwen-2.5"], "hermes", None),
        (FAMILIES["llama-3.1"], "llama3_json", None),
        (FAMILIES["chatml"], None, None),
        (FAMILIES["qwen-3"], None, "think"),
        (DEEPSEEK, "deepseek", "think"),
        (LLAMA_4, "llama4_pythonic", None),
        (QWEN_CODER, "qwen_coder", None),
        (MISTRAL, "mistral", None),
        ("{{ tools }}[THINK][/THINK]", "json", "mistral"),
        ("{# tools #}", None, None),
    ],
)
def test_the_template_tells_the_format(source, calls, reasoning):
    found = answer_format(tokenizer_with(source))
    assert (found.calls, found.renders_tools) == (calls, calls is not None)
    assert found.reasoning == REASONING_MARKERS.get(reasoning)


def test_a_setting_overrides_the_template():
    tokenizer = family_tokenizer("qwen-2.5")
    assert answer_format(tokenizer, "mistral", "think") == AnswerFormat(
        calls="mistral", reasoning=("<think>", "</think>"), renders_tools=True
    )
    assert answer_format(tokenizer, "none", "none") == AnswerFormat(renders_tools=True)


def test_settings_list_every_format():
    assert ToolParser.__args__ == ("auto", "none", *dict(ANSWER_FORMATS))
    assert ReasoningParser.__args__ == ("auto", "none", *REASONING_MARKERS)


def rendered(source, messages, parser="auto", **options):
    tokenizer = tokenizer_with(source)
    return tokenizer.decode(chat_ids(tokenizer, messages, options, answer_format(tokenizer, parser)))


@pytest.mark.parametrize("family", ["qwen-2.5", "llama-3.1"])
def test_conversations_with_tools_are_rendered_by_their_template(family):
    text = rendered(FAMILIES[family], TOOL_CONVERSATION, tools=TOOLS)
    assert '"city": "Verona – é"' in text
    assert "fair & <mild>" in text
    assert '"tide"' in text


def test_a_template_that_joins_arguments_to_text_gets_them_as_text():
    text = rendered(DEEPSEEK, TOOL_CONVERSATION, tools=TOOLS)
    assert 'weather\n```json\n{"city": "Verona – é"}\n```' in text
    with pytest.raises(ChatTemplateError, match="refused"):
        rendered("{{ tools and raise_exception('never') }}", TOOL_CONVERSATION, tools=TOOLS)


def test_tools_need_a_template_that_renders_them_or_a_named_parser():
    with pytest.raises(InvalidArgumentError, match=r"`tools` need a chat template .*\n.*`--tool-parser hermes`"):
        rendered(PLAIN, TOOL_CONVERSATION, tools=TOOLS)
    text = rendered(PLAIN, TOOL_CONVERSATION, "hermes", tools=TOOLS)
    for tool in TOOLS:
        assert json.dumps(tool["function"], ensure_ascii=False) in text
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Verona – é"}}\n</tool_call>'
    assert f"[assistant]{call}[user]<tool_response>\nfair & <mild>\n</tool_response>" in text
    assert text.startswith("[system]You can call functions.")
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go"}]
    assert rendered(PLAIN, system, "json", tools=TOOLS).startswith("[system]Be brief.\n\nYou can call functions.")


def test_calls_and_results_without_tools_are_texts_for_a_template_without_tools():
    text = rendered(PLAIN, TOOL_CONVERSATION)
    assert "[assistant]<tool_call>" in text
    assert "[user]<tool_response>" in text


def test_a_prompt_may_end_in_reasoning():
    tokenizer = tokenizer_with(DEEPSEEK)
    form = answer_format(tokenizer)
    for opens in (True, False):
        options = {"add_generation_prompt": opens}
        ids = chat_ids(tokenizer, TOOL_CONVERSATION[:1], options, form)
        assert answer_setup(tokenizer, ids, options, form) == AnswerSetup(
            reasoning=("<think>", "</think>"), starts_in_reasoning=opens
        )
    ids = chat_ids(tokenizer, TOOL_CONVERSATION[:1], {"tools": TOOLS}, form)
    setup = answer_setup(tokenizer, ids, {"tools": TOOLS}, form)
    assert (setup.format, setup.tools) == ("deepseek", {"weather": {"city": "string"}, "tide": {"city": "string"}})
    plain = family_tokenizer("chatml")
    assert answer_setup(plain, [1], {}, answer_format(plain)) is None


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    """A model whose markers are special tokens, as in Mistral's vocabulary."""
    scripts = ['[TOOL_CALLS]f[ARGS]{"a": 1}[OTHER]', "[TOOL_CALLS]f[ARGS]{}"]
    template = "{{ '.' * ((script or 0) * 128 + 1) }}{#- [TOOL_CALLS] -#}{%- if tools %}{% endif %}"
    special = ["[TOOL_CALLS]", "[ARGS]", "[OTHER]"]
    path = write_scripted(tmp_path_factory.mktemp("checkpoints") / "tiny", scripts, template, special)
    return LLM(path)


def test_markers_that_are_special_tokens_are_kept_for_the_parser_only(mistral):
    messages = [{"role": "user", "content": "Go"}]
    assert mistral.session.answer_format.call_ids
    output = mistral.chat(messages, tools=TOOLS)
    assert (output.text, output.tool_calls) == ("", (ToolCall("f", '{"a": 1}'),))
    deltas = list(mistral.stream_chat(messages, tools=TOOLS))
    parts = [part for delta in deltas for part in delta.parts]
    assert parts[0] == Part("call", 0, "f")
    assert "".join(part.text for part in parts[1:]) == '{"a": 1}'
    plain = mistral.chat(messages)
    assert (plain.text, plain.tool_calls, plain.reasoning) == ('f{"a": 1}', (), None)
