"""Text files as training samples."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm.checkpoint import read_json
from llm.data.base import BaseDataModule, Dataset
from llm.data.packing import PackedDocuments, PackingFacts
from llm.data.samples import Mixture, Selected, TokenCrops, TokenSamples, TokenWindows
from llm.data.scan import scan_corpus
from llm.data.shards import TokenStream, open_ends, open_shard, read_facts
from llm.data.tokenize import MANIFEST, tokenize_corpus
from llm.errors import DataError
from llm.settings.run import DataConfig
from llm.tokenization import BaseTokenizer


class TextDataModule(BaseDataModule):
    """Text that was tokenized once into memory-mapped shards.

    Args:
        directory: What `prepare` wrote.
        context_length: Number of tokens per sample.
        config: Weights, packing and limits; None takes the defaults.

    Example:
        >>> from llm import TextDataModule
        >>> TextDataModule.prepare("data", DataConfig(paths=("corpus.txt",)), tokenizer)  # doctest: +SKIP
        >>> TextDataModule("data", context_length=256).train_dataset()  # doctest: +SKIP
    """

    def __init__(self, directory: str | Path, context_length: int, config: DataConfig | None = None) -> None:
        self.directory = Path(directory)
        self.context_length = context_length
        self.config = config or DataConfig()

    @staticmethod
    def prepare(directory: str | Path, config: DataConfig, tokenizer: BaseTokenizer) -> None:
        """Tokenizes the text that `config` names; shards that exist are used again.

        Raises:
            DataError: There is no text, or a file can't be read.
            MissingExtraError: A file needs a package that is not installed.
        """
        cache = config.cache_directory
        sources = scan_corpus(config, cache or Path(directory))
        tokenize_corpus(sources, tokenizer, Path(directory), cache=cache)

    def train_dataset(self) -> Dataset:
        """Returns the samples of the training part.

        Raises:
            DataError: The text of a source is shorter than one sample.
        """
        sources = [source for source in self._sources() if source["train"]]
        parts = [self._samples(source) for source in sources]
        if len(parts) == 1:
            return parts[0] if self.config.num_samples is None else Selected(parts[0], self.config.num_samples)
        return Mixture(parts, [source["name"] for source in sources], self._weights(sources))

    def validation_dataset(self) -> Dataset | None:
        """Returns samples of the held-out part, spread evenly if it has more than `data.validation_tokens`."""
        sources = [source for source in self._sources() if source["validation"]]
        parts = [self._samples(source, "validation") for source in sources]
        samples = parts[0] if len(parts) == 1 else Mixture(parts, [source["name"] for source in sources])
        limit = self.config.validation_tokens
        if limit is not None and len(samples) * self.context_length > limit:
            samples = Selected(samples, -(-limit // self.context_length), spread=True)
        return samples if len(samples) else None

    def facts(self) -> list[dict[str, Any]]:
        """Returns counts of each source: `documents`, `bytes`, `tokens`, `samples`, what is cut and what is dropped."""
        return [self._facts(source) for source in self._sources()]

    def notices(self) -> list[str]:
        """Returns what a user should know about documents that don't fit into samples."""
        found = []
        for facts in self.facts():
            if facts.get("cut"):
                found.append(
                    f"{facts['name']}: {facts['cut']:,} of {facts['documents']:,} documents are longer than a sample "
                    f"({self.context_length} tokens) and are cut into windows"
                )
            if facts.get("dropped"):
                found.append(f"{facts['name']}: documents of a single token, which are left out: {facts['dropped']:,}")
        return found

    def document_lengths(self) -> Iterator[NDArray[np.int64]]:
        """Yields the number of tokens of each document, the end-of-text token included, a shard at a time."""
        for source in self._sources():
            for part in ("train", "validation"):
                for file in self.shards(source, part):
                    yield np.diff(open_ends(file), prepend=0)

    def shards(self, source: dict[str, Any], part: str = "train") -> list[Path]:
        """Returns the files with a source's ids."""
        folder = source["cache"] or self.directory
        return [Path(folder) / f"{name}.bin" for name in source[part]]

    def _sources(self) -> list[dict[str, Any]]:
        """What `prepare` listed; of old runs the two files that they have."""
        manifest = self.directory / MANIFEST
        if not manifest.is_file():
            return [{"name": "text", "weight": None, "cache": None, "train": ["train"], "validation": ["validation"]}]
        content = read_json(manifest)
        return [source | {"cache": content["cache"]} for source in content["sources"]]

    def _weights(self, sources: Sequence[dict[str, Any]]) -> list[float]:
        """The weights of the settings, which may have changed since the text was tokenized."""
        weights = {source.name: source.weight for source in self.config.all_sources}
        return [weights.get(source["name"], source["weight"] or 1.0) for source in sources]

    def _samples(self, source: dict[str, Any], part: str = "train") -> TokenSamples:
        files = self.shards(source, part)
        token_ids = TokenStream([open_shard(file) for file in files])
        if self.config.packing:
            samples: TokenSamples = self._packed(token_ids, files)
        elif self.config.sampling == "crops" and part == "train":
            samples = TokenCrops(token_ids, self.context_length)
        else:
            samples = TokenWindows(token_ids, self.context_length, keep_rest=part == "validation")
        if part == "train" and not len(samples):
            where = f" of source `{source['name']}`" if len(self._sources()) > 1 else ""
            raise DataError(
                f"the training text{where} has {len(token_ids)} tokens, one sample needs {self.context_length + 1}\n"
                "hint: add text or lower `data.context_length`"
            )
        return samples

    def _packed(self, token_ids: TokenStream, files: Sequence[Path]) -> PackedDocuments:
        made_from = json.dumps([[file.stem for file in files], self.context_length])
        name = hashlib.sha256(made_from.encode()).hexdigest()[:32]
        index = self.directory / f"packed-{name}.npy"
        return PackedDocuments(token_ids, [open_ends(file) for file in files], self.context_length, index)

    def _facts(self, source: dict[str, Any]) -> dict[str, Any]:
        facts: dict[str, Any] = {"name": source["name"], "weight": source["weight"]}
        for part in ("train", "validation"):
            found = [read_facts(file) for file in self.shards(source, part)]
            for name in ("documents", "bytes", "tokens"):
                count = sum(one.get(f"num_{name}", 0) for one in found)
                facts[name if part == "train" else f"validation_{name}"] = count
        if not source["train"]:
            return facts
        samples = self._samples(source)
        facts["samples"] = samples.epoch_samples
        if isinstance(samples, PackedDocuments):
            packed: PackingFacts = samples.facts
            facts |= {"cut": packed.num_cut, "dropped": packed.num_dropped, "filled": packed.filled}
        elif isinstance(samples, TokenWindows):
            facts["dropped_tokens"] = samples.num_dropped_tokens
        return facts
