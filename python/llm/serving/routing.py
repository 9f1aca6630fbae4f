"""Which of several servers a request goes to: one that has its beginning in the prefix cache, unless it is too busy.

A router sees texts, not tokens, and needs no tokenizer. It cuts a prompt into blocks of characters and names each by a
hash of its content and of the block before, as the engine names blocks of tokens. It remembers which blocks it sent to
which server, about as many as a server's cache holds, and forgets those used least recently, like the cache.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

BLOCK_CHARS = 64  # about 16 tokens of English, the size of the engine's blocks
_KEY_BYTES = 8
# So many tell prompts apart; hashing all of the longest would hold up other requests for 0.2 s.
_MOST_BLOCKS = 4096
# Where prompts stand in requests, in the order in which chat templates render them.
_FIELDS = ("tools", "system", "instructions", "messages", "prompt", "input")

# A server takes requests for what it has in its cache while it has at most this many, and this share of the mean.
_FREE_REQUESTS = 4
_MOST_OF_MEAN = 1.25


def block_keys(body: bytes) -> tuple[int, ...]:
    """Returns the keys of the first 4,096 whole blocks of a request's prompt; none if the body holds no prompt in JSON.

    Two prompts share as many keys as blocks at their beginning. Prompts for different models share none.
    """
    try:
        request = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return ()
    if not isinstance(request, dict):
        return ()
    text = "\x1e".join(_texts(request))
    parent = hashlib.blake2b(str(request.get("model")).encode(errors="replace"), digest_size=_KEY_BYTES).digest()
    keys = []
    for start in range(0, min(len(text) - BLOCK_CHARS + 1, _MOST_BLOCKS * BLOCK_CHARS), BLOCK_CHARS):
        block = text[start : start + BLOCK_CHARS].encode(errors="replace")
        parent = hashlib.blake2b(parent + block, digest_size=_KEY_BYTES).digest()
        keys.append(int.from_bytes(parent))
    return tuple(keys)


def _texts(request: Mapping[str, Any]) -> Iterator[str]:
    for name in _FIELDS:
        value = request.get(name)
        # A message is written by itself, so that a longer conversation begins as the shorter one did.
        for item in value if isinstance(value, list) else [value]:
            if item is not None:
                yield item if isinstance(item, str) else msgspec.json.encode(item).decode()


class PrefixTable:
    """Remembers which server has which blocks, and ranks servers for a request.

    Args:
        capacity_blocks: Blocks remembered for each server.
    """

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity = capacity_blocks
        self._known: dict[str, OrderedDict[int, None]] = {}

    def matched(self, server: str, keys: Sequence[int]) -> int:
        """Returns how many blocks at the beginning of a prompt a server has."""
        known = self._known.get(server, ())
        return next((idx for idx, key in enumerate(keys) if key not in known), len(keys))

    def ranked(self, keys: Sequence[int], loads: Mapping[str, int]) -> list[str]:
        """Returns the servers, the best one first.

        Servers with more than 4 requests and more than 1.25 times the mean come last. Of the others, the one with most
        of the prompt's blocks comes first, then the one with fewest requests. Between equal servers, a hash of the
        prompt's first block and the server's name decides, so that routers that know nothing of each other agree.

        Source: Mirrokni et al. 2018, "Consistent Hashing with Bounded Loads".

        Args:
            keys: The prompt's keys.
            loads: Requests in progress by the servers' names.
        """
        bound = max(_FREE_REQUESTS, _MOST_OF_MEAN * (sum(loads.values()) + 1) / max(len(loads), 1))

        def rank(server: str) -> tuple[bool, int, int, bytes]:
            load = loads[server]
            matched = self.matched(server, keys)
            return (load + 1 > bound, -matched if load + 1 <= bound else 0, load, _lot(server, keys))

        return sorted(loads, key=rank)

    def add(self, server: str, keys: Sequence[int]) -> None:
        """Notes that a server gets a request; its blocks used least recently are forgotten."""
        known = self._known.setdefault(server, OrderedDict())
        # From the last block on: a prompt's end is forgotten before its beginning, which others may share.
        for key in reversed(keys):
            known[key] = None
            known.move_to_end(key)
        while len(known) > self._capacity:
            known.popitem(last=False)

    def keep(self, servers: Iterable[str]) -> None:
        """Forgets all servers but these."""
        kept = set(servers)
        self._known = {server: known for server, known in self._known.items() if server in kept}


def _lot(server: str, keys: Sequence[int]) -> bytes:
    first = keys[0].to_bytes(_KEY_BYTES) if keys else b""
    return hashlib.blake2b(server.encode() + first, digest_size=_KEY_BYTES).digest()
