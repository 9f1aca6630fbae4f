"""`llm tokenizer info`."""

from llm.cli.tokenizer.options import AllowPickle, Pattern, SpecialTokens, TokenizerPath, open_tokenizer

EXAMPLE = "Example:  llm tokenizer info tokenizers/mine"


def info(
    path: TokenizerPath,
    pattern: Pattern = None,
    special_token: SpecialTokens = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Describe a tokenizer: entries, pattern, special tokens and their roles, longest tokens, chat template."""
    from llm.tokenization.describe import describe_tokenizer

    facts = describe_tokenizer(open_tokenizer(path, pattern, special_token, allow_pickle))
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:<{width}}  {fact}")


command = info
