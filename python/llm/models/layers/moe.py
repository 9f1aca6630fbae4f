"""Mixture-of-experts feed-forward."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.errors import ConfigError
from llm.models.layers.mlp import ACTIVATIONS, SwiGLU
from llm.settings.model import ExpertsConfig, ModelConfig

# Gain of the sigmoid in a SwiGLU with bounds.
CLAMPED_GAIN = 1.702


@dataclass(frozen=True)
class Routing:
    """The experts chosen for the tokens of one pass.

    Attributes:
        logits: fp32 `[T, E]`, before any softmax.
        chosen: int64 `[T, k]`.
        weights: fp32 `[T, k]`, factors on the chosen experts' outputs.
    """

    logits: Tensor
    chosen: Tensor
    weights: Tensor

    def load(self) -> Tensor:
        """Returns each expert's share of the assignments, fp32 `[E]`."""
        num_experts = self.logits.shape[1]
        counts = torch.bincount(self.chosen.flatten(), minlength=num_experts)
        return counts / max(self.chosen.numel(), 1)

    def load_balancing_loss(self, load: Tensor | None = None) -> Tensor:
        """Returns `E` times the sum over experts of token share times mean probability; `k` if perfectly balanced.

        Args:
            load: Each expert's share of the assignments of a larger batch that these tokens belong to, fp32 `[E]`; the
                mean of its parts' losses is then the loss of that batch. None takes these tokens' own.

        Source: Fedus, Zoph and Shazeer 2021, "Switch Transformers", equation 4, over k choices as in Mixtral.
        """
        probabilities = self.logits.softmax(-1).mean(0)
        return (
            self.logits.shape[1]
            * self.chosen.shape[1]
            * ((self.load() if load is None else load) * probabilities).sum()
        )

    def z_loss(self) -> Tensor:
        """Returns the mean squared log of the softmax's denominator, which keeps logits small.

        Source: Zoph et al. 2022, "ST-MoE", equation 5.
        """
        return self.logits.logsumexp(-1).square().mean()


class Experts(nn.Module):
    """SwiGLU experts as two stacked matrices, each applied as a grouped product over tokens sorted by expert.

    Attributes:
        gate_up_proj: `[E, 2I, C]`.
        down_proj: `[E, C, I]`.
    """

    def __init__(self, config: ModelConfig, experts: ExpertsConfig) -> None:
        super().__init__()
        width = experts.moe_intermediate_size
        self.limit = experts.swiglu_limit
        self.gate_up_proj = nn.Parameter(torch.empty(experts.num_experts, 2 * width, config.hidden_size))
        self.joined_rows = {"gate_up_proj": (width, width)}
        self.down_proj = nn.Parameter(torch.empty(experts.num_experts, config.hidden_size, width))
        self.activation = ACTIVATIONS[config.hidden_act or "silu"]
        self.has_biases = experts.bias
        if experts.bias:
            self.gate_up_bias = nn.Parameter(torch.zeros(experts.num_experts, 2 * width))
            self.down_bias = nn.Parameter(torch.zeros(experts.num_experts, config.hidden_size))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Applies each expert to its own rows.

        Args:
            rows: `[N, C]`, sorted by expert.
            counts: int64 `[E]`, number of rows per expert; they sum to `N`.

        Returns:
            `[N, C]`.
        """
        output = self.product("down_proj", self.inner(rows, counts), counts)
        return output + _of_groups(self.down_bias, counts, len(rows)) if self.has_biases else output

    def inner(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Returns the inputs of the down projection, `[N, I]`, for the arguments of `forward`."""
        gate_up = self.product("gate_up_proj", rows, counts)
        if self.has_biases:
            gate_up = gate_up + _of_groups(self.gate_up_bias, counts, len(rows))
        return self._activate(*gate_up.chunk(2, dim=-1))

    def product(self, name: str, rows: Tensor, counts: Tensor) -> Tensor:
        """Multiplies each expert's rows with its matrix of the stack `name`, without biases."""
        weights: Tensor = getattr(self, name)
        return grouped_linear(rows, weights, counts)

    def _activate(self, gate: Tensor, up: Tensor) -> Tensor:
        """Returns the inputs of the down projection.

        Source: OpenAI 2025, "gpt-oss model card", section 2.1, and the model's published code for the bounds.
        """
        if self.limit is None:
            return self.activation(gate) * up
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(CLAMPED_GAIN * gate) * (up + 1)


def _of_groups(biases: Tensor, counts: Tensor, num_rows: int) -> Tensor:
    """Returns each row's bias, `[N, O]`, of `[E, O]`."""
    return biases.repeat_interleave(counts, dim=0, output_size=num_rows)


