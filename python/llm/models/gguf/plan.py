"""Plans name, shape and type of every tensor of a GGUF file before the first byte is written."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from llm.models.gguf.config import num_experts
from llm.models.gguf.names import (
    JoinPlace,
    Layout,
    expected_names,
    family_of,
    is_stacked,
    optional_names,
    to_hugging_face,
)
from llm.models.gguf.types import TYPES, EncodedRows, ValueType
from llm.tokenization.readers.gguf_file import TensorEntry

Tensors: TypeAlias = Mapping[str, Tensor | EncodedRows]

# Type of values and `general.file_type` by name; the latter as llama.cpp numbers them.
QUANTIZATIONS: Mapping[str, tuple[str, int]] = {
    "f32": ("F32", 0),
    "f16": ("F16", 1),
    "bf16": ("BF16", 32),
    "q8_0": ("Q8_0", 7),
    "q6_k": ("Q6_K", 18),
    "q4_k": ("Q4_K", 14),
    "q4_0": ("Q4_0", 2),
}
# A better type for the matrix that all logits come from, and the types of rows that are no multiple of 256.
_OUTPUT = {"Q4_0": "Q8_0", "Q4_K": "Q6_K"}
_FALLBACKS: Mapping[str, tuple[str, ...]] = {"Q4_K": ("Q5_0",), "Q6_K": ("Q8_0",)}
# Tensors that llama.cpp uses in float32.
_ALWAYS_F32 = ("ffn_gate_inp", "ffn_gate_inp_shexp", "position_embd")
# Buffers of old checkpoints that current classes no longer have.
_BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
# Families that tie the embeddings unless `config.json` says otherwise.
_TIED = ("gpt2", "gemma2", "gemma", "gemma3_text", "cohere2", "ernie4_5", "smollm3")


class Planned(NamedTuple):
    """A tensor to write.

    Attributes:
        name: Name in the file.
        sources: Hugging Face's names, several for stacked experts.
        shape: Shape in the file.
        kind: Type of the values.
        layout: Layout compared with Hugging Face's.
        num_heads: Number of heads whose rows are paired.
        part: Returns the part of the source that the tensor is; None: the whole source.
    """

    name: str
    sources: Sequence[str]
    shape: tuple[int, ...]
    kind: ValueType
    layout: Layout = Layout.SAME
    num_heads: int = 0
    part: Callable[[Tensor], Tensor] | None = None

    @property
    def num_bytes(self) -> int:
        """Returns the bytes of the tensor, without padding."""
        return self.kind.num_bytes(TensorEntry(self.name, self.shape, 0, 0).num_values)


class Plan:
    """Lists the tensors of a model as its file will contain them.

    Attributes:
        problems: Errors for tensors that are missing, left over or misshaped.
        planned: Tensors in the order to write them; empty if some are missing.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Tensors, quantization: str) -> None:
        """Takes the arguments of `write_gguf_model`, with a config from `complete`."""
        self._config = config
        self._tensors = tensors
        self._quantization = quantization
        self._family = family_of(config)
        self._is_tied = bool(config.get("tie_word_embeddings", config["model_type"] in _TIED))
        self._output = "token_embd.weight" if self._is_tied else "output.weight"
        used = self._used()
        self.problems = self._differences(used)
        self.planned = [] if self.problems else [self._planned(name, sources) for name, sources in used.items()]

    def _used(self) -> dict[str, list[str]]:
        """Maps names in the file to Hugging Face's, for all required tensors and the optional ones that exist."""
        layers = self._config.get("num_hidden_layers", self._config.get("n_layer", 0))
        expected = expected_names(self._family, layers)
        expected += [] if self._is_tied else [self._output]
        used = {name: self._sources(name) for name in expected}
        optional = {name: self._sources(name) for name in optional_names(self._family, layers)}
        return used | {name: sources for name, sources in optional.items() if sources[0] in self._tensors}

    def _sources(self, name: str) -> list[str]:
        return to_hugging_face(name, self._family, num_experts(self._config) if self._family.experts else 0) or []

    def _differences(self, used: Mapping[str, Sequence[str]]) -> list[str]:
        wanted = dict.fromkeys(source for sources in used.values() for source in sources)
        spare = {"lm_head.weight"} if self._is_tied else set()
        left = [name for name in self._tensors if name not in wanted and name not in spare]
        missing = [f"missing {name}" for name in wanted if name not in self._tensors]
        return missing + [f"unexpected {name}" for name in left if not name.endswith(_BUFFERS)]

    def _planned(self, name: str, sources: Sequence[str]) -> Planned:
        place = self._family.join_of(name)
        if place is not None:
            return self._planned_part(name, place)
        layout = self._family.layout(name)
        shapes = {tuple(self._tensors[source].shape) for source in sources}
        if len(shapes) > 1:
            self.problems.append(f"experts of {name} must have one shape, got {sorted(shapes)}")
        shape = next(iter(shapes))
        is_matrix = not name.endswith(".bias") and "_norm." not in name
        if len(shape) != 1 + is_matrix or 0 in shape or (layout is Layout.FLAT and shape[0] != 1):
            self.problems.append(f"{sources[0]} must be a {'matrix' if is_matrix else 'vector'}, got {list(shape)}")
            return Planned(name, sources, shape, TYPES["F32"])
        heads = int(self._config.get("num_key_value_heads" if "attn_k" in name else "num_attention_heads", 0))
        self._check_shape(name, sources[0], shape, heads if layout is Layout.PAIRED_ROWS else 0)
        if layout is Layout.TRANSPOSED:
            shape = shape[::-1]
        if layout is Layout.FLAT:
            shape = shape[1:]
        if is_stacked(name, self._family):
            shape = (len(sources), *shape)
        kind = self._kind(name, shape)
        first = self._tensors[sources[0]]
        return Planned(name, sources, shape, first.kind if isinstance(first, EncodedRows) else kind, layout, heads)

    def _planned_part(self, name: str, place: JoinPlace) -> Planned:
        config, whole = self._config, self._tensors[place.whole]
        shape = place.join.part_shape(place.idx, config)
        planned = Planned(name, (place.whole,), shape, self._kind(name, shape))
        if tuple(whole.shape) != place.join.shape(config):
            wanted = list(place.join.shape(config))
            self.problems.append(f"{place.whole} must have the shape {wanted}, got {list(whole.shape)}")
        elif isinstance(whole, EncodedRows):
            self.problems.append(
                f"{place.whole} must hold plain numbers, as {name} is a part of it, got {whole.kind.name}"
            )
        return planned._replace(part=lambda values: place.join.part(values, place.idx, config))

    def _check_shape(self, name: str, source: str, shape: tuple[int, ...], num_heads: int) -> None:
        """Checks embeddings and reordered rows against the config; llama.cpp checks all other shapes on loading."""
        config = self._config
        embedding = (config["vocab_size"], config.get("hidden_size", config.get("n_embd")))
        if name in ("token_embd.weight", "output.weight") and shape != embedding:
            self.problems.append(f"{source} must have the shape {list(embedding)}, got {list(shape)}")
        if num_heads and shape[0] != num_heads * config["head_dim"]:
            self.problems.append(
                f"{source} must have {num_heads} heads of {config['head_dim']} rows, got the shape {list(shape)}"
            )

    def _kind(self, name: str, shape: tuple[int, ...]) -> ValueType:
        base = name.removesuffix(".weight").rpartition(".")[2]
        if len(shape) == 1 or base in _ALWAYS_F32 or name.endswith(".bias"):
            return TYPES["F32"]
        return matrix_kind(self._quantization, shape[-1], is_output=name == self._output)


def matrix_kind(quantization: str, num_columns: int, *, is_output: bool = False) -> ValueType:
    """Returns the type of a matrix.

    Args:
        quantization: Name in `QUANTIZATIONS`.
        num_columns: Length of the rows. Types whose blocks don't divide it are replaced, as llama.cpp does.
        is_output: Whether the matrix is the output projection or the embedding that serves as one.
    """
    name = QUANTIZATIONS[quantization][0]
    name = _OUTPUT.get(name, name) if is_output else name
    names = (name, *_FALLBACKS.get(name, ()), "F16")
    return next(TYPES[each] for each in names if num_columns % TYPES[each].block_values == 0)
