"""The text of a new run: scanned, used to train a tokenizer, and tokenized."""

from collections.abc import Iterator, Sequence

from llm.checkpoint import Run
from llm.data.scan import Source, remarks, scan_corpus, texts_of
from llm.data.tokenize import tokenize_corpus
from llm.settings.run import DataConfig, TokenizerConfig
from llm.tokenization import (
    BaseTokenizer,
    BPETokenizer,
    SimpleCharacterTokenizer,
    choose_chat_template,
    load_tokenizer,
)


class RunText:
    """The text that a run is trained on, of which only counts are in memory.

    Attributes:
        notices: What the user should know about the text.

    Raises:
        ConfigError: The task doesn't learn from text.
        DataError: There is no text, or a file can't be read.
        MissingExtraError: A file needs a package that is not installed.
    """

    def __init__(self, config: DataConfig, run: Run) -> None:
        self._cache = config.cache_directory
        self._run = run
        self.sources: Sequence[Source] = scan_corpus(config, self._cache or run.data)
        self.notices = remarks(self.sources)

    @property
    def num_bytes(self) -> int:
        """Bytes of the training part."""
        return sum(part.num_bytes for source in self.sources for part in source.train)

    def tokenizer(self, config: TokenizerConfig) -> BaseTokenizer:
        """Loads the tokenizer that `config` names, or trains one on the training part."""
        if config.path is not None:
            tokenizer = load_tokenizer(config.path)
        elif config.kind == "character":
            tokenizer = SimpleCharacterTokenizer.train("".join(sorted(self._characters())))
        else:
            texts = self._texts(config.sample_bytes)
            tokenizer = BPETokenizer.train_from_iterator(texts, vocab_size=config.vocab_size, pattern=config.pattern)
            if self.num_bytes > config.sample_bytes:
                self.notices.append(
                    f"the tokenizer is trained on {config.sample_bytes / 1e6:,.0f} of {self.num_bytes / 1e6:,.0f} MB, "
                    "taken evenly from all of the text (`tokenizer.sample_bytes`)"
                )
        if config.chat_template is not None:
            choose_chat_template(tokenizer, config.chat_template)
        return tokenizer

    def tokenize(self, tokenizer: BaseTokenizer) -> None:
        """Writes the shards that don't exist yet, and which of them belong to the run."""
        tokenize_corpus(self.sources, tokenizer, self._run.data, cache=self._cache)

    def _texts(self, max_bytes: int | None = None) -> Iterator[str]:
        total = max(1, self.num_bytes)
        for source in self.sources:
            own = sum(part.num_bytes for part in source.train)
            limit = None if max_bytes is None else max_bytes * own // total
            yield from (piece.text for piece in texts_of(source.train, source.options, max_bytes=limit))

    def _characters(self) -> set[str]:
        found: set[str] = set()
        for text in self._texts():
            found.update(text)
        return found
