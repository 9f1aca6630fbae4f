"""Low-rank adapters of a served model: read, checked and numbered, and given to what runs the model."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from llm.checkpoint import Checkpoint, resolve
from llm.checkpoint.adapters import Adapter, read_adapter
from llm.errors import CapacityError, CheckpointError, ConfigError, InvalidArgumentError
from llm.inference.runners.base import AdapterLayers, AdapterRunner, ModelRunner
from llm.models.adapters import Projection, check_fit, projections_of
from llm.models.layers.lora import Factors

# More channels than this are a sign of a mistake, and make an adapter as slow as the model.
MAX_RANK = 512
_MAX_NUMBER = 2**16 - 1


class ServedAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that requests may name.

    Attributes:
        name: Its name.
        path: Its directory.
        number: Its number among all that the engine ever had, from 1 on; the prefix cache tells adapters apart by it.
        rank: Its highest rank.
    """

    name: str
    path: Path
    number: int
    rank: int


class ServedAdapters(Mapping[str, ServedAdapter]):
    """The adapters of an engine by their names.

    Only the thread that owns the engine may change them; any thread may call `prepared`.

    Args:
        runner: What runs the model.
        base: The model's checkpoint, whose weights an adapter's digests are checked against; None skips that.
    """

    def __init__(self, runner: ModelRunner, base: Checkpoint | None = None) -> None:
        self._runner, self._base = runner, base
        self._served: dict[str, ServedAdapter] = {}
        self._requests: dict[int, int] = {}  # number of the adapter of each request that has one
        self._names: dict[int, str] = {}
        self._last_number = 0

    def __getitem__(self, name: str) -> ServedAdapter:
        return self._served[name]

    def __iter__(self) -> "Iterable[str]":  # type: ignore[override]
        return iter(tuple(self._served))

    def __len__(self) -> int:
        return len(self._served)

    def prepared(self, path: str | os.PathLike[str]) -> tuple[Path, Mapping[str, Factors], AdapterLayers]:
        """Reads an adapter, or a run's newest one, and checks it against the model; returns what `add` takes.

        Raises:
            CheckpointError: There is no adapter, it is damaged or another base's, or of a kind that can't be served.
        """
        found = resolve(path)
        if not found.is_adapter:
            raise CheckpointError(
                f"{found} must hold an adapter, in `adapter_config.json` and `adapter_model.safetensors`, "
                "got a whole model"
            )
        adapter = read_adapter(found.path)
        model = self._runner.model
        projections = projections_of(model)
        check_fit(model, projections, adapter.factors)
        self._check_base(adapter)
        _check_kind(adapter)
        layers: dict[str, list[tuple[Projection, Factors]]] = {}
        for name, own in adapter.factors.items():
            part = projections[name]
            factors = Factors(own.lora_a, part.from_disk(own.lora_b), own.scale)
            layers.setdefault(part.path, []).append((part, factors))
        for parts in layers.values():
            parts.sort(key=lambda entry: entry[0].rows.start)
        self._adapting.check_adapter(layers)
        return found.path, adapter.factors, layers

    @property
    def _adapting(self) -> AdapterRunner:
        if not isinstance(self._runner, AdapterRunner):
            raise ConfigError(f"{self._runner.backend} can't run adapters\nhint: `llm merge`")
        return self._runner

    def _check_base(self, adapter: Adapter) -> None:
        if self._base is not None:
            self._base.check_as_base(adapter)

    def add(self, name: str, prepared: tuple[Path, Mapping[str, Factors], AdapterLayers]) -> ServedAdapter:
        """Serves an adapter that `prepared` returned.

        Raises:
            InvalidArgumentError: An adapter of this name is served already.
            CapacityError: The engine has had 65,535 adapters.
        """
        if name in self._served:
            raise InvalidArgumentError(f"an adapter {name!r} is loaded already\nhint: unload it first")
        if self._last_number == _MAX_NUMBER:
            raise CapacityError(f"an engine takes at most {_MAX_NUMBER} adapters in its life\nhint: start it again")
        path, factors, layers = prepared
        number = self._last_number + 1
        self._adapting.set_adapter(number, layers)
        self._last_number = number
        rank = max(len(own.lora_a) for own in factors.values())
        self._names[number] = name
        self._served[name] = ServedAdapter(name=name, path=path, number=number, rank=rank)
        return self._served[name]

    def remove(self, name: str) -> None:
        """Ends the service of an adapter; requests that already run with it go on.

        Raises:
            InvalidArgumentError: No adapter has this name.
        """
        number = self.number_of(name)
        del self._served[name]
        self._drop(number)

    def number_of(self, name: str | None) -> int:
        """Returns the number of an adapter, 0 for None.

        Raises:
            InvalidArgumentError: No adapter has this name.
        """
        if name is None:
            return 0
        if name not in self._served:
            known = ", ".join(self._served) or "none"
            raise InvalidArgumentError(f"`adapter` must be one of the loaded ones ({known}), got {name!r}")
        return self._served[name].number

    def name_of(self, number: int) -> str:
        """Returns the name of an adapter by its number, of one that is no longer served too."""
        return self._names[number]

    def hold(self, request_ids: Sequence[int], number: int) -> None:
        """Records that requests run with an adapter, until `release`."""
        if number:
            self._requests.update(dict.fromkeys(request_ids, number))

    def release(self, request_id: int) -> None:
        """Records that a request has ended, with or without an adapter."""
        number = self._requests.pop(request_id, 0)
        if number:
            self._drop(number)

    def num_requests(self) -> dict[str, int]:
        """Returns how many requests each adapter has, waiting or running."""
        running = list(self._requests.values())
        return {name: running.count(own.number) for name, own in self._served.items()}

    def _drop(self, number: int) -> None:
        """Frees an adapter that neither a name nor a request stands for."""
        is_named = any(own.number == number for own in self._served.values())
        if not is_named and number not in self._requests.values():
            self._adapting.set_adapter(number, None)


def _check_kind(adapter: Adapter) -> None:
    for name, factors in adapter.factors.items():
        if factors.magnitude is not None:
            raise CheckpointError(
                f"{adapter.path} trains lengths of rows (DoRA), which can't be served beside others: "
                f"{name}.lora_magnitude_vector\nhint: `llm merge` writes it and its base as one model"
            )
        if len(factors.lora_a) > MAX_RANK:
            raise CheckpointError(
                f"a served adapter must have a rank of at most {MAX_RANK}, got {len(factors.lora_a)} in {name}.lora_A"
                "\nhint: `llm merge` writes it and its base as one model"
            )
