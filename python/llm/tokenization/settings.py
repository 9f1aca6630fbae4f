"""Settings of a tokenizer besides its vocabulary: roles of special tokens and chat templates."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from llm.errors import TokenizerError
from llm.tokenization.files import (
    CONFIG_FILE,
    EXTRA_TEMPLATES,
    GENERATION_FILE,
    MAP_FILE,
    MODEL_FILE,
    TEMPLATE_FILE,
    read_json_object,
    read_text,
    write_text,
)

# Special tokens with names that imply a role, in order of priority.
BOS_NAMES = ("<|begin_of_text|>", "<|bos|>", "<s>", "<|endoftext|>")
EOS_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<|eos|>", "</s>", "<|im_end|>", "<|eot_id|>")
PAD_NAMES = ("<|pad|>", "<pad>")

# The name of the template for conversations that don't choose another.
DEFAULT_TEMPLATE = "default"


class TokenizerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Roles of special tokens and chat templates, saved as `tokenizer_config.json` with Hugging Face's names.

    Hugging Face's format has one end token; `eos_tokens` and `chat_stop` are saved too, under names of this package.
    `add_bos_token` and `add_eos_token` tell whether the model expects those tokens around a text; None means unknown.
    `named_templates` holds the templates besides `chat_template`, such as `tool_use`.
    """

    bos_token: str | None = None
    eos_tokens: tuple[str, ...] = ()
    pad_token: str | None = None
    unk_token: str | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    chat_template: str | None = None
    named_templates: dict[str, str] = {}
    chat_stop: tuple[str, ...] = ()

    @classmethod
    def for_special_tokens(cls, special_tokens: Iterable[str]) -> Self:
        """Returns roles derived from token names; `<|endoftext|>` alone both begins and ends a text."""
        known = set(special_tokens)
        return cls(
            bos_token=next((name for name in BOS_NAMES if name in known), None),
            eos_tokens=tuple(name for name in EOS_NAMES if name in known),
            pad_token=next((name for name in PAD_NAMES if name in known), None),
        )

    @property
    def has_roles(self) -> bool:
        """Returns whether any token has a role."""
        return bool(self.bos_token or self.eos_tokens or self.pad_token or self.unk_token)

    @classmethod
    def load(cls, directory: Path, special_tokens: Mapping[str, int] | None = None) -> Self:
        """Returns a directory's settings, read as by `transformers`; without files, the settings are empty.

        `tokenizer_config.json` overrides `special_tokens_map.json`. If neither lists end tokens, the ids of more end
        tokens may be in `generation_config.json`, or else in `config.json`; `special_tokens` gives their names.
        `chat_template.jinja` and `additional_chat_templates/*.jinja` override all templates in other files.

        Raises:
            FileError: A file can't be read.
            TokenizerError: A value has the wrong type.
        """
        path = directory / CONFIG_FILE
        config = _json_object(directory / MAP_FILE) | _json_object(path)
        templates = _template_files(directory) or _templates(config.get("chat_template"))
        fields = {
            "bos_token": _token(config.get("bos_token")),
            "eos_tokens": config.get("eos_tokens") or _end_tokens(config, directory, special_tokens or {}),
            "pad_token": _token(config.get("pad_token")),
            "unk_token": _token(config.get("unk_token")),
            "add_bos_token": config.get("add_bos_token"),
            "add_eos_token": config.get("add_eos_token"),
            "chat_template": templates.pop(DEFAULT_TEMPLATE, None),
            "named_templates": templates,
            "chat_stop": config.get("chat_stop_strings") or [],
        }
        try:
            return msgspec.convert(fields, cls)
        except msgspec.ValidationError as error:
            raise TokenizerError(f"{path}: {error}") from error

    def save(self, directory: Path) -> None:
        """Writes `tokenizer_config.json`, including the template.

        Raises:
            FileError: The file can't be written.
        """
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "bos_token": self.bos_token,
            "eos_token": self.eos_tokens[0] if self.eos_tokens else None,
            "pad_token": self.pad_token,
            "unk_token": self.unk_token,
            "add_bos_token": self.add_bos_token,
            "add_eos_token": self.add_eos_token,
            "eos_tokens": list(self.eos_tokens),
            "chat_template": self._written_templates(),
            "chat_stop_strings": list(self.chat_stop),
        }
        text = json.dumps(
            {name: value for name, value in config.items() if value is not None}, indent=2, ensure_ascii=False
        )
        write_text(directory / CONFIG_FILE, text + "\n")
        # Old template files would override the new settings.
        for file in (directory / TEMPLATE_FILE, *directory.glob(EXTRA_TEMPLATES)):
            file.unlink(missing_ok=True)

    def _written_templates(self) -> str | list[dict[str, str]] | None:
        if not self.named_templates:
            return self.chat_template
        default = {} if self.chat_template is None else {DEFAULT_TEMPLATE: self.chat_template}
        return [{"name": name, "template": text} for name, text in (default | self.named_templates).items()]


def _json_object(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _end_tokens(config: Mapping[str, Any], directory: Path, special_tokens: Mapping[str, int]) -> list[Any]:
    """Returns the tokenizer's own end token, followed by those in the model's generation settings."""
    own = _token(config.get("eos_token"))
    ids = _end_ids(directory / GENERATION_FILE) or _end_ids(directory / MODEL_FILE)
    names = {token_id: token for token, token_id in special_tokens.items()}
    more = [names[token_id] for token_id in ids if token_id in names]
    return list(dict.fromkeys([own, *more] if own is not None else more))


def _end_ids(path: Path) -> list[int]:
    """Returns the ids in `eos_token_id`: an id, a list, or a decimal string, which transformers lets pass.

    Raises:
        TokenizerError: Another value.
    """
    value = _json_object(path).get("eos_token_id")
    try:
        ids = msgspec.convert([] if value is None else value, int | list[int], strict=False)
    except msgspec.ValidationError:
        raise TokenizerError(f"{path}: `eos_token_id` must be an id or a list of ids, got {value!r}") from None
    return ids if isinstance(ids, list) else [ids]


def _token(value: Any) -> Any:
    """Returns a special token's text, which older files wrap in an object."""
    return value.get("content") if isinstance(value, dict) else value


def _templates(value: Any) -> dict[Any, Any]:
    """Returns templates by name; a single template is the default."""
    if not isinstance(value, list):
        return {} if value is None else {DEFAULT_TEMPLATE: value}
    return {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}


def _template_files(directory: Path) -> dict[Any, Any]:
    named = {file.stem: read_text(file) for file in sorted(directory.glob(EXTRA_TEMPLATES))}
    default = directory / TEMPLATE_FILE
    return ({DEFAULT_TEMPLATE: read_text(default)} if default.is_file() else {}) | named