def grouped_linear(rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Computes `rows[group e] @ weights[e].T` for all groups, under autocast in its type.

    Args:
        rows: `[N, C]`, sorted by group.
        weights: `[E, O, C]`.
        counts: int64 `[E]`, number of rows per group.

    Returns:
        `[N, O]`.
    """
    device = rows.device.type
    if torch.is_autocast_enabled(device):
        # The product of groups is none of those that autocast casts the arguments of.
        dtype = torch.get_autocast_dtype(device)
        rows, weights = rows.to(dtype), weights.to(dtype)
    if device == "cuda" and is_grouped(rows, weights):
        offsets = counts.cumsum(0).to(torch.int32)
        product: Tensor = F.grouped_mm(rows, weights.transpose(1, 2), offs=offsets)
        return product
    if not len(rows):
        return rows.new_zeros(0, weights.shape[1])
    groups = torch.split(rows, counts.tolist())
    return torch.cat([group @ weight.T for group, weight in zip(groups, weights.unbind(), strict=True) if len(group)])


def is_grouped(rows: Tensor, weights: Tensor) -> bool:
    """Returns whether PyTorch's grouped product takes these, whose lines must be multiples of 16 bytes."""
    is_known = hasattr(F, "grouped_mm") and rows.dtype == weights.dtype == torch.bfloat16
    return is_known and not any(size * rows.itemsize % 16 for size in weights.shape[1:])


class MoE(nn.Module):
    """Routes each token through its highest-scored experts and adds a shared expert if there is one.

    `routing` holds the choice of the last forward pass; losses and metrics read it before the next pass.

    Source: Shazeer et al. 2017, "Outrageously Large Neural Networks", section 2; Jiang et al. 2024, "Mixtral of
    Experts", section 2.1 (softmax of the k best); Dai et al. 2024, "DeepSeekMoE", section 3.2 (shared experts).
    """

    routing: Routing | None = None

    def __init__(self, config: ModelConfig, layer_idx: int = 0) -> None:
        super().__init__()
        experts = config.experts
        if experts is None:
            raise ConfigError("`model.experts` must be given for `model.mlp` = 'moe', got null")
        self.settings = experts
        self.router = nn.Linear(config.hidden_size, experts.num_experts, bias=experts.bias)
        if experts.score_correction:
            self.score_correction = nn.Parameter(torch.zeros(experts.num_experts), requires_grad=False)
        self.experts = Experts(config, experts)
        shared = experts.shared_expert_intermediate_size
        self.shared_expert = SwiGLU(config, layer_idx, intermediate_size=shared) if shared else None
        gated = self.shared_expert is not None and experts.shared_expert_gate
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False) if gated else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Maps `[T, C]` to `[T, C]`."""
        self.routing = self.route(hidden_states)
        output = self._mix(hidden_states, self.routing)
        if self.shared_expert is None:
            return output
        shared = self.shared_expert(hidden_states)
        if self.shared_expert_gate is not None:
            shared = shared * self.shared_expert_gate(hidden_states).sigmoid()
        total: Tensor = output + shared
        return total

    def route(self, hidden_states: Tensor) -> Routing:
        """Chooses `k` experts for each token of `[T, C]`."""
        settings = self.settings
        logits = self.router(hidden_states).float()
        if settings.sigmoid_scores:
            scores = logits.sigmoid()
        else:
            scores = logits.softmax(-1) if settings.softmax_first else logits
        compared = scores + self.score_correction.float() if settings.score_correction else scores
        if settings.n_group > 1:
            compared = self._in_best_groups(compared)
        chosen = compared.topk(settings.num_experts_per_tok, dim=-1).indices
        weights = (scores if settings.sigmoid_scores or settings.score_correction else compared).gather(1, chosen)
        if not settings.softmax_first and not settings.sigmoid_scores:
            weights = weights.softmax(-1)
        elif settings.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return Routing(logits, chosen, weights * settings.routed_scaling_factor)

    def _in_best_groups(self, scores: Tensor) -> Tensor:
        """Leaves only the scores of the groups with the best experts.

        Source: DeepSeek-AI 2024, "DeepSeek-V2", section 2.2.2; "DeepSeek-V3", section 2.1.2, whose groups compete by
        their two best experts.
        """
        settings = self.settings
        grouped = scores.view(len(scores), settings.n_group, -1)  # (T, G, E / G)
        if settings.sigmoid_scores:
            of_groups = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        else:
            of_groups = grouped.amax(-1)
        best = of_groups.topk(settings.topk_group, dim=-1).indices
        kept = torch.zeros_like(grouped[..., 0]).scatter_(1, best, 1.0).bool().unsqueeze(-1)
        is_share = settings.softmax_first and not settings.sigmoid_scores
        return grouped.masked_fill(~kept, 0.0 if is_share else -torch.inf).view_as(scores)

    def _mix(self, hidden_states: Tensor, routing: Routing) -> Tensor:
        k = routing.chosen.shape[1]
        order = routing.chosen.flatten().argsort(stable=True)  # (T * k,), by expert
        counts = torch.bincount(routing.chosen.flatten(), minlength=self.settings.num_experts)
        tokens = order // k
        mixed = self.experts(hidden_states[tokens], counts)
        weighted = mixed * routing.weights.flatten()[order].unsqueeze(-1).to(mixed.dtype)
        # Mixed precision makes products narrower than the rows they are added to.
        return torch.zeros_like(hidden_states).index_add(0, tokens, weighted.to(hidden_states.dtype))
