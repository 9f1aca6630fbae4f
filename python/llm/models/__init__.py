"""Models and their layers."""

from llm.models.context import ForwardContext, PagedCache, positions_of
from llm.models.decoder import DecoderModel, TransformerBlock, cache_widths
from llm.models.layers.paged import Pages
from llm.models.regressor import RegressionModel

__all__ = [
    "DecoderModel",
    "ForwardContext",
    "PagedCache",
    "Pages",
    "RegressionModel",
    "TransformerBlock",
    "cache_widths",
    "positions_of",
]
