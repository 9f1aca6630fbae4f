"""DeepSeek-V3 and R1: DeepSeek-V2 whose experts are scored by sigmoids and chosen with a correction."""

from collections.abc import Mapping
from typing import Any

from llm.models.families.base import LLAMA_TOP, BlockCut, Family, Piece, Values, require
from llm.models.families.cuts import usual
from llm.models.families.deepseek_v2 import BLOCK as DEEPSEEK_V2_BLOCK
from llm.models.families.deepseek_v2 import read as read_v2
from llm.models.families.deepseek_v2 import write as write_v2
from llm.settings.model import ModelConfig

_DEFAULTS = {
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "aux_loss_alpha": 0.001,
}
_CHOICE = ("norm_topk_prob", "scoring_func", "topk_method")


def read(values: Mapping[str, Any]) -> Values:
    """Reads the fields of `ModelConfig`; modules that predict further tokens are left out."""
    values = usual(values, _DEFAULTS)
    require(
        values,
        {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",), "rope_interleave": (True,)},
    )
    rest = {key: value for key, value in values.items() if key not in _CHOICE}
    fields = read_v2(rest | {"topk_method": "group_limited_greedy"})
    fields["experts"] |= {
        "norm_topk_prob": bool(values["norm_topk_prob"]),
        "sigmoid_scores": True,
        "score_correction": True,
    }
    return fields


def write(config: ModelConfig) -> Values:
    """Returns the values of `config.json`."""
    values = write_v2(config)
    if config.experts is None or not values:
        return values
    choice = {"norm_topk_prob": config.experts.norm_topk_prob, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}
    return values | choice | {"rope_interleave": True, "num_nextn_predict_layers": 0}


BLOCK = DEEPSEEK_V2_BLOCK | {
    "mlp.score_correction": BlockCut(lambda ours, config: [Piece("mlp.gate.e_score_correction_bias", ours)]),
}
FAMILY = Family("deepseek_v3", "DeepseekV3ForCausalLM", read, write, LLAMA_TOP, BLOCK)
