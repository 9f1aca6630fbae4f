"""The model of nanoGPT's configurations as PyTorch's tutorials would write it, for `training_loops`."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Attention and feed-forward, each after a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """Maps `[B, T, C]` to `[B, T, C]`."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.ln_1(states)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        states = states + self.proj(mixed.transpose(1, 2).flatten(2))
        return states + self.down(F.gelu(self.up(self.ln_2(states))))


class PlainGPT(nn.Module):
    """Learned positions, tied embeddings, no biases in projections."""

    def __init__(self, vocab: int, block: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(block, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        """Maps ids `[B, T]` to logits `[B, T, V]`."""
        states = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.blocks:
            states = block(states)
        return F.linear(self.ln_f(states), self.wte.weight)

    @classmethod
    def from_checkpoint(cls, directory: Path) -> "PlainGPT":
        """Returns the model with the weights of a checkpoint of this package."""
        from llm.checkpoint import load_model

        ours = load_model(directory, "float32")
        case = json.loads((directory / "case.json").read_text())
        config = ours.config
        model = cls(
            config.vocab_size, case["block"], config.hidden_size, config.num_hidden_layers, config.num_attention_heads
        )
        weights = ours.state_dict()
        renamed = {"wte.weight": weights["embed_tokens.weight"], "wpe.weight": weights["positions.weight"]}
        renamed |= {f"ln_f.{leaf}": weights[f"norm.{leaf}"] for leaf in ("weight", "bias")}
        names = {"attention.qkv_proj": "qkv", "attention.o_proj": "proj", "mlp.up_proj": "up", "mlp.down_proj": "down"}
        names |= {"norm1": "ln_1", "norm2": "ln_2"}
        for name, tensor in weights.items():
            if name.startswith("layers."):
                _, layer, rest = name.split(".", 2)
                stem, leaf = rest.rsplit(".", 1)
                renamed[f"blocks.{layer}.{names[stem]}.{leaf}"] = tensor
        model.load_state_dict(renamed)
        return model
