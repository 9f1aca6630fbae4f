"""The settings of `llm bench scheduler`."""

import math
from typing import Annotated

import msgspec
from msgspec import Meta

from llm.settings.engine import EngineConfig


class Simulation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A load, the scheduler's limits, and the simulated clock."""

    requests: Annotated[int, Meta(ge=1, description="Requests to make up.")] = 100_000
    prompt_tokens: Annotated[int, Meta(ge=1, description="Tokens of a prompt, on average.")] = 500
    output_tokens: Annotated[int, Meta(ge=1, description="Tokens of an answer, on average.")] = 200
    rate: Annotated[float, Meta(gt=0.0, description="Arrivals a second; null: one request always waits.")] | None = None
    prefixes: Annotated[int, Meta(ge=0, description="Beginnings that prompts share.")] = 0
    prefix_tokens: Annotated[int, Meta(ge=0, description="Tokens of such a beginning.")] = 0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1, description="Of the made-up load.")] = 0
    running: Annotated[int, Meta(ge=1, description="Requests decoded together.")] = 256
    block_size: Annotated[int, Meta(ge=1, description="Tokens a block.")] = 16
    blocks: Annotated[int, Meta(ge=1, description="Blocks; null: twice what runs on average.")] | None = None
    max_batch_tokens: Annotated[int, Meta(ge=1, description="Token budget of a step.")] = 2048
    prefix_caching: Annotated[bool, Meta(description="Reuse cache blocks of prompts with the same beginning.")] = True
    step_ms: Annotated[float, Meta(ge=0.0, description="Simulated time of a step.")] = 20.0
    token_us: Annotated[float, Meta(ge=0.0, description="Simulated time more for each token.")] = 0.0

    @property
    def num_blocks(self) -> int:
        """Blocks of the cache."""
        mean_tokens = self.prefix_tokens * bool(self.prefixes) + self.prompt_tokens + self.output_tokens
        return self.blocks or 2 * self.running * math.ceil(mean_tokens / self.block_size)

    @property
    def max_model_len(self) -> int:
        """Longest request, prompt and answer: one that fills the cache."""
        return self.num_blocks * self.block_size

    def limits(self) -> EngineConfig:
        """The scheduler's limits."""
        return EngineConfig(
            block_size=self.block_size,
            max_batch_tokens=self.max_batch_tokens,
            max_running_requests=self.running,
            max_model_len=self.max_model_len,
            enable_prefix_caching=self.prefix_caching,
        )
