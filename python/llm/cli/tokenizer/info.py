"""`llm tokenizer info`."""

from llm.cli.tokenizer.options import TokenizerPath

EXAMPLE = "Example:  llm tokenizer info tokenizers/mine"


def info(path: TokenizerPath) -> None:
    """Say what a tokenizer is: entries, pattern, special tokens and their roles, longest tokens, chat template."""
    from llm.tokenization import load_tokenizer
    from llm.tokenization.describe import describe_tokenizer

    facts = describe_tokenizer(load_tokenizer(path))
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:<{width}}  {fact}")


command = info
