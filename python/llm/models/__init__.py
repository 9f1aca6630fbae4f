"""Models and their layers."""

from llm.models.context import ForwardContext, PagedCache, positions_of
from llm.models.decoder import DecoderModel, TransformerBlock, cache_widths
from llm.models.layers.paged import Pages
from llm.models.logprobs import IGNORED_LABEL, Targets, token_logprobs, top_logprobs
from llm.models.regressor import RegressionModel

__all__ = [
    "IGNORED_LABEL",
    "DecoderModel",
    "ForwardContext",
    "PagedCache",
    "Pages",
    "RegressionModel",
    "Targets",
    "TransformerBlock",
    "cache_widths",
    "positions_of",
    "token_logprobs",
    "top_logprobs",
]
