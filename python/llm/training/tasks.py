"""Training tasks, each of which defines a model, its loss and its number of targets."""

import abc
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.checkpoint import Checkpoint
from llm.data import IGNORED_LABEL, RegressionBatch, TokenBatch
from llm.models import DecoderModel, RegressionModel
from llm.models.adapters import adapt, round_frozen
from llm.settings.model import ModelConfig
from llm.settings.run import LoraConfig
from llm.tokenization import BaseTokenizer
from llm.training.compilation import compile_blocks
from llm.training.distributed import over_processes
from llm.training.float8 import use_float8
from llm.training.losses import token_losses


class Task(abc.ABC):
    """A model and loss for the training loop.

    The loss is a *sum*. The loop divides it by the number of targets in the whole batch, counted before the forward
    pass over all devices and accumulation passes, so neither number affects the loss.

    Attributes:
        unit: What positions are, such as tokens.
        metric_names: Keys of further metrics in the log, such as `rewards/chosen`.
        loss_is_entropy: Whether the loss in training is a cross-entropy, which bits per byte are computed from.
        steps_per_batch: Number of steps that are taken on the same part of the data. A run stops and saves only
            between them.
        may_lack_targets: Whether a step on a batch without any target is taken, with a loss of 0, rather than an error.
        sequences_per_sample: Number of sequences that training reads for a sample of the data.
        validation_share: About how long a validation takes for a batch, as a share of a step.
    """

    unit: str
    metric_names: tuple[str, ...] = ()
    loss_is_entropy: bool = True
    steps_per_batch: int = 1
    may_lack_targets: bool = False
    sequences_per_sample: int = 1
    validation_share: float = 1 / 3  # a step is a forward pass and a backward pass of twice the work

    @abc.abstractmethod
    def build_model(self) -> nn.Module:
        """Returns a freshly initialised model; the caller has seeded PyTorch."""

    def gathered_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:  # noqa: ARG002
        """Returns the number type that a sharded model's blocks are gathered in, by default that of products."""
        return dtype

    @abc.abstractmethod
    def count_targets(self, batch: Any) -> int:
        """Returns the number of targets in `batch` that the loss sums over."""

    @abc.abstractmethod
    def loss_sum(self, model: nn.Module, batch: Any) -> Tensor:
        """Returns the sum of the losses of all targets in `batch`, an fp32 scalar."""

    def count_positions(self, batch: Any) -> int:
        """Returns the number of positions that the model computes, by which its speed is measured."""
        return self.count_targets(batch)

    def count_bytes(self, batch: Any) -> int:  # noqa: ARG002
        """Returns the number of bytes of text that the targets represent; 0 if the data is not text."""
        return 0

    def auxiliary_losses(self, model: nn.Module) -> dict[str, tuple[float, Tensor]]:  # noqa: ARG002
        """Returns weight and mean of each auxiliary loss of the model's last pass, by name; only training adds them."""
        return {}

    def sums_by_source(self, batch: Any, num_sources: int) -> list[float]:  # noqa: ARG002
        """Returns the loss of the last pass summed for each source, then the number of each source's targets."""
        return [0.0] * (2 * num_sources)

    def batches(self, model: nn.Module, parts: list[Any], step: int) -> list[Any]:  # noqa: ARG002
        """Returns the batches of a step, as many as `parts`; by default those parts of the data themselves.

        All processes call it at the same time.

        Args:
            model: The model, not its wrapper for several processes.
            parts: This process's parts of the data for this step.
            step: Number of optimizer steps so far.
        """
        return parts

    def prepare(self, model: nn.Module, parts: Iterable[Any]) -> None:  # noqa: B027 (optional)
        """Computes what the losses of a whole batch need, without gradient, before its first pass.

        All processes call it at the same time, for each step and each validation. It makes as many passes of the model
        for a part as `loss_sum` does, or takes no part: a sharded model needs as many passes in each process, so one
        that has fewer parts than others calls `loss_sum` instead.

        Args:
            model: The model, not its wrapper for several processes.
            parts: This process's parts of the batch, on its device.
        """

    def metric_sums(self, batch: Any) -> list[float]:  # noqa: ARG002
        """Returns the sum of each of `metric_names` over the last pass, then the number that each sum is over."""
        return [0.0] * (2 * len(self.metric_names))

    def step_facts(self, model: nn.Module) -> dict[str, Any]:  # noqa: ARG002
        """Returns further values to log about the model's last pass."""
        return {}

    def validation_metrics(self, loss_sum: float, num_targets: float, num_bytes: float) -> dict[str, float]:
        """Returns metrics to log, computed from sums over the whole validation set."""
        metrics = {"validation_loss": loss_sum / num_targets}
        if num_bytes:
            metrics["bits_per_byte"] = loss_sum / math.log(2) / num_bytes
        return metrics


