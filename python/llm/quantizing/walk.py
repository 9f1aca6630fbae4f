"""Takes a model through the layers: one in memory at a time, the original and the quantised one side by side."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from llm.models.context import ForwardContext, positions_of
from llm.models.layers.rotary import query_scale
from llm.quantizing.compare import Comparison, Head, compare, copied
from llm.quantizing.inputs import Collected, collecting, matrices
from llm.quantizing.outputs import Output
from llm.quantizing.rounding import Rounding
from llm.quantizing.source import Source
from llm.quantizing.text import Windows

# Tokens of a pass: enough to keep the processor busy, few enough to stay far below a layer's size.
_PASS_TOKENS = 4096


@dataclass
class Walk:
    """A model on its way through the layers.

    Attributes:
        output: Takes what is stored.
        rounding: The method.
        num_weights: Number of quantised weights so far.
        num_bytes: Bytes that they take, scales included.
    """

    output: Output
    rounding: Rounding
    num_weights: int = 0
    num_bytes: int = 0
    _streams: dict[str, Tensor] = field(default_factory=dict)

    @property
    def source(self) -> Source:
        """The model."""
        return self.output.source

    def run(self, windows: Windows, advance: Callable[[], None]) -> Comparison:
        """Quantises all layers and compares the result with the original.

        Args:
            windows: Text to learn from and text to compare on.
            advance: Called after each layer.

        Raises:
            CheckpointError: A weight is not a number.
        """
        self._embed(windows)
        for idx, block in enumerate(self.source.layers):
            with self.source.filled(f"layers.{idx}."):
                self._quantise(idx, block)
            advance()
        return self._compare(windows)

    def _embed(self, windows: Windows) -> None:
        source = self.source
        with source.filled("embed_tokens.", "positions."):
            self._streams["original"] = self._embedded(windows.heldout)
            for name, parameter in list(source.model.named_parameters()):
                if name.startswith(("embed_tokens.", "positions.")):
                    source.set(name, self.output.top(name, parameter))
            self._streams["quantised"] = self._embedded(windows.heldout)
            if self.rounding.learns:
                self._streams["calibration"] = self._embedded(windows.calibration)

    def _embedded(self, ids: Tensor) -> Tensor:
        positions = positions_of((ids.shape[1],) * len(ids))
        return self.source.model.embed(ids.flatten(), positions).view(*ids.shape, -1)

    def _quantise(self, idx: int, block: nn.Module) -> None:
        prefix = f"layers.{idx}."
        self._pass(idx, "original")
        with collecting(block) if self.rounding.learns else nullcontext(Collected()) as collected:
            if self.rounding.learns:
                self._pass(idx, "calibration", keep=not self.rounding.compensates)
        self.rounding.prepare(block, collected)
        found = matrices(block)
        for name, parameter in block.named_parameters():
            if name in found:
                matrix = self.rounding.all(parameter, collected.of(name))
                for cut in self.source.cuts(prefix + name, parameter.shape):
                    self.num_bytes += self.output.add_matrix(cut, matrix)
                self.num_weights += parameter.numel()
                parameter.copy_(matrix.values().view(parameter.shape))
            else:
                for piece in self.source.pieces(prefix + name, parameter):
                    piece.fill(self.output.add(piece.name, piece.extract()))
        self._pass(idx, "quantised")
        if self.rounding.compensates:
            self._pass(idx, "calibration")

    def _pass(self, idx: int, stream: str, *, keep: bool = True) -> None:
        """Runs a block over all windows of a stream, whose values become its results."""
        hidden, model = self._streams[stream], self.source.model
        width = hidden.shape[1]
        for part in torch.split(hidden, max(_PASS_TOKENS // width, 1)):
            lengths = (width,) * len(part)
            positions = positions_of(lengths)
            scale = query_scale(positions, model.config.rope_scaling)
            context = replace(ForwardContext.for_sequences(lengths), query_scale=scale)
            output = model.layers[idx](part.flatten(0, 1), model.rotations(positions)[idx], context)
            if keep:
                part.copy_(output.view_as(part))

    def _compare(self, windows: Windows) -> Comparison:
        source, name = self.source, self.source.head
        with source.filled("norm.", name):
            weight = source.model.get_parameter(name)
            original = Head(copied(source.model.norm), weight, source.config)
            for each, parameter in list(source.model.named_parameters()):
                if each.startswith("norm.") or each == name != "embed_tokens.weight":
                    source.set(each, self.output.top(each, parameter))
            stored = self.output.stored_head(weight) if source.config.tie_word_embeddings else None
            stored = source.model.get_parameter(name) if stored is None else stored
            quantised = Head(source.model.norm, stored, source.config)
            streams = self._streams["original"], self._streams["quantised"]
            return compare((original, quantised), streams, windows.heldout)
