"""Seeded prompts of an exact number of tokens, and the lengths of the offline load."""

import random

from llm.tokenization import BaseTokenizer, encode_chat

# Each is one token of its own behind a space in every vocabulary that is served here.
WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father power hour
game line end member law car city community name president team minute idea body information back parent face others
level office door health person art war history party result change morning reason research girl guy moment air teacher
force education
""".split()  # noqa: SIM905 - two hundred quotes are harder to read
Message = dict[str, str]


def conversation(tokenizer: BaseTokenizer, num_tokens: int, seed: str, system: str | None = None) -> list[Message]:
    """A conversation that the chat template makes `num_tokens` long; other seeds differ from the first words on.

    Raises:
        ValueError: The template alone is longer.
    """
    rng = random.Random(seed)
    words = rng.choices(WORDS, k=num_tokens)
    before = [] if system is None else [{"role": "system", "content": system}]

    def written(count: int) -> list[Message]:
        return [*before, {"role": "user", "content": " ".join(["Go", "on:", *words[:count]])}]

    count = num_tokens - len(encode_chat(tokenizer, written(0), add_generation_prompt=True))
    if count < 0:
        raise ValueError(f"no conversation has {num_tokens} tokens: the chat template alone takes {num_tokens - count}")
    got = len(encode_chat(tokenizer, written(count), add_generation_prompt=True))
    if got != num_tokens:
        raise ValueError(f"a conversation for {num_tokens} tokens has {got}: some word is not one token")
    return written(count)


def system_prompt(num_words: int, seed: str) -> str:
    """A system prompt of about as many tokens as words."""
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))


def offline_workload(
    num_sequences: int, divisor: int, vocab_size: int, seed: str = "offline"
) -> tuple[list[list[int]], list[int]]:
    """Random ids: prompts and numbers of new tokens, both from 100 to 1,024 tokens divided by `divisor`."""
    rng = random.Random(seed)
    shortest, longest = 100 // divisor, 1024 // divisor
    prompts = [
        [rng.randrange(vocab_size // 2) + vocab_size // 4 for _ in range(rng.randint(shortest, longest))]
        for _ in range(num_sequences)
    ]
    return prompts, [rng.randint(shortest, longest) for _ in range(num_sequences)]
