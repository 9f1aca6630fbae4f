"""Every setting of a training run: its type, range and meaning."""

import math
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec

from llm.errors import ConfigError
from llm.settings.distillation import DistillationConfig
from llm.settings.grpo import GrpoConfig
from llm.settings.model import ModelConfig
from llm.settings.paths import check_directory
from llm.settings.preference import PreferenceConfig
from llm.settings.sampling import Temperature, TopK, TopP
from llm.settings.sources import SourceConfig

# How text is cut into pieces that merges stay within; `llama3` and `gpt4` are the same.
PatternName: TypeAlias = Literal["gpt2", "gpt4", "cl100k", "o200k", "llama3", "qwen2", "whitespace"]

ProfiledStep: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
RowFormat: TypeAlias = Literal["auto", "messages", "conversations", "prompt", "instruction", "pairs", "labels"]
LogTarget: TypeAlias = Literal["csv", "tensorboard", "wandb"]
# What the only source of a kind is called.
_SOURCE_NAMES = {"chat": "chats", "preference": "preferences", "prompt": "prompts"}


class TokenizerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which tokenizer a run uses, or how one is trained from its training text."""

    path: Annotated[str, msgspec.Meta(description="Directory of an existing tokenizer; null: train one.")] | None = None
    kind: Annotated[Literal["bpe", "character"], msgspec.Meta(description="Kind of tokenizer to train.")] = "bpe"
    vocab_size: Annotated[int, msgspec.Meta(ge=1, description="Number of entries of a newly trained tokenizer.")] = 4096
    pattern: Annotated[PatternName, msgspec.Meta(description="Pattern that splits text before merging.")] = "gpt4"
    chat_template: (
        Annotated[str, msgspec.Meta(description="Chat template: `chatml`, `play` or a Jinja file; null: its own.")]
        | None
    ) = None
    sample_bytes: Annotated[
        int, msgspec.Meta(ge=1, description="Text to train a tokenizer on at most, taken evenly from all of it.")
    ] = 2**28


class DataConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run learns from."""

    kind: Annotated[
        Literal["text", "chat", "preference", "prompt", "synthetic"],
        msgspec.Meta(
            description="Text, rows of chats (`llm sft`), preferences (`llm dpo`), prompts (`llm grpo`), or synthetic."
        ),
    ] = "text"
    paths: Annotated[tuple[str, ...], msgspec.Meta(description="Files, directories or globs.")] = ()
    field: Annotated[str, msgspec.Meta(description="Field or column with the text, of .jsonl and .parquet.")] = "text"
    separator: (
        Annotated[str, msgspec.Meta(description="Text between two documents, learnt as end of text; null: none.")]
        | None
    ) = "<|endoftext|>"
    sources: Annotated[
        tuple[SourceConfig, ...], msgspec.Meta(description="Sources with weights, in place of `paths`.")
    ] = ()
    cache: Annotated[str, msgspec.Meta(description="Directory of shards that runs share; null: in the run.")] | None = (
        None
    )
    packing: Annotated[
        bool, msgspec.Meta(description="Fill samples with whole documents, none of which attends to another.")
    ] = False
    sampling: Annotated[
        Literal["windows", "crops"],
        msgspec.Meta(description="Samples side by side, or crops that begin at any token; both in random order."),
    ] = "windows"
    validation_fraction: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0, description="Held out from the end.")] = 0.1
    validation_paths: Annotated[
        tuple[str, ...], msgspec.Meta(description="Text to validate on, in place of a held-out part.")
    ] = ()
    validation_tokens: (
        Annotated[int, msgspec.Meta(ge=1, description="Tokens to validate on at most, taken evenly; null: all.")] | None
    ) = 2**17
    context_length: Annotated[int, msgspec.Meta(ge=1, description="Tokens a sample; null: the model's.")] | None = None
    num_samples: (
        Annotated[int, msgspec.Meta(ge=1, description="Number of samples to use or generate; null: all.")] | None
    ) = None
    row_format: Annotated[
        RowFormat,
        msgspec.Meta(description="Fields of a row of kind `chat` or `preference`; auto: by what the row has."),
    ] = "auto"
    loss_on: Annotated[
        Literal["assistant", "last", "all"],
        msgspec.Meta(
            description="What is learnt of a row: all turns of the assistant, the last one, or all of its text."
        ),
    ] = "assistant"
    too_long: Annotated[
        Literal["error", "drop", "cut"],
        msgspec.Meta(description="What happens to a row that is longer than a sample; cut: its end is left out."),
    ] = "error"
    log_samples: Annotated[
        bool, msgspec.Meta(description="Log the numbers of each batch's samples to `data/samples.rank<N>.jsonl`.")
    ] = False

    @property
    def all_sources(self) -> tuple[SourceConfig, ...]:
        """Every source with a name; `paths` are one."""
        if not self.sources:
            return (SourceConfig(name=_SOURCE_NAMES.get(self.kind, self.kind), paths=self.paths),)
        return tuple(source.named() for source in self.sources)

    @property
    def cache_directory(self) -> Path | None:
        """Where tokenized text is kept for other runs; None keeps it in the run.

        Raises:
            ConfigError: `cache` is a file, or lies in one.
        """
        if self.cache is None:
            return None
        directory = Path(self.cache).expanduser()
        check_directory("data.cache", directory)
        return directory

    def __post_init__(self) -> None:
        """Checks what sources exclude."""
        if self.sources and self.paths:
            raise ConfigError(
                f"text comes from `data.paths` or `data.sources`, got both: {', '.join(self.paths)} and "
                f"{len(self.sources)} sources\nhint: name each text once"
            )
        if self.kind == "preference" and (self.packing or self.loss_on != "assistant"):
            wrong = "data.packing=true" if self.packing else f"data.loss_on={self.loss_on}"
            raise ConfigError(
                f"`{wrong}` can't be combined with `data.kind=preference`\n"
                "hint: leave it out: a sample is the answers of one row, what is learnt are the answers, and a pass "
                "computes its answers side by side without padding anyway"
            )
        if self.packing and self.sampling == "crops":
            raise ConfigError("`data.sampling` must be windows with `data.packing`, got crops")
        names = [source.name for source in self.all_sources]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"`data.sources` must have different names, got {', '.join(names)}\n"
                'hint: give each a `name` of its own, such as `name = "web"`'
            )
        if len(self.sources) > 1 and self.num_samples is not None:
            raise ConfigError(f"`data.num_samples` must be null for several sources, got {self.num_samples}")
        if self.sources and not any(source.weight for source in self.sources):
            raise ConfigError("one of the weights in `data.sources` must be above 0, got 0 for all")


class ParameterGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters with a learning rate or weight decay of their own, chosen by their names."""

    match: Annotated[str, msgspec.Meta(min_length=1, description="Regular expression found in a parameter's name.")]
    learning_rate: (
        Annotated[float, msgspec.Meta(ge=0, description="Peak learning rate of the group; null: the optimizer's.")]
        | None
    ) = None
    weight_decay: (
        Annotated[float, msgspec.Meta(ge=0, description="Weight decay of the group; null: as usual.")] | None
    ) = None


class OptimizerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The optimizer and the course of its learning rate."""

    name: Annotated[
        Literal["adamw", "muon", "adamw8bit"],
        msgspec.Meta(
            description="AdamW, Muon for hidden matrices with AdamW for the rest, or AdamW with 8-bit moments."
        ),
    ] = "adamw"
    learning_rate: Annotated[float, msgspec.Meta(gt=0, description="Peak learning rate, reached after warm-up.")] = 1e-3
    schedule: Annotated[
        Literal["cosine", "linear", "constant", "wsd"],
        msgspec.Meta(description="Course of the rate after warm-up; wsd: stays at its peak, then decays."),
    ] = "cosine"
    min_learning_rate_ratio: Annotated[float, msgspec.Meta(ge=0, le=1, description="Final rate / peak rate.")] = 0.1
    warmup_steps: (
        Annotated[int, msgspec.Meta(ge=0, description="Steps from 0 to the peak; null: a tenth, at most 100.")] | None
    ) = None
    warmup_tokens: (
        Annotated[int, msgspec.Meta(ge=0, description="Tokens from 0 to the peak, in place of `warmup_steps`.")] | None
    ) = None
    decay_fraction: Annotated[
        float, msgspec.Meta(gt=0, le=1, description="wsd: share of the run's steps over which the rate decays.")
    ] = 0.2
    decay_shape: Annotated[
        Literal["linear", "sqrt"], msgspec.Meta(description="wsd: decay along a line, or along 1 - √progress.")
    ] = "linear"
    decay_from: (
        Annotated[int, msgspec.Meta(ge=0, description="wsd: step at which decay starts, in place of `decay_fraction`.")]
        | None
    ) = None
    weight_decay: Annotated[float, msgspec.Meta(ge=0, description="Weight decay, applied to matrices only.")] = 0.1
    beta1: Annotated[float, msgspec.Meta(ge=0, lt=1, description="Decay rate of AdamW's first moment.")] = 0.9
    beta2: Annotated[float, msgspec.Meta(ge=0, lt=1, description="Decay rate of AdamW's second moment.")] = 0.95
    eps: Annotated[float, msgspec.Meta(gt=0, description="Added to the second moment's root.")] = 1e-8
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1, description="Decay rate of Muon's momentum.")] = 0.95
    max_grad_norm: Annotated[float, msgspec.Meta(gt=0, description="Gradient norm limit; null: none.")] | None = 1.0
    groups: Annotated[
        tuple[ParameterGroup, ...],
        msgspec.Meta(description="Parameters with rates of their own; the first match counts."),
    ] = ()

    def __post_init__(self) -> None:
        """Checks that the warm-up is given once."""
        if self.warmup_steps is not None and self.warmup_tokens is not None:
            raise ConfigError(
                f"`optimizer.warmup_steps` must be null where `optimizer.warmup_tokens` is given, "
                f"got {self.warmup_steps}"
            )


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long, how wide and on what a run trains."""

    task: Annotated[Literal["lm", "regression"], msgspec.Meta(description="Objective.")] = "lm"
    init_from: (
        Annotated[
            str, msgspec.Meta(description="Checkpoint, run or Hugging Face model to start from; null: a new model.")
        ]
        | None
    ) = None
    size: (
        Annotated[
            str,
            msgspec.Meta(description="Parameters, such as 15M: sets shape, rate and batch; null: by text and device."),
        ]
        | None
    ) = None
    epochs: Annotated[int, msgspec.Meta(ge=1, description="Number of passes over the data.")] = 1
    max_steps: (
        Annotated[int, msgspec.Meta(ge=1, description="Number of optimizer steps; null: as many as the epochs take.")]
        | None
    ) = None
    batch_size: Annotated[int, msgspec.Meta(ge=1, description="Samples per optimizer step, over all devices.")] = 16
    gradient_accumulation_steps: Annotated[int, msgspec.Meta(ge=1, description="Forward passes per step.")] = 1
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1, description="Seed of all randomness.")] = 0
    device: Annotated[str, msgspec.Meta(description="Device: `auto`, `cpu`, `cuda`, `cuda:1`, …")] = "auto"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "float8"],
        msgspec.Meta(description="Number type of matrix products; weights stay fp32."),
    ] = "auto"
    attention_backend: Annotated[
        Literal["auto", "sdpa", "math", "flex", "flash"], msgspec.Meta(description="Backend that computes attention.")
    ] = "auto"
    compile: Annotated[
        Literal["auto", "off", "on"],
        msgspec.Meta(description="Compile each block at the first step; auto: where that pays back within the run."),
    ] = "auto"
    sharding: Annotated[
        Literal["auto", "ddp", "fsdp"],
        msgspec.Meta(description="Each process keeps the whole model (`ddp`) or a share of it (`fsdp`)."),
    ] = "auto"
    process_timeout_s: Annotated[
        int, msgspec.Meta(ge=1, description="Seconds that a process waits for another before the run ends.")
    ] = 1800
    gradient_checkpointing: Annotated[
        bool, msgspec.Meta(description="Recompute blocks in the backward pass, which saves memory and costs time.")
    ] = False
    log_every: Annotated[int, msgspec.Meta(ge=1, description="Number of steps between lines of the log.")] = 10
    validate_every: Annotated[int, msgspec.Meta(ge=1, description="Number of steps between validations.")] = 250
    checkpoint_every: Annotated[int, msgspec.Meta(ge=1, description="Number of steps between checkpoints.")] = 250
    keep_checkpoints: Annotated[int, msgspec.Meta(ge=1, description="Number of newest checkpoints to keep.")] = 3
    keep_best: Annotated[
        bool, msgspec.Meta(description="Save and keep the checkpoint with the lowest validation loss, named in `best`.")
    ] = False
    stop_after_validations: (
        Annotated[
            int, msgspec.Meta(ge=1, description="Validations without a lower loss that end training; null: none.")
        ]
        | None
    ) = None
    async_save: Annotated[
        bool, msgspec.Meta(description="Save beside training, which needs memory for a copy of weights and moments.")
    ] = False
    log_to: Annotated[
        tuple[LogTarget, ...], msgspec.Meta(description="Further logs: `csv`, `tensorboard` and `wandb`.")
    ] = ()
    profile_steps: (
        Annotated[
            tuple[ProfiledStep, ProfiledStep],
            msgspec.Meta(description="First and last step whose operations are timed; null: none."),
        ]
        | None
    ) = None
    sample_tokens: Annotated[
        int, msgspec.Meta(ge=0, description="Length of the text written at each validation; 0: none.")
    ] = 100
    sample_prompt: (
        Annotated[str, msgspec.Meta(description="Start of that text; null: the first words of the held-out text.")]
        | None
    ) = None


class GenerationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling values saved with every checkpoint, for requests that name none; null: `SamplingParams`' own."""

    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None


class LoraConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Low-rank adapters that a run trains in place of the weights it starts from."""

    rank: (
        Annotated[
            int, msgspec.Meta(ge=1, le=16_384, description="Rank of each adapter; null: all weights are trained.")
        ]
        | None
    ) = None
    alpha: (
        Annotated[float, msgspec.Meta(gt=0, description="Factor on an update, over its rank; null: twice the rank.")]
        | None
    ) = None
    input_dropout: Annotated[
        float, msgspec.Meta(ge=0, lt=1, description="Share of an adapter's inputs that are dropped.")
    ] = 0.0
    target_modules: Annotated[
        tuple[str, ...],
        msgspec.Meta(min_length=1, description="Projections by Hugging Face's names, or `all-linear`."),
    ] = ("all-linear",)
    use_rslora: Annotated[
        bool, msgspec.Meta(description="Divide `alpha` by the root of the rank, which suits high ranks.")
    ] = False
    use_dora: Annotated[bool, msgspec.Meta(description="Train the length of each row beside its direction.")] = False

    @property
    def scale(self) -> float:
        """Factor on the product of an adapter's two matrices.

        Source: Hu et al. 2021, "LoRA", section 4.1; Kalajdzievski 2023, "A Rank Stabilization Scaling Factor for
        Fine-Tuning with LoRA", theorem 3.2.
        """
        return scale_of(self.rank or 1, self.alpha, use_rslora=self.use_rslora)


def scale_of(rank: int, alpha: float | None, *, use_rslora: bool) -> float:
    """Returns `alpha` over the rank, or over its root; without `alpha`, that of twice the rank."""
    wide = 2.0 * rank if alpha is None else alpha
    return wide / (math.sqrt(rank) if use_rslora else rank)


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides a training run; saved in its `run.json`."""

    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    generation: GenerationConfig = GenerationConfig()
    lora: LoraConfig = LoraConfig()
    preference: PreferenceConfig = PreferenceConfig()
    grpo: GrpoConfig = GrpoConfig()
    distillation: DistillationConfig = DistillationConfig()

    @property
    def context_length(self) -> int:
        """Tokens of one training sample."""
        return self.data.context_length or self.model.max_position_embeddings

    def __post_init__(self) -> None:
        """Checks the rules across sections."""
        if self.context_length > self.model.max_position_embeddings:
            raise ConfigError(
                f"`data.context_length` must be at most `model.max_position_embeddings` "
                f"({self.model.max_position_embeddings}), got {self.context_length}\n"
                "hint: shorten the context or raise `model.max_position_embeddings`"
            )
        if self.training.batch_size % self.training.gradient_accumulation_steps:
            raise ConfigError(
                f"`training.batch_size` must be a multiple of `training.gradient_accumulation_steps` "
                f"({self.training.gradient_accumulation_steps}), got {self.training.batch_size}"
            )
        self._check_lora()
        self.distillation.check_fits(self.data.kind, self.training.task)
        self.preference.check_fits(self.data.kind, rank=self.lora.rank)
        self.grpo.check_fits(self)

    def _check_lora(self) -> None:
        training = self.training
        if self.lora.rank is None:
            if self.lora != LoraConfig():
                raise ConfigError(
                    "`lora.rank` must be given with other settings of `lora`, got null\nhint: lora.rank=16"
                )
            return
        if training.task != "lm" or training.init_from is None:
            raise ConfigError(
                f"`lora.rank` needs trained weights to start from, got `training.task={training.task}` and "
                f"`training.init_from={training.init_from}`\nhint: `--init-from` names a checkpoint"
            )
        if training.precision == "float8":
            raise ConfigError(
                "`lora.rank` can't be combined with `training.precision=float8`\n"
                "hint: training.precision=bfloat16 trains adapters"
            )
