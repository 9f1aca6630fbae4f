"""Settings of learning from another model."""

from typing import Annotated, Literal

import msgspec

from llm.errors import ConfigError


class DistillationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run learns from the probabilities of a teacher, for `data.kind=text` and `chat`."""

    teacher: (
        Annotated[
            str, msgspec.Meta(description="The teacher: a checkpoint, run, Hugging Face directory or .gguf file.")
        ]
        | None
    ) = None
    divergence: Annotated[
        Literal["forward", "reverse"],
        msgspec.Meta(description="forward: KL(teacher ‖ student), covers all answers; reverse: KL(student ‖ teacher)."),
    ] = "forward"
    temperature: Annotated[
        float, msgspec.Meta(gt=0, description="Divisor of both models' logits; the divergence counts its square times.")
    ] = 1.0
    top_k: Annotated[
        int, msgspec.Meta(ge=1, description="Tokens a position whose probabilities are kept; the others count as one.")
    ] = 64
    weight: Annotated[
        float, msgspec.Meta(gt=0, le=1, description="Share of the divergence; the cross-entropy has the rest.")
    ] = 1.0

    def check_fits(self, kind: str, task: str) -> None:
        """Checks that the run's samples are tokens of texts or chats.

        Raises:
            ConfigError: They are others, or a setting has no teacher to be for.
        """
        if self.teacher is None:
            if self != DistillationConfig():
                raise ConfigError(
                    "settings of `distillation` need a teacher\nhint: name one: `distillation.teacher=PATH`"
                )
            return
        if kind not in ("text", "chat") or task != "lm":
            raise ConfigError(
                "`distillation.teacher` needs `data.kind` text or chat and `training.task=lm`, "
                f"got `{kind}` and `{task}`\nhint: `llm train` and `llm sft` take `--teacher`"
            )
