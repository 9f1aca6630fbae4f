"""A model on disk, of which one part at a time is in memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llm.checkpoint import Checkpoint
from llm.checkpoint.weights import dtype_of
from llm.errors import CheckpointError
from llm.models.families import Family, Piece, family_named
from llm.models.hf import TIED, agreed, check_shapes, empty_model, read_parameters
from llm.models.quantised import scheme_of
from llm.tokenization import BaseTokenizer


class Source:
    """The model to quantise.

    Attributes:
        values: What its `config.json` says.
        config: Its config.
        family: The family whose names its tensors have.
        model: The model, whose parameters have no memory outside `filled`.
        dtype: Type of its weights on disk.
        tokenizer: Its tokenizer.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        if not checkpoint.is_decoder or checkpoint.is_reward_model:
            raise CheckpointError(f"{checkpoint} must hold a decoder of text, got a {checkpoint.architecture}")
        self.values, tensors = checkpoint.opened()
        if scheme_of(self.values) is not None:
            raise CheckpointError(f"{checkpoint} is quantised already\nhint: quantise the model that it was made from")
        self.dtype = dtype_of(self.values, tensors)
        self.family: Family = family_named(self.values)
        self.config, self.tensors = agreed(self.family.config_from(self.values), tensors, self.family)
        self.model = empty_model(self.config).eval()
        check_shapes(self.tensors, self.model.state_dict(), self.config, self.family)
        self.tokenizer: BaseTokenizer = checkpoint.tokenizer()

    @property
    def layers(self) -> list[nn.Module]:
        """The blocks, in order."""
        return list(self.model.layers)

    @property
    def head(self) -> str:
        """The name of the output projection's parameter, which the embeddings may be."""
        return "embed_tokens.weight" if self.config.tie_word_embeddings else TIED

    @contextmanager
    def filled(self, *prefixes: str) -> Iterator[None]:
        """Fills the parameters whose names begin with one of `prefixes`, in fp32, and empties them afterwards."""
        read = read_parameters(
            self.model, self.family, self.tensors, dtype=torch.float32, device=torch.device("cpu"), prefixes=prefixes
        )
        names = []
        try:
            for name, tensor in read:
                names.append(name)
                self.set(name, tensor)
            yield
        finally:
            for name in names:
                self.set(name, torch.empty_like(self.model.get_parameter(name), device="meta"))

    def set(self, name: str, tensor: Tensor) -> None:
        """Replaces a parameter."""
        module, _, leaf = name.rpartition(".")
        setattr(self.model.get_submodule(module), leaf, nn.Parameter(tensor, requires_grad=False))

    def pieces(self, name: str, tensor: Tensor) -> list[Piece]:
        """Returns the tensors on disk that make up a parameter, or anything of its shape."""
        return self.family.pieces(name, tensor, self.config)

    def cuts(self, name: str, shape: torch.Size) -> list["Cut"]:
        """Returns the tensors on disk that make up a matrix or a stack of matrices, with their rows."""
        rows = torch.arange(shape[:-1].numel(), dtype=torch.int32).view(*shape[:-1], 1).expand(shape)
        return [Cut.of(piece.name, piece.extract()) for piece in self.pieces(name, rows)]


class Cut:
    """A tensor on disk, made of whole rows of a parameter.

    Attributes:
        name: Name on disk.
        rows: int64, the parameter's rows in the order on disk; the rows of stacked matrices are counted through.
        is_transposed: Whether rows are columns on disk, or matrices are stacked there.
    """

    def __init__(self, name: str, rows: Tensor, *, is_transposed: bool) -> None:
        self.name, self.rows, self.is_transposed = name, rows.long(), is_transposed

    @classmethod
    def of(cls, name: str, table: Tensor) -> "Cut":
        """Returns the cut for a tensor on disk that holds the number of its row everywhere."""
        if table.dim() != 2:
            return cls(name, table.flatten(), is_transposed=True)
        is_transposed = not torch.equal(table, table[:, :1].expand_as(table))
        return cls(name, table[0] if is_transposed else table[:, 0], is_transposed=is_transposed)
