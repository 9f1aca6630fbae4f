"""The task that learns from rewards of its own answers."""

import contextlib
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llm.checkpoint import resolve
from llm.data import IGNORED_LABEL, PromptBatch, RolloutBatch
from llm.data.batch import PromptRow
from llm.errors import LLMWarning, TrainingError
from llm.models import DecoderModel, ForwardContext, Targets, positions_of
from llm.models.adapters import adapters_off, is_adapted
from llm.settings.grpo import GrpoConfig
from llm.settings.model import ModelConfig
from llm.tokenization import BaseTokenizer
from llm.training.distributed import is_sharded, largest_over_processes
from llm.training.losses.policy import advantages, count_targets, policy_loss
from llm.training.parallel import reshard, shard
from llm.training.rewards import Rewards
from llm.training.rollout_batches import Drawn, concatenated
from llm.training.rollouts import Answer, RolloutEngine, impossible_ids
from llm.training.tasks import LanguageModelingTask

# Mean difference between the log-probabilities of engine and training that ends a run.
_MOST_APART = 1e-3
_MOST_APART_ROUNDED = 0.05
_FROM_LOSS = ("kl", "clip_share", "logprob_difference")
_FROM_DRAWS = ("reward", "reward_spread", "answer_tokens", "truncated_share", "zero_spread_share", "redrawn_share")


