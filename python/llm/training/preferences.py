"""The tasks that learn from preferences."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from llm.data import IGNORED_LABEL, TokenBatch
from llm.data.rows.answers import MISMATCHED, WANTED
from llm.errors import TrainingError
from llm.models import ForwardContext, positions_of
from llm.models.adapters import adapters_off, is_adapted
from llm.models.reward import RewardModel
from llm.settings.model import ModelConfig
from llm.settings.preference import PreferenceConfig
from llm.tokenization import BaseTokenizer
from llm.training.distributed import over_processes
from llm.training.losses import Answers, PairLosses, kto_losses, pair_losses, reward_losses, token_losses
from llm.training.tasks import LanguageModelingTask


class AnswerTask(LanguageModelingTask):
    """What tasks on answers share: how they count, and what they report.

    Args:
        config: The model's settings.
        settings: The loss and its numbers.
        tokenizer: The tokenizer.
        **options: As for `LanguageModelingTask`.
    """

    metric_names: tuple[str, ...] = ("rewards/chosen", "rewards/rejected", "rewards/margin", "accuracy")

    def __init__(
        self, config: ModelConfig, settings: PreferenceConfig, tokenizer: BaseTokenizer | None = None, **options: Any
    ) -> None:
        super().__init__(config, tokenizer, **options)
        self.settings = settings
        self._losses = torch.zeros(0)
        self._metrics = [0.0] * (2 * len(self.metric_names))

    def count_targets(self, batch: TokenBatch) -> int:
        """Returns the number of pairs, or of answers where they are single."""
        marks = batch.columns["mark"]
        return int((marks != MISMATCHED).sum()) // (1 if (marks == MISMATCHED).any() else 2)

    def count_bytes(self, batch: TokenBatch) -> int:  # noqa: ARG002
        """Returns 0: the loss is not that of text."""
        return 0

    def sums_by_source(self, batch: TokenBatch, num_sources: int) -> list[float]:
        """Returns the loss of the last pass summed for each source, then the number of each source's targets."""
        sources = torch.tensor(batch.sources)[::2]
        losses = self._losses.cpu().double()
        sums = [torch.bincount(sources, one, num_sources) for one in (losses, torch.ones_like(losses))]
        return [float(value) for one in sums for value in one]

    def metric_sums(self, batch: TokenBatch) -> list[float]:  # noqa: ARG002
        """Returns sums of rewards and of pairs in the right order, then the numbers of pairs."""
        return self._metrics

    def _report(self, found: PairLosses) -> Tensor:
        """Keeps what `metric_sums` returns of pairs, and returns the sum of their losses."""
        self._losses = found.losses.detach()
        margins = found.chosen - found.rejected
        values = (found.chosen, found.rejected, margins, (margins > 0).float())
        self._metrics = [*(float(value.sum()) for value in values), *(float(len(margins)) for _ in values)]
        return found.losses.sum()


