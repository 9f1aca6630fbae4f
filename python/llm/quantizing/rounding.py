"""Rounds the matrices of a block with one of the methods."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llm.models.gguf import EncodedRows
from llm.quantizing.awq import clipped, scale_block
from llm.quantizing.gptq import gptq
from llm.quantizing.grid import Grouped, nearest
from llm.quantizing.inputs import Collected, Inputs
from llm.quantizing.outputs import Output, Quantized
from llm.settings.quantization import QuantizationConfig


@dataclass
class Rounding:
    """A method with its settings.

    Attributes:
        config: The method and its settings.
        output: Knows the type of each matrix.
        num_unseen: Matrices of experts that no token of the calibration text was routed to.
    """

    config: QuantizationConfig
    output: Output
    num_unseen: int = 0

    @property
    def learns(self) -> bool:
        """Whether the method looks at inputs."""
        return self.config.chosen_method != "rtn"

    @property
    def compensates(self) -> bool:
        """Whether the method makes up for errors of earlier layers, and so learns from what quantised ones pass on."""
        return self.config.chosen_method == "gptq"

    def prepare(self, block: nn.Module, collected: Collected) -> None:
        """Changes the weights of a block, not what it computes, so that rounding costs less."""
        if self.config.chosen_method == "awq":
            scale_block(block, collected.by_name, self.output.grid, self.output.dtype)

    def all(self, values: Tensor, inputs: Sequence[Inputs] | None) -> Quantized:
        """Rounds a matrix `[O, I]` or stacked matrices `[E, O, I]`; the result has the rows of all."""
        stack = values.detach().reshape(-1, *values.shape[-2:])
        known = [None] * len(stack) if inputs is None else inputs
        return joined([self.one(matrix, seen) for matrix, seen in zip(stack, known, strict=True)])

    def one(self, matrix: Tensor, inputs: Inputs | None) -> Quantized:
        """Rounds a matrix, fp32 `[O, I]`; without inputs each value goes to the nearest integer."""
        grid = self.output.grid(matrix.shape[1])
        method = self.config.chosen_method
        if grid is None or (method == "rtn" and self.config.stored == "q8_0"):
            return self.output.rounded(matrix)
        if inputs is not None and not inputs.num_tokens:
            self.num_unseen += 1
            inputs = None
        if inputs is None:
            return nearest(matrix, grid)
        settings = self.config
        if method == "awq":
            return clipped(matrix, inputs.gram, grid)
        return gptq(matrix, inputs.gram, grid, damping=settings.damping, act_order=settings.act_order)


def joined(parts: Sequence[Quantized]) -> Quantized:
    """Returns the rows of all parts, which are in one type."""
    if len(parts) == 1:
        return parts[0]
    grids = [part for part in parts if isinstance(part, Grouped)]
    if grids:
        return Grouped(torch.cat([part.codes for part in grids]), torch.cat([part.scales for part in grids]))
    rows = [part for part in parts if isinstance(part, EncodedRows)]
    stacked = torch.cat([part.rows for part in rows])
    return EncodedRows(rows[0].kind, (len(stacked), rows[0].shape[1]), stacked)
