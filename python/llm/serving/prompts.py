"""Converts parsed requests to prompts for the session."""

from typing import Any

import msgspec

from llm.inference import Prompt, Session
from llm.serving.errors import bad_request
from llm.serving.protocol.chat import ChatCompletionRequest
from llm.serving.protocol.common import GenerationRequest
from llm.serving.protocol.completions import CompletionRequest
from llm.serving.protocol.tools import NamedTool
from llm.serving.structured import compile_form, requested_form
from llm.serving.template_messages import template_messages
from llm.serving.tool_choice import shaped
from llm.settings.sampling import SamplingParams
from llm.tokenization import ChatOptions

COMPLETION_MAX_TOKENS = 16

# All other sampling parameters have the same name and form in a request.
_OTHER_FORM = {"max_tokens", "stop", "logprobs"}
_SAMPLING_FIELDS = tuple(name for name in SamplingParams.__struct_fields__ if name not in _OTHER_FORM)


def chat_prompts(request: ChatCompletionRequest, session: Session) -> list[Prompt]:
    """Returns the conversation as a prompt rendered by the checkpoint's template.

    By default, the answer may fill the rest of the context.

    Raises:
        APIError: 400 if the checkpoint has no chat template.
        ChatTemplateError: The template rejects the conversation.
    """
    if session.tokenizer.chat_template is None:
        message = "This model has no chat template\nhint: use /v1/completions"
        raise bad_request(message, param="messages", code="chat_template_missing")
    params = _sampling_params(request, session, request.max_completion_tokens or request.max_tokens)
    messages = template_messages(request.messages, session.answer_format.calls)
    prompt = session.chat(
        messages,
        params,
        priority=request.priority or 0,
        add_special_tokens=bool(request.add_special_tokens),  # off by default: the template writes its own
        options=_template_options(request),
    )
    one_call = request.parallel_tool_calls is False or isinstance(request.tool_choice, NamedTool)
    if prompt.answer is not None and one_call:
        prompt = msgspec.structs.replace(prompt, answer=msgspec.structs.replace(prompt.answer, max_calls=1))
    return [shaped(request, prompt, session)]


def completion_prompts(request: CompletionRequest, session: Session) -> list[Prompt]:
    """Returns each prompt encoded; by default 16 new tokens, as at OpenAI, or fewer if the context is full."""
    given = request.prompt
    prompts: list[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    add = request.add_special_tokens is not False
    found = []
    for prompt in prompts:
        token_ids = session.encode(prompt, add_special_tokens=add) if isinstance(prompt, str) else prompt
        max_tokens = request.max_tokens
        if max_tokens is None:
            max_tokens = max(1, min(COMPLETION_MAX_TOKENS, session.room(token_ids)))
        params = _sampling_params(request, session, max_tokens)
        grammar = compile_form(request, params, session)
        found.append(Prompt(token_ids=token_ids, params=params, priority=request.priority or 0, grammar=grammar))
    return found


def _template_options(request: ChatCompletionRequest) -> ChatOptions:
    goes_on = bool(request.continue_final_message)
    opens_turn = not goes_on if request.add_generation_prompt is None else request.add_generation_prompt
    return {
        "tools": [tool.for_template for tool in request.offered_tools] or None,
        "documents": request.documents,
        "variables": request.template_variables,
        "continue_final_message": goes_on,
        "add_generation_prompt": opens_turn,
    }


def _sampling_params(request: GenerationRequest, session: Session, max_tokens: int | None) -> SamplingParams:
    """Returns the checkpoint's sampling defaults, overridden by the request."""
    values = {name: getattr(request, name) for name in _SAMPLING_FIELDS} | request.adapted
    values["structured_outputs"] = requested_form(request)
    return session.sampling_params(
        **values,
        max_tokens=max_tokens,
        stop=request.stop_strings,
        logprobs=request.num_sampled_logprobs,
    )
