"""Chat templates by name or from a Jinja file."""

from pathlib import Path

from llm.errors import ChatTemplateError
from llm.tokenization.base import BaseTokenizer
from llm.tokenization.chat import TEMPLATES, ChatTemplate, render_chat, use_chat_template
from llm.tokenization.files import read_text

# A noncharacter, which valid text doesn't contain.
_MARK = "\ufdd0"


def choose_chat_template(tokenizer: BaseTokenizer, given: str) -> None:
    """Gives a tokenizer a chat template, which `save` stores.

    What a template from a file writes after an answer becomes the text at which answers stop, unless it is one of the
    tokenizer's end tokens.

    Args:
        tokenizer: The tokenizer to change in place.
        given: A name in `TEMPLATES`, or a file in Jinja.

    Raises:
        ChatTemplateError: There is neither such a name nor such a file, or the template is not valid Jinja.
    """
    if given in TEMPLATES:
        use_chat_template(tokenizer, given)
        return
    file = Path(given)
    if not file.is_file():
        raise ChatTemplateError(
            f"a chat template must be one of {sorted(TEMPLATES)} or a file in Jinja, got {given!r}, which is neither"
        )
    source = read_text(file)
    use_chat_template(tokenizer, ChatTemplate(source))
    end = _end_of_turn(tokenizer)
    if end and end not in tokenizer.settings.eos_tokens:
        use_chat_template(tokenizer, ChatTemplate(source, stop=(end,)))


def _end_of_turn(tokenizer: BaseTokenizer) -> str:
    """Returns what the template writes after an answer; empty if that is nothing or unknown."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _MARK}]
    try:
        text = render_chat(tokenizer, messages, add_generation_prompt=False)
    except ChatTemplateError:
        return ""
    end = text.partition(_MARK)[2]
    return end.strip() or end