@dataclass(frozen=True)
class _Group:
    """The answers to one prompt, with what each reward gives each, `[rewards, G]`."""

    row: PromptRow
    answers: list[Answer]
    rewards: NDArray[np.float64]
    num_redraws: int = 0

    def total(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the weighted sum of the rewards of each answer."""
        return weights @ self.rewards


@dataclass(frozen=True)
class Example:
    """A prompt, an answer to it, and its reward, for people to read."""

    prompt: str
    text: str
    reward: float


class GrpoTask(LanguageModelingTask):
    """Draws answers to prompts, has them rewarded, and makes the better ones of each group likelier.

    Args:
        config: The model's settings.
        settings: How answers are drawn, rewarded and learnt from.
        tokenizer: The tokenizer, which the engine needs; None where no step is taken.
        seed: Seed of the draws.
        start: Checkpoint that the run starts from, with which `kl_coefficient` compares.
        **options: As for `LanguageModelingTask`.

    Attributes:
        examples: Answers of the last draw in this process.
    """

    loss_is_entropy = False
    may_lack_targets = True

    def __init__(
        self,
        config: ModelConfig,
        settings: GrpoConfig,
        tokenizer: BaseTokenizer | None = None,
        *,
        seed: int = 0,
        start: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(config, tokenizer, **options)
        self.settings, self.tokenizer, self.seed, self.start = settings, tokenizer, seed, start
        self.steps_per_batch = settings.passes
        self.sequences_per_sample = settings.group_size
        self.validation_share = settings.passes / settings.group_size  # one answer a prompt, and nothing is learnt
        self.rewards = Rewards(settings)
        by_name = tuple(f"reward/{name}" for name in self.rewards.names) if len(self.rewards.names) > 1 else ()
        self.metric_names = (*_FROM_LOSS, *_FROM_DRAWS, *by_name)
        self.examples: list[Example] = []
        self._engine: RolloutEngine | None = None
        self._reference: DecoderModel | None = None
        self._batches: list[RolloutBatch] = []
        self._impossible: Tensor | None = None
        self._metrics = [0.0] * (2 * len(self.metric_names))
        self._is_first_pass = True
        self._largest_difference = 0.0
        self._rollout_s, self._drawn_at = 0.0, 0.0
        if tokenizer is not None:
            self._impossible = impossible_ids(tokenizer, config.vocab_size)

    def gathered_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """Returns fp32 on a CPU, where values are computed in it as the engine does."""
        return torch.float32 if device.type == "cpu" else dtype

    def count_targets(self, batch: Any) -> int:
        """Returns the number of prompts, or what the sum of the loss over drawn answers is divided by."""
        return len(batch.rows) if isinstance(batch, PromptBatch) else count_targets(batch, self.settings)

    def count_positions(self, batch: Any) -> int:
        """Returns the number of tokens that training reads."""
        return len(batch.token_ids)

    def count_bytes(self, batch: Any) -> int:  # noqa: ARG002
        """Returns 0: the loss is not that of text."""
        return 0

    def batches(self, model: nn.Module, parts: list[Any], step: int) -> list[Any]:
        """Draws answers to the prompts, unless this step is one more on those of the last one."""
        self._is_first_pass = step % self.steps_per_batch == 0
        self._largest_difference = 0.0
        if self._is_first_pass:
            begin = time.perf_counter()
            self._release()
            decoder = cast(DecoderModel, model)
            groups = self._drawn(decoder, parts, step // self.steps_per_batch)
            self._warn_of_cuts([answer for part in groups for group in part for answer in group.answers])
            self._batches = [self._batch(decoder, part) for part in groups]
            self._release()
            self._rollout_s = time.perf_counter() - begin
        self._drawn_at = time.perf_counter()
        return self._batches

    def prepare(self, model: nn.Module, parts: Iterable[Any]) -> None:  # noqa: ARG002
        """Lets a validation draw from the weights of now."""
        self._release()

    def loss_sum(self, model: nn.Module, batch: Any) -> Tensor:
        """Returns the summed loss of drawn answers; of prompts, the negative sum of rewards of likeliest answers."""
        if isinstance(batch, PromptBatch):
            return torch.tensor(-self._validated(cast(DecoderModel, model), batch))
        logprobs = self._logprobs(model, batch)
        loss = policy_loss(logprobs, batch, self.settings)
        found = dict(batch.sums)
        if batch.reference_logprobs is not None and self.settings.loss != "rloo":
            found["kl"] = (loss.divergence, loss.num_ratios)
        found["clip_share"] = (loss.clipped, loss.num_ratios)
        if self._is_first_pass:
            found["logprob_difference"] = self._difference(logprobs.detach(), batch)
        pairs = [found.get(name, (0.0, 0.0)) for name in self.metric_names]
        self._metrics = [*(total for total, _ in pairs), *(float(count) for _, count in pairs)]
        return loss.sum

    def metric_sums(self, batch: Any) -> list[float]:
        """Returns the sums of the last pass, then the numbers that they are over."""
        return [0.0] * len(self._metrics) if isinstance(batch, PromptBatch) else self._metrics

    def step_facts(self, model: nn.Module) -> dict[str, Any]:
        """Returns the largest difference of log-probabilities, and how long drawing and training took."""
        device = next(model.parameters()).device
        return {
            "logprob_difference_max": largest_over_processes(self._largest_difference, device),
            "rollout_s": round(self._rollout_s if self._is_first_pass else 0.0, 3),
            "training_s": round(time.perf_counter() - self._drawn_at, 3),
        }

    def validation_metrics(self, loss_sum: float, num_targets: float, num_bytes: float) -> dict[str, float]:  # noqa: ARG002
        """Returns the mean reward of likeliest answers, and as a loss its negative."""
        return {"validation_loss": loss_sum / num_targets, "validation_reward": -loss_sum / num_targets}

    def _drawn(self, model: DecoderModel, parts: Sequence[PromptBatch], number: int) -> list[list[_Group]]:
        """Returns a group of answers for each prompt of each part; all are drawn side by side."""
        engine = self._taken_over(model, sum(len(part.rows) for part in parts))
        rows = [row for part in parts for row in part.rows]
        keys = [key for part in parts for key in part.numbers]
        groups = self._answered(engine, rows, [_seed(self.seed, number, key, 0) for key in keys])
        for attempt in range(1, self.settings.redraws + 1):
            again = [idx for idx, group in enumerate(groups) if self._is_flat(group)]
            if not again:
                break
            seeds = [_seed(self.seed, number, keys[idx], attempt) for idx in again]
            for idx, group in zip(again, self._answered(engine, [rows[idx] for idx in again], seeds), strict=True):
                groups[idx] = replace(group, num_redraws=attempt)
        self.examples = [self._example(group) for group in groups]
        found = iter(groups)
        return [[next(found) for _ in part.rows] for part in parts]

    def _answered(self, engine: RolloutEngine, rows: Sequence[PromptRow], seeds: Sequence[int]) -> list[_Group]:
        settings = self.settings
        params = [engine.params(settings.group_size, seed, settings.max_answer_tokens) for seed in seeds]
        drawn = engine.draw([row.ids for row in rows], params)
        return [
            _Group(row, answers, self.rewards.of(row, [one.text for one in answers]))
            for row, answers in zip(rows, drawn, strict=True)
        ]

    def _warn_of_cuts(self, answers: Sequence[Answer]) -> None:
        """Warns, once a run, of a step whose answers are all cut."""
        if self.settings.mask_truncated and all(answer.is_truncated for answer in answers):
            warnings.warn(
                f"all answers of a step were cut at {self.settings.max_answer_tokens} tokens, so it teaches nothing; "
                "raise `grpo.max_answer_tokens`, or learn of cut answers too by `grpo.mask_truncated=false`",
                LLMWarning,
                stacklevel=2,
            )

    def _is_flat(self, group: _Group) -> bool:
        total = group.total(self.rewards.weights)
        return bool(total.max() == total.min())

    def _example(self, group: _Group) -> Example:
        asked = group.row.prompt if isinstance(group.row.prompt, str) else group.row.prompt[-1]["content"]
        return Example(str(asked), group.answers[0].text, float(group.total(self.rewards.weights)[0]))

    def _taken_over(self, model: DecoderModel, num_prompts: int) -> RolloutEngine:
        """Returns the engine with the model's weights of now."""
        if self._engine is None:
            assert self.tokenizer is not None  # noqa: S101 (only runs draw answers)
            self._engine = RolloutEngine(
                self.tokenizer,
                self.config.max_position_embeddings,
                num_prompts * self.settings.group_size,
                self.settings.rollout_temperature,
            )
        self._engine.take_over(model)
        return self._engine

    def _release(self) -> None:
        """Frees the copy that a sharded model's answers are drawn from."""
        if self._engine is not None:
            self._engine.release()

    def _batch(self, model: DecoderModel, groups: Sequence[_Group]) -> RolloutBatch:
        """Returns the answers that teach something as a batch."""
        every = [[Drawn(group.row.ids, answer) for answer in group.answers] for group in groups]
        if self.settings.kl_coefficient:
            flat = [one for drawn in every for one in drawn]
            references = iter(self._reference_logprobs(model, flat))
            every = [[replace(one, reference=next(references)) for one in drawn] for drawn in every]
        kept, num_tokens = [], 0
        for group, drawn in zip(groups, every, strict=True):
            gains = advantages(self._totals(group, drawn), self.settings).tolist()
            for one, gain in zip(drawn, gains, strict=True):
                if self.settings.mask_truncated and one.answer.is_truncated:
                    continue
                num_tokens += len(one.answer.token_ids)
                if gain or one.reference is not None:
                    kept.append(replace(one, advantage=gain))
        # Every process needs a pass, even if nothing is learnt in it.
        batch = concatenated(kept or [replace(every[0][0], weight=0.0)])
        num_answers = sum(map(len, every))
        return replace(batch, num_answers=num_answers, num_tokens=num_tokens, sums=self._sums(groups))

    def _totals(self, group: _Group, drawn: Sequence[Drawn]) -> NDArray[np.float64]:
        """Returns what each answer is worth; for rloo, its divergence from the reference is subtracted.

        Source: Ahmadian et al. 2024, "Back to Basics", equation 2.
        """
        total = group.total(self.rewards.weights)
        if self.settings.loss != "rloo" or not self.settings.kl_coefficient:
            return total
        return total - self.settings.kl_coefficient * np.array([one.log_ratio for one in drawn])

    @torch.no_grad()
    def _reference_logprobs(self, model: DecoderModel, drawn: Sequence[Drawn]) -> list[Tensor]:
        """Returns the reference's log-probabilities of each answer's tokens."""
        batch = concatenated(drawn).to(model.device)
        if is_adapted(model):
            with adapters_off(model):
                logprobs = self._logprobs(model, batch)
        else:
            reference = self._loaded_reference(model)
            logprobs = self._logprobs(reference, batch)
            reshard(reference)
        reshard(model)
        return list(torch.split(logprobs[batch.labels != IGNORED_LABEL], [len(one.answer.token_ids) for one in drawn]))

    def _loaded_reference(self, model: DecoderModel) -> DecoderModel:
        """Returns the model that the run starts from, sharded if the one that it trains is."""
        if self._reference is None:
            assert self.start is not None  # noqa: S101 (a run on prompts starts from a model)
            shards, device = is_sharded(model), model.device
            loaded = resolve(self.start).model("float32", torch.device("cpu") if shards else device)
            loaded = cast(DecoderModel, loaded).eval().requires_grad_(False)
            if shards:
                dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else model.dtype
                loaded = cast(DecoderModel, shard(loaded, device, self.gathered_dtype(dtype, device)))
            self._reference = loaded
        return self._reference

    def _logprobs(self, model: nn.Module, batch: RolloutBatch) -> Tensor:
        """Returns the log-probability of each label as the engine computes it, fp32 `[T]`."""
        device = batch.token_ids.device
        impossible = None if self._impossible is None else self._impossible.to(device)
        narrow = _gradient_dtype(device)
        targets = Targets(batch.labels, self.settings.rollout_temperature, impossible=impossible, gradient_dtype=narrow)
        context = ForwardContext.for_sequences(batch.lengths, attention_backend=self.attention_backend, targets=targets)
        with _products(device, narrow):
            found: Tensor = model(batch.token_ids, positions_of(batch.lengths, device), context)
        return found

    def _difference(self, logprobs: Tensor, batch: RolloutBatch) -> tuple[float, float]:
        """Returns the summed difference to the engine's log-probabilities and the number of tokens.

        Raises:
            TrainingError: The mean is past the bound, or not a number.
        """
        is_answer = batch.labels != IGNORED_LABEL
        apart = (logprobs - batch.old_logprobs)[is_answer].abs().double()
        self._largest_difference = max(self._largest_difference, float(apart.max()))
        device = batch.token_ids.device
        is_rounded = torch.is_autocast_enabled(device.type) and _gradient_dtype(device) is None
        bound = self.settings.max_logprob_difference or (_MOST_APART_ROUNDED if is_rounded else _MOST_APART)
        mean = float(apart.mean())
        if not mean <= bound:
            raise TrainingError(
                f"the log-probabilities that answers were drawn with must be those that training computes to "
                f"{bound:g} in the mean, got a difference of {mean:.3g} (at most {float(apart.max()):.3g})\n"
                "hint: likely causes are a number type with less precision (`training.precision=float32`), a layer "
                "that acts differently in training, or weights that are not finite; "
                "`grpo.max_logprob_difference` sets the bound"
            )
        return float(apart.sum()), float(len(apart))

    def _validated(self, model: DecoderModel, batch: PromptBatch) -> float:
        """Returns the sum of the rewards of the likeliest answer to each prompt."""
        engine = self._taken_over(model, len(batch.rows))
        params = [engine.greedy(self.settings.max_answer_tokens)] * len(batch.rows)
        drawn = engine.draw([row.ids for row in batch.rows], params)
        pairs = zip(batch.rows, drawn, strict=True)
        rewards = [self.rewards.of(row, [one.text for one in answers]) for row, answers in pairs]
        return float(sum((self.rewards.weights @ found).item() for found in rewards))

    def _sums(self, groups: Sequence[_Group]) -> dict[str, tuple[float, float]]:
        """Returns sum and count of each of the metrics about drawing."""
        totals = np.array([group.total(self.rewards.weights) for group in groups])
        answers = [answer for group in groups for answer in group.answers]
        values: dict[str, Sequence[float]] = {
            "reward": totals.reshape(-1).tolist(),
            "reward_spread": totals.std(axis=1, ddof=1).tolist(),
            "answer_tokens": [len(answer.token_ids) for answer in answers],
            "truncated_share": [answer.is_truncated for answer in answers],
            "zero_spread_share": [self._is_flat(group) for group in groups],
            "redrawn_share": [group.num_redraws > 0 for group in groups],
        }
        for idx, name in enumerate(self.rewards.names):
            values[f"reward/{name}"] = [value for group in groups for value in group.rewards[idx].tolist()]
        return {name: (float(sum(found)), float(len(found))) for name, found in values.items()}


def _gradient_dtype(device: torch.device) -> torch.dtype | None:
    """Returns the number type of gradients where a pass computes its values in another one.

    The engine computes in fp32 on a CPU. Rounded to bf16, values of 30 layers miss its log-probabilities by 0.05 in the
    mean, wherever they are rounded; gradients are as good in bf16 as ever.
    """
    is_narrow = device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return torch.bfloat16 if is_narrow and torch.get_autocast_dtype("cpu") == torch.bfloat16 else None


def _products(device: torch.device, gradient_dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """Returns a context that computes values in fp32 if gradients have a number type of their own."""
    if gradient_dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def _seed(seed: int, number: int, key: int, attempt: int) -> int:
    """Returns the seed of a group's draws, which depends on nothing that other processes or starts change."""
    drawn = np.random.SeedSequence([seed, number, key, attempt]).generate_state(1, np.uint64)
    return int(drawn[0]) >> 1
