"""The paged cache's bookkeeping as one dict: who holds which blocks."""

from collections.abc import Mapping


class BlockPool:
    """Each holder's blocks; a block nobody holds is free. Nothing is counted that can be looked up."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.holders: dict[int, list[int]] = {}

    @property
    def used(self) -> list[int]:
        """All blocks held, in no order."""
        return [block for blocks in self.holders.values() for block in blocks]

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return self.num_blocks - len(set(self.used))

    def hold(self, holder: int, blocks: list[int], first_written: int, copies: Mapping[int, int]) -> None:
        """`holder` now holds exactly these blocks: it may gain some at the end, or start anew.

        Those before place `first_written` it only reads, so others may hold them too; from there on they are its own.
        `copies` are the targets of the step's copies with their sources: such a block replaces its source.

        Raises:
            ValueError: A block that doesn't exist, one written to that another holds, or a holder whose blocks changed
                place.
        """
        before = self.holders.get(holder, [])
        original = [copies.get(block, block) for block in blocks]
        if any(now != then for now, then in zip(original, before, strict=False)):
            raise ValueError(f"request {holder} held {before}, now {blocks}: its cached tokens are gone")
        others = {block for other, held in self.holders.items() if other != holder for block in held}
        if wrong := [block for block in blocks[first_written:] if block in others]:
            raise ValueError(f"request {holder} writes to {wrong}, which others hold")
        if wrong := [block for block in blocks if not 0 <= block < self.num_blocks]:
            raise ValueError(f"request {holder} was given {wrong}, which don't exist")
        if len(set(blocks)) != len(blocks):
            raise ValueError(f"request {holder} was given a block twice: {blocks}")
        self.holders[holder] = blocks

    def release(self, holder: int) -> None:
        """`holder` holds nothing any more."""
        self.holders.pop(holder, None)
