"""`/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, with the bodies that vLLM takes."""

from llm.errors import CheckpointError, InvalidArgumentError
from llm.serving.errors import bad_request, forbidden, from_llm_error
from llm.serving.http import Exchange
from llm.serving.protocol.models import AdapterModel, LoadAdapterRequest, UnloadAdapterRequest
from llm.serving.services import Services


async def load(services: Services, exchange: Exchange) -> None:
    """Handles `POST /v1/load_lora_adapter`: serves an adapter of this machine as a model of its own."""
    _check_allowed(services)
    request = await services.read(exchange, LoadAdapterRequest)
    name = request.lora_name
    if name in services.models:
        problem = f"`lora_name` must be no model's name, got {name!r}\nhint: unload the adapter of this name first"
        raise bad_request(problem, param="lora_name")
    try:
        served = await services.engine.ready().load_adapter(name, request.lora_path)
    except (CheckpointError, InvalidArgumentError) as error:
        raise bad_request(str(error), param="lora_path") from error
    await exchange.send_json(services.add_adapter(name, str(served.path)))


async def unload(services: Services, exchange: Exchange) -> None:
    """Handles `POST /v1/unload_lora_adapter`; requests that already run with the adapter go on."""
    _check_allowed(services)
    request = await services.read(exchange, UnloadAdapterRequest)
    model = services.check_model(request.lora_name)
    if not isinstance(model, AdapterModel):
        raise bad_request(f"`lora_name` must be an adapter's, got the model's {model.id!r}", param="lora_name")
    engine = services.engine.ready()
    services.models.pop(model.id, None)  # before the engine's turn, so that no new request names it
    try:
        await engine.unload_adapter(model.id)
    except InvalidArgumentError as error:
        raise from_llm_error(error, prompt_param="lora_name") from error
    await exchange.send_json(model)


def _check_allowed(services: Services) -> None:
    if not services.config.adapter_loading:
        problem = "This server does not load adapters on request\nhint: start it with `--adapter-loading`"
        raise forbidden(problem, "adapter_loading_disabled")
