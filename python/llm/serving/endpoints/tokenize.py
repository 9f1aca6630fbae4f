"""Endpoints that turn text into the model's tokens and back, without running the model."""

import asyncio

from llm.inference import Session
from llm.serving.errors import bad_request
from llm.serving.http import Exchange
from llm.serving.logprobs import token_name
from llm.serving.prompts import chat_prompts
from llm.serving.protocol.tokenize import DetokenizedText, DetokenizeRequest, TokenizeRequest, TokenizerInfo, Tokens
from llm.serving.services import Services


async def tokenize(services: Services, exchange: Exchange) -> None:
    """Handles `POST /tokenize`: the tokens of a text or of a rendered conversation."""
    request = await services.read(exchange, TokenizeRequest)
    if (request.prompt is None) is (not request.messages):
        raise bad_request("the request must contain either `prompt` or `messages`", param="prompt")
    session = services.engine.ready().session

    async def work() -> None:
        # In a separate thread, because encoding a long text must not delay other requests.
        await exchange.send_json(await asyncio.to_thread(_tokens, request, session))

    await services.run(exchange, work(), prompt_param="prompt" if request.messages == [] else "messages")


async def detokenize(services: Services, exchange: Exchange) -> None:
    """Handles `POST /detokenize`: the text of token ids, special tokens included."""
    request = await services.read(exchange, DetokenizeRequest)
    tokenizer = services.engine.ready().session.tokenizer

    async def work() -> None:
        text = await asyncio.to_thread(tokenizer.decode, request.tokens)
        await exchange.send_json(DetokenizedText(prompt=text))

    await services.run(exchange, work(), prompt_param="tokens")


async def tokenizer_info(services: Services, exchange: Exchange) -> None:
    """Handles `GET /tokenizer_info`: special tokens, their use and the chat template."""
    session = services.engine.ready().session
    settings = session.tokenizer.settings
    info = TokenizerInfo(
        tokenizer_class=type(session.tokenizer).__name__,
        vocab_size=session.tokenizer.vocab_size,
        model_max_length=session.engine.max_model_len,
        bos_token=settings.bos_token,
        eos_token=settings.eos_tokens[0] if settings.eos_tokens else None,
        pad_token=settings.pad_token,
        unk_token=settings.unk_token,
        add_bos_token=bool(settings.add_bos_token),
        add_eos_token=bool(settings.add_eos_token),
        chat_template=settings.chat_template,
    )
    await exchange.send_json(info)


def _tokens(request: TokenizeRequest, session: Session) -> Tokens:
    if request.prompt is None:
        token_ids = chat_prompts(request, session)[0].token_ids
    else:
        add = request.add_special_tokens is not False
        token_ids = session.encode(request.prompt, add_special_tokens=add, allow_special=request.parse_special)
    names = [token_name(token_id, session.tokenizer) for token_id in token_ids] if request.return_token_strs else None
    return Tokens(count=len(token_ids), max_model_len=session.engine.max_model_len, tokens=token_ids, token_strs=names)
