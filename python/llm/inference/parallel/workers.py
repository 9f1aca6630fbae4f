"""The other ranks of a model that is split: processes that rank 0 starts, watches and ends."""

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import torch

from llm.errors import CheckpointError, LLMError, ProcessLostError
from llm.inference.parallel import group
from llm.inference.parallel.messages import Failed, Job, Message, Report, read, write
from llm.settings.engine import EngineConfig

ReportT = TypeVar("ReportT")
Listener = Callable[[LLMError], None]

_ENDS_WITHIN_S = 5.0
_REPORTS_WITHIN_S = 5.0


class _Loss:
    """Whether a rank was lost; outlives the `Workers` object, which the threads that watch must not keep alive."""

    def __init__(self) -> None:
        self.error: LLMError | None = None
        self.is_closing = False
        self.listeners: list[Listener] = []
        self.happened = threading.Event()
        self._lock = threading.Lock()

    def tell(self, error: LLMError) -> None:
        """Records the first loss and calls the listeners."""
        with self._lock:
            if self.is_closing or self.error is not None:
                return
            self.error = error
        self.happened.set()
        for listener in self.listeners:
            listener(error)
        group.abort()


class Workers:
    """Starts a process for each rank but 0, which loads its part of a checkpoint, and passes messages on.

    A rank that this process is connected to by a pipe sees its end whatever ends it, and ends as well.

    Args:
        path: The checkpoint.
        dtype: Type of the weights, as `load_engine` takes it.
        devices: Device of each rank.
        limits: Limits of the engine.

    Attributes:
        size: Number of ranks, rank 0 included.
        store: File through which the ranks find each other.
    """

    def __init__(self, path: Path, dtype: str, devices: Sequence[torch.device], limits: EngineConfig) -> None:
        self.size = len(devices)
        directory = Path(tempfile.mkdtemp(prefix="llm-ranks-"))
        self.store = directory / "store"
        earlier = torch.get_num_threads()
        threads = max(1, earlier // self.size)
        self._loss = _Loss()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._end = weakref.finalize(self, _end, self._processes, self._loss, directory, earlier)
        if devices[0].type == "cpu":
            torch.set_num_threads(threads)  # the ranks share the cores
        for rank, device in list(enumerate(devices))[1:]:
            self._processes.append(_started())
            job = Job(
                path=str(path),
                dtype=dtype,
                device=str(device),
                rank=rank,
                size=self.size,
                store=str(self.store),
                torch_threads=threads,
                limits=limits,
            )
            write(_stdin(self._processes[-1]), job)

    def send(self, message: Message) -> None:
        """Sends a message to each rank.

        Raises:
            ProcessLostError: A rank has ended.
        """
        if self._loss.error is not None:
            raise self._loss.error
        try:
            for process in self._processes:
                write(_stdin(process), message)
        except (OSError, ValueError) as error:
            raise self.lost(error) from error

    def reports(self, kind: type[ReportT]) -> list[ReportT]:
        """Waits for one report from each rank.

        Raises:
            CheckpointError: A rank can't load its part; the error is its own.
            ProcessLostError: A rank has ended.
        """
        found = []
        for rank, process in enumerate(self._processes, start=1):
            report = read(_stdout(process), Report)
            if isinstance(report, Failed):
                raise CheckpointError(f"rank {rank} of {self.size}: {report.message}")
            if not isinstance(report, kind):
                raise _loss_of(process, rank, self.size, None)
            found.append(report)
        return found

    def watch(self, listener: Listener | None = None) -> None:
        """Calls a listener, from a thread of its own, once a rank is lost; without one, begins to watch the ranks."""
        if listener is not None:
            self._loss.listeners.append(listener)
            return
        for rank, process in enumerate(self._processes, start=1):
            arguments = (process, rank, self.size, self._loss)
            threading.Thread(target=_watch, args=arguments, name=f"llm-rank-{rank}", daemon=True).start()

    def lost(self, error: Exception) -> LLMError:
        """Returns the error for a pass or a message that failed with `error`, and ends the ranks."""
        self._loss.happened.wait(_REPORTS_WITHIN_S)  # a rank that has ended has the better message
        self.abandon(str(error))
        return cast(LLMError, self._loss.error)

    def abandon(self, reason: str) -> None:
        """Ends the ranks because they are out of step, unless one is lost already."""
        self._loss.tell(ProcessLostError(f"the ranks of the model are out of step: {reason}\nhint: start again"))
        self.close()

    def close(self) -> None:
        """Ends the ranks; the second call does nothing."""
        self._end()


def _started() -> "subprocess.Popen[bytes]":
    # A session of its own: Ctrl-C reaches this process only, which ends the ranks when it has finished.
    command = [sys.executable, "-m", "llm.inference.parallel"]
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )


def _watch(process: "subprocess.Popen[bytes]", rank: int, size: int, loss: _Loss) -> None:
    """Waits for a rank's end, which is an error unless `loss.is_closing`."""
    report = read(_stdout(process), Report)
    loss.tell(_loss_of(process, rank, size, report))


def _loss_of(process: "subprocess.Popen[bytes]", rank: int, size: int, report: Any) -> ProcessLostError:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_ENDS_WITHIN_S)
    code = process.returncode
    how = "hangs" if code is None else f"exited with code {code}"
    if code is not None and code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
    why = f": {report.message}" if isinstance(report, Failed) else ""
    return ProcessLostError(
        f"rank {rank} of {size}, process {process.pid}, which holds a part of the model, {how}{why}\nhint: start again"
    )


def _end(processes: "list[subprocess.Popen[bytes]]", loss: _Loss, directory: Path, threads: int) -> None:
    loss.is_closing = True
    for process in processes:
        with contextlib.suppress(OSError):
            _stdin(process).close()
    for process in processes:
        try:
            process.wait(0.0 if loss.error else _ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    group.leave()
    torch.set_num_threads(threads)
    shutil.rmtree(directory, ignore_errors=True)


def _stdin(process: "subprocess.Popen[bytes]") -> BinaryIO:
    return cast(BinaryIO, process.stdin)


def _stdout(process: "subprocess.Popen[bytes]") -> BinaryIO:
    return cast(BinaryIO, process.stdout)
