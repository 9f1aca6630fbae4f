"""Settings of learning from preferences."""

from typing import Annotated, Literal

import msgspec

from llm.errors import ConfigError

# Settings of a single loss.
_OF_LOSS = {
    "label_smoothing": "dpo",
    "gamma_ratio": "simpo",
    "wanted_weight": "kto",
    "unwanted_weight": "kto",
    "centering": "reward",
}


class PreferenceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run learns from answers that are preferred to others; the section is for `data.kind=preference`."""

    loss: Annotated[
        Literal["dpo", "ipo", "simpo", "orpo", "kto", "reward"],
        msgspec.Meta(description="Loss; reward: a reward model of Bradley and Terry (`llm reward`)."),
    ] = "dpo"
    beta: (
        Annotated[
            float,
            msgspec.Meta(gt=0, description="β of DPO, SimPO and KTO, τ of IPO, λ of ORPO; null: 0.1, for SimPO 2."),
        ]
        | None
    ) = None
    label_smoothing: Annotated[
        float, msgspec.Meta(ge=0, lt=0.5, description="dpo: share of pairs assumed to be the wrong way round.")
    ] = 0.0
    gamma_ratio: Annotated[float, msgspec.Meta(ge=0, description="simpo: margin between the answers, γ / β.")] = 0.5
    wanted_weight: Annotated[float, msgspec.Meta(ge=0, description="kto: weight of wanted answers.")] = 1.0
    unwanted_weight: Annotated[float, msgspec.Meta(ge=0, description="kto: weight of unwanted answers.")] = 1.0
    centering: Annotated[
        float, msgspec.Meta(ge=0, description="reward: weight of the squared sum of a pair's rewards.")
    ] = 0.0

    def __post_init__(self) -> None:
        """Checks that each setting is one of the loss."""
        for field in msgspec.structs.fields(self):
            loss = _OF_LOSS.get(field.name)
            if loss is not None and loss != self.loss and getattr(self, field.name) != field.default:
                raise ConfigError(
                    f"`preference.{field.name}` is for `preference.loss={loss}`, got `{self.loss}`\n"
                    f"hint: leave out `preference.{field.name}`"
                )
        if self.loss == "reward" and self.beta is not None:
            raise ConfigError("`preference.beta` must be null with `preference.loss=reward`\nhint: leave it out")

    @property
    def strength(self) -> float:
        """`beta`, or the usual value of the loss."""
        if self.beta is not None:
            return self.beta
        return 2.0 if self.loss == "simpo" else 0.1

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the model that the run starts from."""
        return self.loss in ("dpo", "ipo", "kto")

    def check_fits(self, kind: str, *, rank: int | None) -> None:
        """Checks what can't be combined with preferences.

        Raises:
            ConfigError: The run learns from something else, or a reward model is to be trained by adapters.
        """
        if kind != "preference":
            if self != PreferenceConfig():
                raise ConfigError(
                    f"settings of `preference` need `data.kind=preference`, got `{kind}`\n"
                    "hint: `llm dpo` and `llm reward` learn from preferences"
                )
            return
        if self.loss == "reward" and rank is not None:
            raise ConfigError(
                f"`lora.rank` must be null with `preference.loss=reward`, got {rank}: an adapter's files hold no head\n"
                "hint: leave out `lora.rank`"
            )
