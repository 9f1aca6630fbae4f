"""The form of an answer on the wire: `response_format` and `structured_outputs` as one setting, and their errors."""

from llm._rust import Grammar
from llm.errors import InvalidArgumentError
from llm.inference import Session
from llm.serving.errors import bad_request
from llm.serving.protocol.common import GenerationRequest
from llm.serving.protocol.formats import JsonObjectFormat, JsonSchemaFormat
from llm.settings.sampling import SamplingParams
from llm.settings.structured import StructuredOutputs

_SCHEMA_PARAM = "response_format.json_schema.schema"


def requested_form(request: GenerationRequest) -> StructuredOutputs | None:
    """Returns the form that the answer must have, or None for any text.

    Raises:
        APIError: 400 if both parameters ask for one.
    """
    form: StructuredOutputs | None = request.structured_outputs
    match request.response_format:
        case JsonObjectFormat():
            wanted = StructuredOutputs(json_object=True)
        case JsonSchemaFormat(json_schema=named):
            wanted = StructuredOutputs(json=named.schema)
        case _:
            return form
    if form is not None:
        message = "`response_format` and `structured_outputs` both ask for a form of the answer: send only one"
        raise bad_request(message, param="structured_outputs")
    return wanted


def compile_form(request: GenerationRequest, params: SamplingParams, session: Session) -> Grammar | None:
    """Returns the compiled grammar of a request's form, which its prompt takes to the engine's thread.

    Raises:
        APIError: 400 that names the parameter and the place of what is wrong or not supported.
        QueueFullError: Too many grammars are being compiled.
    """
    if (form := params.structured_outputs) is None:
        return None
    try:
        return session.engine.compile_grammar(params)
    except InvalidArgumentError as error:
        kind = form.source[0]
        is_format = isinstance(request.response_format, JsonSchemaFormat | JsonObjectFormat)
        param = _SCHEMA_PARAM if is_format else f"structured_outputs.{kind}"
        message = str(error).replace(f"`{kind}`", f"`{param}`", 1)
        raise bad_request(message, param=param, code="invalid_grammar") from error
