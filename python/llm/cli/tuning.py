"""What the commands share that go on training a model on rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from llm.cli.arguments import Arguments, Command, check_texts, is_text, settings_table, sorted_arguments, with_settings
from llm.cli.processes import use_processes
from llm.cli.training import (
    Config,
    DryRun,
    FromStep,
    ListSettings,
    MaxRestarts,
    NumProcesses,
    Out,
    Overwrite,
    Resume,
    forecast,
    overrides_of,
    run_training,
)
from llm.errors import ConfigError

Model = Annotated[
    str | None,
    typer.Option("--model", "--init-from", help="A checkpoint, run, Hugging Face directory or .gguf file to tune."),
]
ChatTemplate = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="chatml, play or a Jinja file; default: the model's own."),
]
# Settings that have an option of their own in all of the commands.
OPTIONS: Mapping[str, Sequence[str]] = {
    "data.row_format": (),
    "data.too_long": (),
    "data.context_length": (),
    "training.epochs": (),
    "training.max_steps": (),
    "training.batch_size": (),
    "optimizer.learning_rate": ("--lr",),
    "training.seed": (),
    "training.device": (),
}


@dataclass(frozen=True)
class Verb:
    """A command that tunes a model.

    Attributes:
        name: The command, and the function of `llm` that it calls.
        kind: Kind of its rows, `data.kind`.
        about: What it does, in one line.
        options: Settings with an option of their own, besides `OPTIONS`.
        fixed: Settings that the command stands for.
    """

    name: str
    kind: str
    about: str
    options: Mapping[str, Sequence[str]]
    fixed: tuple[str, ...] = ()

    def command(self) -> Command:
        """Returns the command line's function."""
        words = typer.Argument(
            metavar="[MODEL] [CONFIG.toml] [DATA]... [section.field=value]...",
            help="The model, a settings file, files of rows and single settings. A setting is an option too: "
            "`--max-grad-norm 1`.",
        )

        @with_settings({**self.options, **OPTIONS})
        def run(
            arguments: Annotated[list[str] | None, words] = None,
            config: Config = None,
            model: Model = None,
            data: Annotated[
                list[str] | None, typer.Option(help="Rows: .jsonl or .parquet, a directory or glob; may be repeated.")
            ] = None,
            out: Out = None,
            chat_template: ChatTemplate = None,
            resume: Resume = False,
            from_step: FromStep = None,
            overwrite: Overwrite = False,
            nproc: NumProcesses = None,
            max_restarts: MaxRestarts = 0,
            dry_run: DryRun = False,
            settings: ListSettings = False,
            **options: Any,
        ) -> None:
            use_processes(self.name, nproc, max_restarts)
            if settings:
                print("\n".join(settings_table(arguments or [])))
                return
            given = sorted_arguments([*(arguments or []), *([config] if config else [])])
            given.overrides[:0] = self.fixed
            more = {"model": model, "chat_template": chat_template, "overwrite": overwrite, "from_step": from_step}
            self._run(given, more, (data or [], out, resume or from_step is not None, dry_run), options)

        run.__name__, run.__doc__ = self.name, self.about
        return run

    def _run(
        self,
        given: Arguments,
        more: dict[str, Any],
        asked: tuple[list[str], str | None, bool, bool],
        options: dict[str, Any],
    ) -> None:
        data, out, resume, dry_run = asked
        if resume and out is None and given.paths:
            out = given.paths.pop()
        if more["model"] is None and not resume and given.paths and not _names_rows(given.paths[0]):
            more["model"] = given.paths.pop(0)
        check_texts(given.paths)
        rows = [*data, *given.paths]
        if dry_run:
            from llm.api import tuning_overrides

            overrides = overrides_of(given, options)
            forecast(given, tuning_overrides(self.kind, more["model"], rows, more["chat_template"], overrides))
            return
        if out is None:
            hint = f"name the run's directory, such as `--out {_example_run(rows)}`"
            raise ConfigError(f"`--out` is missing\nhint: {hint}")
        more |= {
            "config": given.file,
            "data": rows or None,
            "overrides": overrides_of(given, options),
        }
        self._train(out, {"resume" if resume else "out": out} | more)

    def _train(self, out: str, arguments: dict[str, Any]) -> None:
        import llm.api

        run_training(self.name, out, lambda: getattr(llm.api, self.name)(**arguments))


def _names_rows(path: str) -> bool:
    """Returns whether an argument is rows rather than a model, which may be missing where a settings file names it."""
    is_model = any((Path(path) / name).is_file() for name in ("config.json", "run.json", "adapter_config.json"))
    return is_text(path) and not is_model


def _example_run(rows: list[str]) -> str:
    name = Path(rows[0]).name.partition(".")[0] if rows else ""
    return f"runs/{name if name.isidentifier() else 'tuned'}"
