"""A decoder with a head that gives each sequence one number, which says how good an answer is."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llm.models.context import ForwardContext
from llm.models.decoder import DecoderModel
from llm.settings.model import ModelConfig

# How classes of transformers are called that have one such head.
_CLASSIFIER = "ForSequenceClassification"


class RewardModel(DecoderModel):
    """A decoder whose output layer is a head of one number, read at the last token of a sequence.

    On disk it is a `…ForSequenceClassification` of transformers with one label, such as
    `LlamaForSequenceClassification`.

    Source: Stiennon et al. 2020, "Learning to summarize from human feedback", section 3.4.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        del self.lm_head
        self.score = nn.Linear(config.hidden_size, 1, bias=False)
        if not self.score.weight.is_meta:
            nn.init.normal_(self.score.weight, std=config.initializer_range)

    def forward(self, token_ids: Tensor, positions: Tensor, context: ForwardContext) -> Tensor:
        """Computes the reward of each sequence; see `DecoderModel`.

        Returns:
            fp32 `[R]`.
        """
        hidden_states = self.hidden_states(token_ids, positions, context)
        last = torch.tensor(context.query_lens, device=hidden_states.device).cumsum(0) - 1
        return self.rewards(self.norm(hidden_states[last]))

    def rewards(self, states: Tensor) -> Tensor:
        """Returns the rewards fp32 `[S]` of last hidden states `[S, C]` after the last norm."""
        # Rounded to fewer bits, rewards of similar answers would be equal.
        with torch.autocast(states.device.type, enabled=False):
            return nn.functional.linear(states.float(), self.score.weight.float()).squeeze(-1)


def classifier_of(architecture: str) -> str:
    """Returns the class of transformers with a head of one number for a family's class, such as `LlamaForCausalLM`."""
    return architecture.replace("ForCausalLM", _CLASSIFIER).replace("LMHeadModel", _CLASSIFIER)


def first_architecture(values: Mapping[str, Any]) -> str | None:
    """Returns the class that a `config.json` names first; None if it names none, or not in a list."""
    names = values.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def is_classifier(architecture: str | None) -> bool:
    """Returns whether a class of transformers has such a head."""
    return architecture is not None and architecture.endswith(_CLASSIFIER)


def kind_of_model(values: Mapping[str, Any]) -> type[DecoderModel]:
    """Returns `RewardModel` if a `config.json` names a class with one number as its output, else `DecoderModel`."""
    return RewardModel if is_classifier(first_architecture(values)) else DecoderModel
