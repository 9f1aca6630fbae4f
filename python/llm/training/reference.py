"""Log-probabilities of answers by the model that a run starts from, computed once and kept on disk."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import MofNCompleteColumn

from llm.checkpoint import Checkpoint, Run, read_json, resolve, write_atomically
from llm.data import PreferenceDataModule, TokenBatch
from llm.data.readers import content_digest
from llm.data.rows.answers import AnswerSamples
from llm.models.hf import empty_model
from llm.progress import progress_bar
from llm.settings.run import RunConfig
from llm.training.distributed import Distributed, over_processes
from llm.training.losses import token_losses
from llm.training.parallel import ParallelModel, takes_shards
from llm.training.precision import autocast, autocast_dtype
from llm.training.preferences import PreferenceTask

# Part of the name of a file: what gives the same weights and rows other numbers must raise it.
_VERSION = 1
# Which file belongs to which samples of a run, so that a resumed run needs no look at the weights it began from.
_LIST = "references.json"


def attach_reference(
    config: RunConfig,
    run: Run,
    data: PreferenceDataModule,
    distributed: Distributed,
    initial: Checkpoint | None = None,
) -> None:
    """Gives all samples the log-probabilities of their answers by the model that the run starts from.

    They are computed once, by all processes together, and kept in the run, or in `data.cache` for other runs. Names of
    files are digests of weights, rows and number type. A run that trains adapters needs none: it turns them off.

    Args:
        config: Settings of the run.
        run: The run.
        data: The samples, which get their `reference`.
        distributed: This process; all call this function at the same time.
        initial: The model that the run starts from; None: as `training.init_from` says.

    Raises:
        CheckpointError: The numbers are missing, and so is the model.
    """
    if not config.preference.needs_reference or config.lora.rank is not None:
        return
    reference = _Reference(config, run, distributed, initial)
    for samples in data.parts():
        samples.reference = reference.of(samples)


def attach_blank(config: RunConfig, data: PreferenceDataModule) -> None:
    """Gives all samples zeros, with which a trial of a few steps takes the time and memory of the run's steps."""
    for samples in data.parts() if config.preference.needs_reference else ():
        samples.reference = np.zeros((len(samples), 2), np.float32)