class PreferenceTask(AnswerTask):
    """Trains a model to prefer answers to others, by `preference.loss`.

    A reference is the model that the run starts from: its log-probabilities are in the batch, or the model computes
    them with its adapters off.
    """

    def __init__(
        self, config: ModelConfig, settings: PreferenceConfig, tokenizer: BaseTokenizer | None = None, **options: Any
    ) -> None:
        if settings.loss == "kto":
            self.metric_names = ("rewards/chosen", "rewards/rejected", "divergence")
        super().__init__(config, settings, tokenizer, **options)
        self._divergence = torch.zeros(())

    def prepare(self, model: nn.Module, parts: Iterable[TokenBatch]) -> None:
        """Estimates how far the model has gone from the reference, which the KTO loss compares with.

        The estimate is a mean over the whole batch, of prompts with the answers to others.

        Source: Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", section 4.1.
        """
        if self.settings.loss != "kto":
            return
        sums = torch.zeros(2, dtype=torch.float64)
        with at_rest(model):
            for part in parts:
                gains = self.answers(model, _only(part, part.columns["mark"] == MISMATCHED)).gains
                sums += torch.tensor([float(gains.sum()), len(gains)])
        device = next(model.parameters()).device
        total, count = over_processes(sums.to(device)).unbind()
        self._divergence = (total / count).clamp_min(0).float()

    def loss_sum(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        """Returns the summed loss of pairs, or of single answers."""
        if self.settings.loss == "kto":
            return self._kto_sum(model, _only(batch, batch.columns["mark"] != MISMATCHED))
        answers = self.answers(model, batch)
        return self._report(pair_losses(answers.every_other(0), answers.every_other(1), self.settings))

    def _kto_sum(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        answers, is_wanted = self.answers(model, batch), batch.columns["mark"] == WANTED
        losses = kto_losses(answers, is_wanted, self._divergence, self.settings)
        self._losses = losses.detach()
        rewards = self.settings.strength * answers.gains.detach()
        sides = (is_wanted, ~is_wanted)
        sums = [float(rewards[side].sum()) for side in sides] + [float(self._divergence) * len(losses)]
        self._metrics = [*sums, *(float(side.sum()) for side in sides), float(len(losses))]
        return losses.sum()

    def answers(self, model: nn.Module, batch: TokenBatch) -> Answers:
        """Returns the log-probabilities of the answers in a batch, with gradient, and the reference's if needed.

        Raises:
            TrainingError: The loss needs a reference, and there is none.
        """
        reference = batch.columns.get("reference")
        if reference is None and self.settings.needs_reference:
            reference = self._reference(cast(nn.Module, getattr(model, "module", model)), batch)
        losses = token_losses(model, batch, attention_backend=self.attention_backend, is_summed=False)
        self.token_losses = losses.detach()
        parts = torch.split(batch.labels != IGNORED_LABEL, list(batch.lengths))
        counts = torch.stack([part.sum() for part in parts])
        return Answers(self.summed(losses, batch), counts, reference)

    @staticmethod
    def summed(losses: Tensor, batch: TokenBatch) -> Tensor:
        """Returns the log-probability of each sequence's answer, fp32 `[S]`, from the tokens' losses."""
        return -torch.stack([part.sum() for part in torch.split(losses, list(batch.lengths))])

    def _reference(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        if not is_adapted(model):
            raise TrainingError(
                f"`preference.loss={self.settings.loss}` needs the log-probabilities of a reference, and the batch has "
                "none\nhint: `llm.training.reference.attach_reference` computes them"
            )
        with torch.no_grad(), at_rest(model), adapters_off(model):
            return self.summed(token_losses(model, batch, attention_backend=self.attention_backend), batch)


class RewardTask(AnswerTask):
    """Trains a model that gives answers rewards, so that chosen ones get more than rejected ones."""

    def new_model(self) -> RewardModel:
        """Returns a `RewardModel`; its head is random unless the run starts from a reward model."""
        model = RewardModel(self.config)
        if self.initial is None or model.score.weight.is_meta:
            return model
        if self.initial.is_reward_model:
            self.initial.load_weights(model)
            return model
        state = self.initial.model("float32").state_dict()
        model.load_state_dict(
            {name: state[name] for name in model.state_dict() if not name.startswith("score.")}, strict=False
        )
        return model

    def loss_sum(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        """Returns the summed loss of pairs."""
        context = ForwardContext.for_sequences(batch.lengths, attention_backend=self.attention_backend)
        rewards = model(batch.token_ids, positions_of(batch.lengths, batch.token_ids.device), context)
        self.token_losses = torch.zeros(len(batch.token_ids))
        chosen, rejected = rewards[::2], rewards[1::2]
        losses = reward_losses(chosen, rejected, batch.columns["margin"][::2], self.settings)
        return self._report(PairLosses(losses, chosen.detach(), rejected.detach()))


@contextlib.contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Turns dropout off, and back as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _only(batch: TokenBatch, keep: Tensor) -> TokenBatch:
    """Returns some sequences of a batch."""
    chosen = keep.tolist()
    of_token = keep.repeat_interleave(torch.tensor(batch.lengths, device=keep.device))
    return replace(
        batch,
        token_ids=batch.token_ids[of_token],
        labels=batch.labels[of_token],
        lengths=tuple(length for length, kept in zip(batch.lengths, chosen, strict=True) if kept),
        sources=tuple(source for source, kept in zip(batch.sources, chosen, strict=False) if kept),
        columns={name: values[keep] for name, values in batch.columns.items()},
    )