class LanguageModelingTask(Task):
    """Trains a model to predict the next token.

    Args:
        config: The model's settings; `vocab_size` is at least the tokenizer's.
        tokenizer: The tokenizer, which gives the bytes of each token for bits per byte; None for synthetic tokens.
        attention_backend: See `ForwardContext`.
        gradient_checkpointing: See `DecoderModel`.
        initial: A checkpoint of the same model to start from; None starts from random weights.
        compiled: Whether PyTorch compiles the model's blocks.
        float8: Whether linear layers multiply in float8; see `use_float8`.
        lora: Settings of adapters to train in place of all weights; None trains all weights.
        keep_packed: Whether the frozen weights of a quantised `initial` stay packed (QLoRA), which needs a CPU.
        frozen_dtype: Type that matrices with adapters are kept in, which must be that of their products.

    Attributes:
        token_losses: Each token's loss in the last pass, fp32 `[T]`; 0 for ignored labels, None before the first pass.
        expert_loads: Each expert's share of the assignments in the last pass of training, over all processes, fp32
            `[layers with experts, E]`; None without experts.
    """

    unit = "tokens"
    token_losses: Tensor | None = None
    expert_loads: Tensor | None = None

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: BaseTokenizer | None = None,
        *,
        attention_backend: str = "auto",
        gradient_checkpointing: bool = False,
        initial: Checkpoint | None = None,
        compiled: bool = False,
        float8: bool = False,
        lora: LoraConfig | None = None,
        keep_packed: bool = False,
        frozen_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = config
        self.compiled = compiled
        self.float8 = float8
        self.lora = lora
        self.keep_packed = keep_packed
        self.frozen_dtype = frozen_dtype
        self.attention_backend = attention_backend
        self.gradient_checkpointing = gradient_checkpointing
        self.initial = initial
        lengths = [] if tokenizer is None else [len(content or b"") for content in tokenizer.token_bytes()]
        for special_id in () if tokenizer is None else tokenizer.special_tokens.values():
            lengths[special_id] = 0
        self._byte_lengths = torch.tensor(lengths, dtype=torch.int64)

    def build_model(self) -> nn.Module:
        """Returns a `DecoderModel`."""
        model = self.new_model()
        model.gradient_checkpointing = self.gradient_checkpointing
        if self.lora is not None:
            adapt(model, self.lora)
            round_frozen(model, self.frozen_dtype)
        if self.float8:
            use_float8(model)
        if self.compiled:
            compile_blocks(model)
        return model

    def new_model(self) -> DecoderModel:
        """Returns the model with its first weights: random ones, or those that the run starts from."""
        packed = self._packed()
        if packed is not None:
            return packed
        model = DecoderModel(self.config)
        if self.initial is not None and not next(model.parameters()).is_meta:
            self.initial.load_weights(model)
        return model

    @property
    def keeps_packed(self) -> bool:
        """Whether weights that the run starts from are quantised and stay packed."""
        if self.lora is None or self.initial is None or not self.keep_packed:
            return False
        # The lengths of rows, which DoRA trains, are those of unpacked weights.
        return self.initial.is_quantised and not self.lora.use_dora

    def _packed(self) -> DecoderModel | None:
        """Returns the model with packed weights of a quantised checkpoint; None if it must be unpacked."""
        initial = self.initial
        if initial is None or not self.keeps_packed or torch.empty(0).is_meta:  # a trial has no weights at all
            return None
        model = initial.model("float32", keep_packed=True, settings=self.config)
        return model if isinstance(model, DecoderModel) else None

    def count_targets(self, batch: TokenBatch) -> int:
        """Returns the number of labels that are not ignored."""
        return int(np.count_nonzero(batch.labels.cpu().numpy() != IGNORED_LABEL))  # half of PyTorch's time

    def count_positions(self, batch: TokenBatch) -> int:
        """Returns the number of tokens read, learnt or not."""
        return len(batch.token_ids)

    def count_bytes(self, batch: TokenBatch) -> int:
        """Returns the number of bytes of labels that are not ignored; special tokens count as 0 bytes."""
        if not len(self._byte_lengths):
            return 0
        labels = batch.labels[batch.labels != IGNORED_LABEL].cpu()
        return int(self._byte_lengths[labels].sum())

    def loss_sum(self, model: nn.Module, batch: TokenBatch) -> Tensor:
        """Returns the summed cross-entropy in nats, and keeps the tokens' own losses as `token_losses`."""
        losses = token_losses(model, batch, attention_backend=self.attention_backend)
        self.token_losses = losses.detach()
        return losses.sum()

    def sums_by_source(self, batch: TokenBatch, num_sources: int) -> list[float]:
        """Returns the loss of the last pass summed for each source, then the number of each source's targets."""
        losses = torch.zeros(len(batch.labels)) if self.token_losses is None else self.token_losses.cpu()
        sources = torch.tensor(batch.sources).repeat_interleave(torch.tensor(batch.lengths))
        targets = (batch.labels != IGNORED_LABEL).cpu().double()
        sums = [torch.bincount(sources, one, num_sources) for one in (losses.double(), targets)]
        return [float(value) for one in sums for value in one]

    def auxiliary_losses(self, model: nn.Module) -> dict[str, tuple[float, Tensor]]:
        """Returns the router's losses; empty without experts.

        The experts' loads are those of the passes that all processes run at once, so the loss does not depend on the
        number of processes.
        """
        experts = self.config.experts
        if experts is None or not isinstance(model, DecoderModel):
            return {}
        num_tokens = 0 if self.token_losses is None else len(self.token_losses)
        counts = over_processes(model.expert_loads() * num_tokens)
        self.expert_loads = counts / counts.sum(1, keepdim=True).clamp_min(1)
        weights = {"load_balancing": experts.load_balancing_weight, "router_z": experts.router_z_weight}
        return {name: (weights[name], loss) for name, loss in model.router_losses(self.expert_loads).items()}

    def step_facts(self, model: nn.Module) -> dict[str, Any]:  # noqa: ARG002
        """Returns each expert's share of assignments, as one list per layer with experts; empty without experts."""
        if self.expert_loads is None:
            return {}
        return {"expert_load": [[round(share, 4) for share in layer] for layer in self.expert_loads.tolist()]}


class RegressionTask(Task):
    """Trains a model to predict one number from features, with the squared error as loss."""

    unit = "samples"

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def build_model(self) -> nn.Module:
        """Returns a `RegressionModel`."""
        return RegressionModel(self.config)

    def count_targets(self, batch: RegressionBatch) -> int:
        """Returns the number of samples, each of which has one target."""
        return len(batch.targets)

    def loss_sum(self, model: nn.Module, batch: RegressionBatch) -> Tensor:
        """Returns the summed squared error."""
        predictions = model(batch.features)
        return F.mse_loss(predictions.float(), batch.targets, reduction="sum")
