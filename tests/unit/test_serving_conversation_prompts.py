"""Prompts of conversations: instructions in the middle, and turns dropped where the context ends."""

import pytest

from llm import LLM
from llm.errors import ChatTemplateError
from llm.serving.conversation_prompts import fitted, truncated_prompt, whole_prompt
from llm.serving.protocol.chat import ChatCompletionRequest, ChatMessage
from llm.tokenization import ChatTemplate, use_chat_template

STRICT = """\
{%- for message in messages %}
{%- if message.role == 'system' and not loop.first %}{{ raise_exception('system first') }}{% endif %}
{{- message.role[0] }}:{{ message.content }}|
{%- endfor %}a:"""


@pytest.fixture(scope="module")
def session(tiny_checkpoint):
    model = LLM(tiny_checkpoint)
    use_chat_template(model.session.tokenizer, ChatTemplate(STRICT))
    return model.session


def chat(*turns, **fields):
    messages = [ChatMessage(role=role, content=content) for role, content in turns]
    return ChatCompletionRequest(model="m", messages=messages, **fields)


def text_of(prompt, session):
    return session.tokenizer.decode(prompt.token_ids)


def test_late_instructions_become_the_users_where_the_template_wants_that(session):
    request = chat(
        ("system", "S"), ("user", "A"), ("system", "B"), ("assistant", "C"), ("developer", "D"), ("user", "E")
    )
    assert text_of(whole_prompt(request, session), session) == "s:S|u:A\n\nB|a:C|u:D\n\nE|a:"


def test_refusal_of_the_template_stays_where_no_instruction_is_to_blame(session):
    with pytest.raises(ChatTemplateError):
        whole_prompt(chat(("system", "S"), ("system", "T")), session)


@pytest.mark.parametrize("room", [20, 40, 60, 100, 128])
def test_oldest_turns_go_until_the_prompt_fits(session, room):
    turns = [("system", "S"), *((("user", "assistant")[at % 2], f"{at} " * 6) for at in range(9))]
    request = chat(*turns, max_tokens=128 - room)
    found = text_of(truncated_prompt(request, session), session)
    kept = found.removeprefix("s:S|").split("|")
    whole = text_of(whole_prompt(request, session), session)
    assert found.startswith("s:S|u:")
    assert whole.endswith("|".join(kept))
    if len(kept) > 2:
        assert len(session.tokenizer.encode(found)) <= room
    longer = chat(turns[0], *turns[-(len(kept) + 1) :], max_tokens=128 - room)
    if len(kept) < len(turns):
        assert len(whole_prompt(longer, session).token_ids) > room


def test_limit_is_cut_to_the_context_left(session):
    prompt = whole_prompt(chat(("user", "A"), max_tokens=500), session)
    assert fitted(prompt, session).params.max_tokens == 128 - len(prompt.token_ids)
    short = whole_prompt(chat(("user", "A"), max_tokens=5), session)
    assert fitted(short, session) is short
