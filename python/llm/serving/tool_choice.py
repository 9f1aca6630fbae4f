"""Tool choices and strict functions as grammars of the answer, in the model's own format."""

import json
from typing import Any

import msgspec

from llm.errors import InvalidArgumentError
from llm.inference import Prompt, Session
from llm.inference.tool_grammar import AnswerShape, CalledFunction, answer_grammar, arguments_schema
from llm.serving.errors import APIError, bad_request, unsupported
from llm.serving.protocol.chat import ChatCompletionRequest
from llm.serving.protocol.tools import Function, NamedTool
from llm.serving.structured import compile_form
from llm.settings.structured import StructuredOutputs

_ANY_ARGUMENTS = {"type": "object"}


def shaped(request: ChatCompletionRequest, prompt: Prompt, session: Session) -> Prompt:
    """Returns the prompt with the grammar that its request's tools, tool choice and form of the text ask for.

    A form that is no JSON schema leaves no room for calls and reasoning: the whole answer has it.

    Raises:
        APIError: 400 if the model can't be held to what the request asks for.
        QueueFullError: Too many grammars are being compiled.
    """
    is_required = isinstance(request.tool_choice, NamedTool) or request.tool_choice == "required"
    form = prompt.params.structured_outputs
    schema = _schema(form)
    if is_required and (prompt.answer is None or prompt.answer.format is None):
        raise unsupported("`tool_choice` needs a model with a format of tool calls; see `--tool-parser`", "tool_choice")
    if is_required and form is not None and schema is None:
        message = "`tool_choice` and `structured_outputs` contradict each other: send only one"
        raise bad_request(message, param="structured_outputs")
    if prompt.answer is None or (form is not None and schema is None):
        return msgspec.structs.replace(prompt, answer=None, grammar=compile_form(request, prompt.params, session))
    functions = _functions(request) if prompt.answer.format is not None else []
    if not is_required and schema is None and not any(function.strict for function in functions):
        return prompt
    shape = AnswerShape(
        is_required=is_required,
        is_parallel=prompt.answer.max_calls is None,
        text=schema,
        starts_in_reasoning=prompt.answer.starts_in_reasoning,
    )
    try:
        return _compiled(prompt, session, shape, functions)
    except InvalidArgumentError as error:
        compile_form(request, prompt.params, session)  # raises if the form itself is what is wrong
        raise _refusal(error) from error


def _functions(request: ChatCompletionRequest) -> list[Function]:
    functions = [tool.function for tool in request.offered_tools]
    if isinstance(request.tool_choice, NamedTool):
        return [function for function in functions if function.name == request.tool_choice.function.name]
    return functions


def _compiled(prompt: Prompt, session: Session, shape: AnswerShape, functions: list[Function]) -> Prompt:
    """Returns the prompt with its grammar; functions that aren't strict may take any object if their schema fails."""
    try:
        return _with_grammar(prompt, session, _with_functions(shape, functions, keeps_all=True))
    except InvalidArgumentError:
        if all(function.strict for function in functions):
            raise
    return _with_grammar(prompt, session, _with_functions(shape, functions, keeps_all=False))


def _with_functions(shape: AnswerShape, functions: list[Function], *, keeps_all: bool) -> AnswerShape:
    called = [
        CalledFunction(
            name=function.name,
            parameters=arguments_schema(function.parameters) if keeps_all or function.strict else _ANY_ARGUMENTS,
        )
        for function in functions
    ]
    return msgspec.structs.replace(shape, functions=called)


def _with_grammar(prompt: Prompt, session: Session, shape: AnswerShape) -> Prompt:
    grammar = answer_grammar(session.answer_format, session.tokenizer.special_tokens, shape)
    params = msgspec.structs.replace(prompt.params, structured_outputs=StructuredOutputs(grammar=grammar))
    return msgspec.structs.replace(prompt, params=params, grammar=session.engine.compile_grammar(params))


def _refusal(error: InvalidArgumentError) -> APIError:
    message = str(error).replace("`grammar`", "`tools`", 1)
    return bad_request(message, param="tools", code="invalid_grammar")


def _schema(form: StructuredOutputs | None) -> dict[str, Any] | bool | None:
    """Returns the JSON schema of a form; None if it is of another kind."""
    if form is None:
        return None
    if form.json_object:
        return _ANY_ARGUMENTS
    return json.loads(form.json) if isinstance(form.json, str) else form.json
