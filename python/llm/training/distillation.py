"""The task of learning from a teacher's probabilities."""

import torch
from torch import Tensor, nn

from llm.data import IGNORED_LABEL, TokenBatch
from llm.models import ForwardContext, Targets, positions_of
from llm.settings.distillation import DistillationConfig
from llm.settings.model import ModelConfig
from llm.tokenization import BaseTokenizer
from llm.training.losses import divergences
from llm.training.tasks import LanguageModelingTask
from llm.training.teacher import Teacher


class DistillationTask(LanguageModelingTask):
    """Trains a model to have a teacher's next-token probabilities.

    The loss of a token is `weight` · temperature² · divergence + (1 - `weight`) · cross-entropy. Validation measures
    the cross-entropy alone, so its losses compare with those of other runs.

    Args:
        config: The model's settings.
        settings: The divergence and its numbers.
        teacher: The teacher.
        tokenizer: The tokenizer.
        **options: As for `LanguageModelingTask`.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.
    """

    loss_is_entropy = False

    def __init__(
        self,
        config: ModelConfig,
        settings: DistillationConfig,
        teacher: Teacher,
        tokenizer: BaseTokenizer | None = None,
        **options: object,
    ) -> None:
        super().__init__(config, tokenizer, **options)  # type: ignore[arg-type]
        self.settings = settings
        self.teacher = teacher
        self._has_entropy = settings.weight < 1 or settings.temperature == 1
        self.metric_names = ("divergence", "cross_entropy") if self._has_entropy else ("divergence",)
        self._metrics = [0.0] * (2 * len(self.metric_names))

    def loss_sum(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        """Returns the summed loss of all learnt tokens, without gradient the summed cross-entropy."""
        if not model.training:
            self._metrics = [0.0] * len(self._metrics)
            return super().loss_sum(model, batch)
        settings = self.settings
        ids, theirs = self.teacher.top(batch)
        is_learnt = batch.labels != IGNORED_LABEL
        entropies, own = self._logprobs(model, batch, ids, is_learnt)
        is_whole = ids.shape[1] == self.config.vocab_size
        found = divergences(own, theirs[is_learnt], settings.divergence, is_whole=is_whole)
        losses = settings.weight * settings.temperature**2 * found
        if settings.weight < 1:
            losses = losses + (1 - settings.weight) * entropies
        self.token_losses = losses.detach().new_zeros(len(batch.labels)).masked_scatter(is_learnt, losses.detach())
        values = (found, entropies) if self._has_entropy else (found,)
        self._metrics = [*(float(one.detach().sum()) for one in values), *(float(len(one)) for one in values)]
        return losses.sum()

    def metric_sums(self, batch: TokenBatch) -> list[float]:  # noqa: ARG002
        """Returns the sum of each metric over the learnt tokens, then their number for each."""
        return self._metrics

    def _logprobs(self, model: nn.Module, batch: TokenBatch, ids: Tensor, is_learnt: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the learnt labels' cross-entropies `[N]` and the log-probabilities of `ids` `[N, K]`."""
        temperature = self.settings.temperature
        targets = Targets(torch.cat([batch.labels[:, None], ids], dim=1), temperature)
        if temperature != 1 and self._has_entropy:
            targets = Targets(batch.labels, others=targets)
        context = ForwardContext.for_sequences(batch.lengths, attention_backend=self.attention_backend, targets=targets)
        found: Tensor = model(batch.token_ids, positions_of(batch.lengths, batch.token_ids.device), context)[is_learnt]
        return -found[:, 0], found[:, found.shape[1] - ids.shape[1] :]
