"""One checkpoint: the config, weights, tokenizer and sampling defaults of a model on disk."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm.checkpoint.adapters import (
    Adapter,
    base_path,
    check_adapter_base,
    check_base,
    fill_adapters,
    is_adapter,
    read_adapter,
)
from llm.checkpoint.atomic import COMPLETE, damage_in
from llm.checkpoint.weights import (
    CUSTOM,
    build_model,
    build_shard,
    dtype_of,
    fill_decoder,
    fill_plain_module,
    read_json,
)
from llm.errors import CheckpointError
from llm.models import DecoderModel, RegressionModel
from llm.models.adapters import is_adapted, merge_into
from llm.models.families import family_named
from llm.models.gguf import GGUFModel, read_config
from llm.models.quantised import open_weights, scheme_of
from llm.models.reward import first_architecture, is_classifier
from llm.models.tensor_files import OnDisk, open_tensors
from llm.models.tensor_parallel import Shard
from llm.settings.model import ModelConfig
from llm.settings.sampling import GREEDY, SamplingParams
from llm.tokenization import BaseTokenizer, load_tokenizer


@dataclass(frozen=True)
class Checkpoint(os.PathLike[str]):
    """A checkpoint directory or GGUF file; `str` and `os.fspath` give the path.

    Nothing is read before a member asks for it. `resolve` finds the checkpoint that a path means.

    Example:
        >>> from llm import LLM, train
        >>> base = train(data="corpus.txt", out="runs/base")  # doctest: +SKIP
        >>> base.config.num_hidden_layers, base.tokenizer().vocab_size  # doctest: +SKIP
        >>> LLM(base).generate("Once upon").text  # doctest: +SKIP
    """

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_gguf(self) -> bool:
        """Whether the checkpoint is a GGUF file of llama.cpp."""
        return self.path.suffix == ".gguf" and self.path.is_file()

    @property
    def is_adapter(self) -> bool:
        """Whether the directory holds an adapter, to be merged into the weights of its `base`."""
        return is_adapter(self.path)

    @property
    def base(self) -> "Checkpoint":
        """The checkpoint that an adapter belongs to; a checkpoint of whole weights is its own.

        Raises:
            CheckpointError: The adapter names no base, or there is no checkpoint at that place.
        """
        if not self.is_adapter:
            return self
        named = base_path(self.path)
        found = Checkpoint(Path(named))
        if not named or not (found.is_gguf or (found.path / "config.json").is_file() or found.is_adapter):
            raise CheckpointError(
                f"the adapter {self} belongs to the model {named!r}, and there is no checkpoint at that path\n"
                "hint: `llm merge ADAPTER --base PATH --out DIR` names another place"
            )
        return found

    @property
    def is_quantised(self) -> bool:
        """Whether the weights can be quantised: a GGUF file, or a directory whose config names a scheme.

        An adapter's are not, because its base is unpacked to take it in.

        Raises:
            CheckpointError: The config is missing, or names a scheme that is not supported.
        """
        return self.is_gguf or (not self.is_adapter and scheme_of(self.values) is not None)

    @property
    def is_complete(self) -> bool:
        """Whether the marker of a complete checkpoint is there; directories from elsewhere have none."""
        return (self.path / COMPLETE).is_file()

    def damage(self, *, read: bool = True, state: bool = True) -> str | None:
        """Returns how the files differ from what was saved; None if they don't, or if nothing is known about them.

        Args:
            read: Whether to read and compare the content of every file; otherwise only the sizes are compared.
            state: Whether `read` holds for the training state too, which only a resumed run needs.
        """
        unread = None if state else self.training_state
        return damage_in(self.path, read=read, unread=unread) if self.is_complete else None

    @cached_property
    def values(self) -> Mapping[str, Any]:
        """The values of `config.json`, of an adapter's base, or the same values as a GGUF file names them.

        Raises:
            CheckpointError: The file is missing, not a JSON object, or not a model's.
        """
        if self.is_adapter:
            return self.base.values
        return read_config(self.path) if self.is_gguf else read_json(self.path / "config.json")

    @property
    def architecture(self) -> str | None:
        """The class that `config.json` names, such as `LlamaForCausalLM`."""
        return first_architecture(self.values)

    @property
    def is_decoder(self) -> bool:
        """Whether the model is a decoder, which generates text if a tokenizer is there."""
        return self.values.get("model_type") != CUSTOM and self.architecture != "RegressionModel"

    @property
    def is_reward_model(self) -> bool:
        """Whether the model gives each sequence one number, and generates no text."""
        return is_classifier(self.architecture)

    @property
    def config(self) -> ModelConfig:
        """The config of the decoder; weights are not read.

        Raises:
            CheckpointError: Missing or contradictory values, or an unknown architecture.
        """
        return family_named(self.values).config_from(self.values)

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer lies beside the weights."""
        is_here = self.is_gguf or (self.path / "tokenizer.json").is_file()
        return is_here or (self.is_adapter and self.base.has_tokenizer)

    @property
    def training_state(self) -> Path:
        """The directory with optimizer state and step counters; resuming needs this directory, serving does not."""
        return self.path / "training_state"

    def tokenizer(self) -> BaseTokenizer:
        """Loads the tokenizer.

        Raises:
            TokenizerError: The files are missing or broken.
        """
        is_of_base = self.is_adapter and not (self.path / "tokenizer.json").is_file()
        return self.base.tokenizer() if is_of_base else load_tokenizer(self.path)

    def generation_defaults(self) -> dict[str, float]:
        """Returns the sampling values of the checkpoint for requests that name none.

        A file that does not ask for sampling means the most likely token each time, as in transformers; a temperature
        without `do_sample` counts as asking.
        """
        file = self.path / "generation_config.json"
        if self.is_adapter and not file.is_file():
            return self.base.generation_defaults()
        values = read_json(file) if file.is_file() else {}
        asks = values.get("do_sample")
        if file.is_file() and (asks is False or (asks is None and all(values.get(name) is None for name in GREEDY))):
            return dict(GREEDY)
        return {key: values[key] for key in SamplingParams.__struct_fields__ if values.get(key) is not None}

    def model(
        self,
        dtype: str = "auto",
        device: str | torch.device = "cpu",
        *,
        keep_packed: bool = False,
        settings: ModelConfig | None = None,
    ) -> DecoderModel | RegressionModel:
        """Builds the model, in eval mode; an adapter is merged into its base.

        Args:
            dtype: `auto` (the checkpoint's own), `float32`, `bfloat16` or `float16`.
            device: Where the weights go.
            keep_packed: Whether quantised matrices of a file stay packed, as far as kernels of the device read them.
            settings: The same model's config with other settings that weights don't depend on; None takes its own.

        Raises:
            CheckpointError: Missing, torn or contradictory files, an unknown architecture or dtype.
        """
        if self.is_adapter:
            return self.merged_into(self.base, dtype, device)
        values, tensors = self.opened()
        kind = dtype_of(values, tensors, dtype)
        return build_model(values, tensors, kind, torch.device(device), keep_packed=keep_packed, settings=settings)

    def shard(self, shard: Shard, dtype: str = "auto", device: str | torch.device = "cpu") -> DecoderModel:
        """Builds a rank's part of the model, in eval mode; no more than that part is read.

        Args:
            shard: The part; `llm.models.tensor_parallel.obstacle` must have returned None.
            dtype: As in `model`.
            device: Where the weights go.

        Raises:
            CheckpointError: Missing, torn or contradictory files, or an unknown dtype.
        """
        values, tensors = self.opened()
        return build_shard(values, tensors, dtype_of(values, tensors, dtype), torch.device(device), shard)

    def merged_into(self, base: "Checkpoint", dtype: str = "auto", device: str | torch.device = "cpu") -> DecoderModel:
        """Builds an adapter's model from `base`, in eval mode; see `model`.

        Raises:
            CheckpointError: The adapter was trained on other weights, or files are missing or damaged.
        """
        adapter = read_adapter(self.path)
        model = base.model(dtype, device)
        if not isinstance(model, DecoderModel):
            raise CheckpointError(f"the base of the adapter {self} must be a decoder, got a {type(model).__name__}")
        base.check_as_base(adapter)
        merge_into(model, adapter.factors)
        return model

    @property
    def sources(self) -> tuple[Path, ...]:
        """The directories or files that its weights come from: its own, and those of an adapter's base."""
        return (self.path, *self.base.sources) if self.is_adapter else (self.path,)

    def check_as_base(self, adapter: Adapter) -> None:
        """Checks that an adapter was trained on these weights; one that has no digests passes.

        Raises:
            CheckpointError: It was trained on others, or files are missing or damaged.
        """
        if self.is_adapter:
            check_adapter_base(adapter, self.path)
        elif adapter.digests:
            check_base(adapter, *self.opened(), str(self))

    def check_adapter(self) -> None:
        """Checks that an adapter's base has the weights that it was trained on; whole weights always pass.

        Raises:
            CheckpointError: They are others, or files are missing or damaged.
        """
        if self.is_adapter:
            self.base.check_as_base(read_adapter(self.path))

    def load_weights(self, model: nn.Module) -> None:
        """Copies the weights into a model that exists already, in the dtype and on the device of its parameters.

        A model that is sharded over processes gets its shards. A model with adapters gets an adapter's values; any
        other gets the weights of the adapter's base with the adapter in them.

        Raises:
            CheckpointError: Missing or torn files, or weights of another model.
        """
        if self.is_adapter and isinstance(model, DecoderModel):
            self._load_adapter(model)
        elif isinstance(model, DecoderModel):
            fill_decoder(model, *self.opened())
        else:
            fill_plain_module(model, open_tensors(self.path))

    def _load_adapter(self, model: DecoderModel) -> None:
        self.check_adapter()
        adapter, base = read_adapter(self.path), self.base
        if is_adapted(model):
            fill_adapters(model, adapter)
        else:
            base.load_weights(model)
            merge_into(model, adapter.factors)

    def opened(self) -> tuple[Mapping[str, Any], Mapping[str, OnDisk]]:
        """Returns config and weights under Hugging Face's names; no weight has been read yet.

        Raises:
            CheckpointError: Missing, torn or contradictory files, or the weights of an adapter.
        """
        if self.is_gguf:
            opened = GGUFModel(self.path)
            return opened.config, opened.tensors
        if not self.is_adapter and not (self.path / "config.json").is_file():
            raise CheckpointError(f"no config.json in {self.path}\nhint: pass a checkpoint directory or a .gguf file")
        return self.values, open_weights(self.path, self.values)
