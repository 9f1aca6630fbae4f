"""Settings of learning from rewards."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llm.errors import ConfigError


class GrpoConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a run draws answers, what they are worth and what is learnt of them; the section is for `llm grpo`."""

    loss: Annotated[
        Literal["grpo", "dr_grpo", "dapo", "rloo"], Meta(description="Loss, each as its paper normalises it.")
    ] = "grpo"
    rewards: Annotated[
        tuple[str, ...],
        Meta(description="Functions as `module:function` or `file.py:function`, and built-in checks by name."),
    ] = ()
    reward_weights: Annotated[tuple[float, ...], Meta(description="A weight for each reward; empty: 1 for all.")] = ()
    reward_timeout_s: Annotated[
        float, Meta(gt=0, description="Seconds that a reward may take for the answers to one prompt.")
    ] = 60.0
    group_size: Annotated[int, Meta(ge=2, le=128, description="Answers drawn to each prompt.")] = 8
    max_answer_tokens: Annotated[int, Meta(ge=1, description="Longest answer in tokens.")] = 256
    rollout_temperature: Annotated[float, Meta(gt=0, le=100, description="Temperature of the answers.")] = 1.0
    kl_coefficient: Annotated[
        float, Meta(ge=0, description="Weight of the divergence from the model that the run starts from; 0: none.")
    ] = 0.0
    clip: Annotated[float, Meta(gt=0, lt=1, description="How far a ratio may fall below 1 before it is clipped.")] = 0.2
    clip_high: (
        Annotated[float, Meta(gt=0, description="How far a ratio may rise above 1; null: `clip`, for dapo 0.28.")]
        | None
    ) = None
    scale_advantages: (
        Annotated[
            bool, Meta(description="Divide advantages by the spread of their group; null: true for grpo and dapo.")
        ]
        | None
    ) = None
    passes: Annotated[int, Meta(ge=1, description="Optimizer steps on the same answers.")] = 1
    mask_truncated: Annotated[
        bool, Meta(description="Learn nothing of answers that were cut at `max_answer_tokens`.")
    ] = True
    redraws: Annotated[
        int, Meta(ge=0, description="How often answers are drawn again where all to a prompt have the same reward.")
    ] = 1
    max_logprob_difference: (
        Annotated[
            float,
            Meta(
                gt=0,
                description="Mean difference of engine and training that ends a run; null: 1e-3, in bf16 on GPUs 0.05.",
            ),
        ]
        | None
    ) = None

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each reward."""
        return self.reward_weights or (1.0,) * len(self.rewards)

    @property
    def upper_clip(self) -> float:
        """How far a ratio may rise above 1."""
        if self.clip_high is not None:
            return self.clip_high
        return 0.28 if self.loss == "dapo" else self.clip

    @property
    def is_scaled(self) -> bool:
        """Whether advantages are divided by the spread of their group."""
        return self.loss in ("grpo", "dapo") if self.scale_advantages is None else self.scale_advantages

    def __post_init__(self) -> None:
        """Checks the rules across fields."""
        twice = [name for name in self.rewards if self.rewards.count(name) > 1]
        if twice:
            raise ConfigError(
                f"`grpo.rewards` must name each reward once, got {twice[0]!r} {len(twice)} times\n"
                "hint: `grpo.reward_weights` lets one count more than another"
            )
        if self.reward_weights and len(self.reward_weights) != len(self.rewards):
            raise ConfigError(
                f"`grpo.reward_weights` must have one weight for each of the {len(self.rewards)} rewards, "
                f"got {len(self.reward_weights)}"
            )

    def check_fits(self, run: Any) -> None:
        """Checks what other sections of a `RunConfig` contradict.

        Raises:
            ConfigError: The run doesn't learn from rewards but has settings of it, or names no reward, or a value of
                another section contradicts this one.
        """
        if run.data.kind != "prompt":
            if self != GrpoConfig():
                raise ConfigError(
                    f"settings of `grpo` need `data.kind=prompt`, got `{run.data.kind}`\n"
                    "hint: `llm grpo` learns from rewards"
                )
            return
        if not self.rewards:
            raise ConfigError(
                "no reward is named\nhint: `--reward module:function`, or a built-in check such as `--reward exact`"
            )
        if run.training.precision == "float8":
            raise ConfigError(
                "`training.precision=float8` can't be combined with `data.kind=prompt`\n"
                "hint: training.precision=bfloat16, with lora.rank=16 where memory is short"
            )
        self._check_intervals(run.training)
        self._check_probabilities(run)

    def _check_intervals(self, training: Any) -> None:
        for name in ("max_steps", "checkpoint_every", "validate_every"):
            value = getattr(training, name)
            if value is not None and value % self.passes:
                raise ConfigError(
                    f"`training.{name}` must be a multiple of `grpo.passes` ({self.passes}), got {value}: a checkpoint "
                    "lies between two batches of answers"
                )

    def _check_probabilities(self, run: Any) -> None:
        """Checks that training computes the probabilities that answers are drawn with."""
        for section, name in (("model", "dropout"), ("model", "attention_dropout"), ("lora", "input_dropout")):
            share = getattr(getattr(run, section), name)
            if share:
                raise ConfigError(
                    f"`{section}.{name}` must be 0 where answers are learnt from, got {share}: training would see "
                    "other probabilities than those that the answers are drawn with"
                )
        for name in ("top_k", "top_p"):
            value = getattr(run.generation, name)
            if value is not None:
                raise ConfigError(
                    f"answers are drawn from the whole distribution, got `generation.{name}={value}`: a truncated "
                    "draw has another probability than the one that training computes\n"
                    "hint: leave it out; `grpo.rollout_temperature` sets the temperature"
                )