class _Reference:
    """The model that a run starts from, loaded if its numbers aren't known yet."""

    def __init__(self, config: RunConfig, run: Run, distributed: Distributed, initial: Checkpoint | None) -> None:
        self._config, self._run, self._distributed = config, run, distributed
        self._initial = initial
        self._parallel: ParallelModel | None = None
        self._weights = ""
        self._dtype = autocast_dtype(config.training.precision, distributed.device)
        self._is_sharded = takes_shards(empty_model(config.model), distributed, config.training.sharding)

    def of(self, samples: AnswerSamples) -> NDArray[np.float32]:
        """Returns the log-probabilities of the two answers of each sample, fp32 `[N, 2]`."""
        is_main = self._distributed.is_main
        file = self._listed(samples) if is_main else None
        if is_main and file is None:
            file = self._folder / f"reference-{self._digest(samples)}.npy"
        found = None if file is None else _read(file, samples)
        [is_known] = self._distributed.sum(found is not None)
        if not is_known:
            found = self._computed(samples)
            if file is not None:
                _write(file, found)
        values = found if found is not None else np.zeros((len(samples), 2), np.float32)
        if file is not None:
            self._list(samples, file)
        if is_known and self._distributed.world_size > 1:
            values = over_processes(torch.from_numpy(values).to(self._distributed.device)).cpu().numpy()
        return values

    @property
    def _folder(self) -> Path:
        return self._config.data.cache_directory or self._run.data

    @property
    def _source(self) -> Checkpoint:
        if self._initial is None:
            self._initial = resolve(self._config.training.init_from or "")
        return self._initial

    def _listed(self, samples: AnswerSamples) -> Path | None:
        """Returns the file that the run began with."""
        file = self._run.data / _LIST
        name = read_json(file).get(samples.digest) if file.is_file() else None
        return Path(name) if name is not None and _read(Path(name), samples) is not None else None

    def _list(self, samples: AnswerSamples, file: Path) -> None:
        listing = self._run.data / _LIST
        known = read_json(listing) if listing.is_file() else {}
        if known.get(samples.digest) != str(file.absolute()):
            write_atomically(listing, json.dumps(known | {samples.digest: str(file.absolute())}, indent=1) + "\n")

    def _digest(self, samples: AnswerSamples) -> str:
        self._weights = self._weights or weights_digest(self._source)
        made_from = [_VERSION, self._weights, samples.digest, str(self._dtype)]
        if self._is_sharded and self._dtype != torch.float32:
            made_from.append("sharded")  # blocks are gathered in that type, so the residual stream is rounded as well
        return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:32]

    def _computed(self, samples: AnswerSamples) -> NDArray[np.float32]:
        """Computes the log-probabilities, of which each process takes a share."""
        distributed, size = self._distributed, self._pass_samples
        parallel = self._loaded()
        values = torch.zeros(len(samples), 2, device=distributed.device)
        starts = range(distributed.rank * size, len(samples), distributed.world_size * size)
        bar = progress_bar(MofNCompleteColumn(), wanted=None if distributed.is_main else False)
        with bar, torch.no_grad(), autocast(distributed.device, self._dtype):
            task = bar.add_task("Reference log-probabilities", total=len(samples))
            for start, counts in parallel.in_step(starts, 0, lambda: 0):
                stop = min(start + size, len(samples))
                batch = samples.batch(np.arange(start, stop)).to(distributed.device)
                logprobs = self._logprobs(parallel.model, batch).view(-1, 2)
                if counts:
                    values[start:stop] = logprobs
                    bar.update(task, completed=min(start + distributed.world_size * size, len(samples)))
        found: NDArray[np.float32] = over_processes(values).cpu().numpy()
        return found

    def _loaded(self) -> ParallelModel:
        """Returns the model, sharded if the run shards the one that it trains."""
        if self._parallel is None:
            distributed = self._distributed
            # A sharded model moves to its device a block at a time.
            device = torch.device("cpu") if self._is_sharded else distributed.device
            model = self._source.model("float32", device).requires_grad_(False)
            sharding = "fsdp" if self._is_sharded else "ddp"
            self._parallel = ParallelModel(model, distributed, sharding, self._dtype)
        return self._parallel

    def _logprobs(self, model: torch.nn.Module, batch: TokenBatch) -> torch.Tensor:
        backend = self._config.training.attention_backend
        return PreferenceTask.summed(token_losses(model, batch, attention_backend=backend), batch)

    @property
    def _pass_samples(self) -> int:
        """Samples of a pass: as many as one of training has, so that the same products are computed."""
        training = self._config.training
        return max(1, training.batch_size // (training.gradient_accumulation_steps * self._distributed.world_size))


def weights_digest(checkpoint: Checkpoint) -> str:
    """Returns a digest of the bytes of a checkpoint's weights and config, and of those of an adapter's base."""
    if checkpoint.is_gguf:
        return content_digest(checkpoint.path)
    files = sorted(file for pattern in ("*.safetensors", "*config.json") for file in checkpoint.path.glob(pattern))
    parts = [content_digest(file) for file in files]
    parts += [weights_digest(checkpoint.base)] if checkpoint.is_adapter else []
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(file: Path, samples: AnswerSamples) -> NDArray[np.float32] | None:
    """Returns the numbers of a file; None if there is none, or if it doesn't fit the samples."""
    if not file.is_file():
        return None
    try:
        values: NDArray[np.float32] = np.load(file)
    except (ValueError, EOFError, OSError):
        return None
    fits = values.shape == (len(samples), 2) and values.dtype == np.float32 and bool(np.isfinite(values).all())
    return values if fits else None


def _write(file: Path, values: NDArray[np.float32]) -> None:
    content = io.BytesIO()
    np.save(content, values)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, content.getvalue())
