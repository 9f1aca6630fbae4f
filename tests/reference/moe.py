"""A mixture of experts, one token at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.models.layers.moe import MoE


def moe_by_token(layer: MoE, hidden_states: Tensor) -> Tensor:
    """What the layer makes of `[T, C]`, from its weights and the definition alone."""
    settings = layer.settings
    outputs = []
    for token in hidden_states:
        scores = layer.router.weight @ token
        if settings.softmax_first:
            scores = scores.softmax(0)
        best = sorted(range(len(scores)), key=lambda expert: -float(scores[expert].detach()))[
            : settings.num_experts_per_tok
        ]
        weights = scores[best]
        if not settings.softmax_first:
            weights = weights.softmax(0)
        elif settings.norm_topk_prob:
            weights = weights / weights.sum()
        output = torch.zeros_like(token)
        for expert, weight in zip(best, weights * settings.routed_scaling_factor, strict=True):
            gate, up = (layer.experts.gate_up_proj[expert] @ token).chunk(2)
            output = output + weight * (layer.experts.down_proj[expert] @ (F.silu(gate) * up))
        if layer.shared_expert is not None:
            shared = layer.shared_expert(token[None])[0]
            if layer.shared_expert_gate is not None:
                shared = shared * (layer.shared_expert_gate.weight @ token).sigmoid()
            output = output + shared
        outputs.append(output)
    return torch.stack(outputs)
