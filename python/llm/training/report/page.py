"""Writes `report.html`."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from html import escape
from typing import Any

from llm.checkpoint import write_atomically
from llm.settings.run import RunConfig
from llm.training.record import RunRecord
from llm.training.report.curves import Curve, keys_below, loss_curves, points_of, smoothed
from llm.training.report.settings import flat_settings
from llm.training.report.svg import NARROW, STYLE, WIDE, chart, legend, short

_CHARTS = (
    ("Reward", "reward", "faint"),
    ("Reward of likeliest answers, validation", "validation_reward", "dots"),
    ("Answer length, tokens", "answer_tokens", "line"),
    ("Share of truncated answers", "truncated_share", "line"),
    ("Share of groups without spread", "zero_spread_share", "line"),
    ("Divergence from the start", "kl", "line"),
    ("Difference of engine and training, mean log-probability", "logprob_difference", "line"),
    ("Seconds of drawing", "rollout_s", "line"),
    ("Bits per byte, validation", "bits_per_byte", "dots"),
    ("Learning rate", "learning_rate", "line"),
    ("Gradient norm", "grad_norm", "faint"),
    ("Tokens per second", "tokens_per_s", "line"),
    ("Samples per second", "samples_per_s", "line"),
    ("Model FLOPs utilization", "mfu", "line"),
    ("Memory, bytes", "memory_bytes", "line"),
)
_MAX_SAMPLES = 24
_CSS = """
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 28px 20px 60px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; color-scheme: light dark; }
h1 { font-size: 24px; margin: 0; } h2 { font-size: 17px; margin: 34px 0 10px; } h3 { font-size: 14px; margin: 0 0 4px; }
.about, .legend, caption { color: var(--soft); } .about { margin: 2px 0 18px; }
.state { font-size: 12px; border: 1px solid var(--grid); border-radius: 99px; padding: 2px 10px; margin-left: 10px;
  vertical-align: middle; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 10px; }
.tiles div, figure, .sample { border: 1px solid var(--grid); border-radius: 10px; padding: 10px 14px; margin: 0; }
.tiles b { display: block; font-size: 19px; white-space: nowrap; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 14px; }
.charts svg { width: 100%; height: auto; display: block; }
.charts .wide { grid-column: 1 / -1; }
.legend { margin: 0 0 4px; font-size: 13px; } .key { margin-right: 16px; }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px; margin-right: 6px; vertical-align: middle;
  background: var(--key); border-radius: 2px; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 14px; }
.sample pre { margin: 6px 0 0; white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.45 ui-monospace, monospace;
  max-height: 300px; overflow: auto; }
.prompt { color: var(--soft); } .step { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; } td, th { text-align: left; padding: 4px 12px 4px 0;
  border-bottom: 1px solid var(--grid); vertical-align: top; overflow-wrap: anywhere; } th { font-weight: 500; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 28px; }
.loads td { text-align: right; font-variant-numeric: tabular-nums; } summary { cursor: pointer; color: var(--soft); }
"""


def write_report(record: RunRecord) -> None:
    """Writes the page of a run, `report.html`."""
    write_atomically(record.run.report_file, report_page(record))


def report_page(record: RunRecord) -> str:
    """Returns the page of a run: one file that loads nothing and runs no script."""
    body = [
        f'<h1>{escape(record.name)}<span class="state">{record.state}</span></h1>',
        f'<p class="about">{escape(_about(record))}</p>',
        tiles(run_figures(record)),
        section("Curves", f'<div class="charts">{"".join(_charts(record.log))}</div>'),
        section("Samples", _samples(record.run.samples.read())),
        section("Load of the experts", _expert_loads(record.last("expert_load"))),
        section("Settings", _settings(record)),
        section("Machine", _facts(record)),
    ]
    return document(f"{record.name} · llm-oxide", body)


def document(title: str, body: Iterable[str]) -> str:
    """Returns a whole page in HTML."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}{_CSS}</style></head>'
    )
    return "\n".join([head, "<body>", *body, "</body></html>", ""])


def section(title: str, content: str) -> str:
    """Returns a part of the page with its heading; nothing without content."""
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>" if content else ""


def tiles(figures: Mapping[str, str]) -> str:
    """Returns figures side by side, each with its name below."""
    return "".join(
        ['<div class="tiles">']
        + [f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in figures.items()]
        + ["</div>"]
    )


def figure(title: str, curves: Sequence[Curve], kind: str = "") -> str:
    """Returns a chart with its title and legend, over all columns if `kind` is `wide`; nothing without points."""
    drawing = chart(title, curves, width=WIDE if kind == "wide" else NARROW)
    return f'<figure class="{kind}"><h3>{escape(title)}</h3>{legend(curves)}{drawing}</figure>' if drawing else ""


def rows(values: Mapping[str, Any]) -> str:
    """Returns a table of names and values."""
    cells = (f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in values.items())
    return f"<table>{''.join(cells)}</table>"


def run_figures(record: RunRecord) -> dict[str, str]:
    """Returns the figures that people ask for first, in words; those that the run doesn't have are left out."""
    total = f" / {record.total_steps:,}" if record.total_steps else ""
    unit = record.about.get("unit", "tokens")
    seen, speed, elapsed, mfu = (record.last(key) for key in (unit, f"{unit}_per_s", "elapsed_s", "mfu"))
    found: dict[str, str | None] = {
        "validation loss": _fixed(record.last("validation_loss")),
        "reward": _fixed(record.last("reward")),
        "bits per byte": _fixed(record.last("bits_per_byte")),
        "training loss": _fixed(_last_smoothed(record.log)),
        "steps": f"{record.step:,}{total}",
        unit: None if seen is None else short(seen),
        "time": None if elapsed is None else str(timedelta(seconds=round(elapsed))),
        f"{unit} per second": None if speed is None else f"{speed:,.0f}",
        "MFU": None if mfu is None else f"{mfu:.1%}",
    }
    return {name: value for name, value in found.items() if value is not None}


def _fixed(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _last_smoothed(log: Sequence[Mapping[str, Any]]) -> float | None:
    curve = smoothed(points_of(log, "loss"))
    return curve[-1][1] if curve else None


def _about(record: RunRecord) -> str:
    about, model = record.about, record.config.model
    parts = [
        f"{about['num_parameters']:,} parameters" if "num_parameters" in about else "",
        f"{model.num_hidden_layers} layers of width {model.hidden_size}",
        f"context {record.config.context_length:,}",
        f"batch {record.config.training.batch_size}",
        f"{about['precision']} on {about['device']}" if "precision" in about else "",
    ]
    return " · ".join(part for part in parts if part)


def _charts(log: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [figure("Loss", loss_curves(log), "wide")]
    for outer, title in (("loss", "Loss by source"), ("validation_loss", "Validation loss by source")):
        names = keys_below(log, outer)
        curves = [
            Curve(name, smoothed(points_of(log, f"{outer}/{name}")), "line", idx) for idx, name in enumerate(names)
        ]
        found.append(figure(title, curves))
    rewards = [
        Curve(name, smoothed(points_of(log, f"rewards/{name}")), "line", idx)
        for idx, name in enumerate(keys_below(log, "rewards"))
    ]
    found.append(figure("Rewards", rewards))
    accuracy = [
        Curve("training, smoothed", smoothed(points_of(log, "accuracy"))),
        Curve("validation", points_of(log, "validation_accuracy"), "dots", 1),
    ]
    found.append(figure("Pairs in the right order", accuracy))
    for title, key, style in _CHARTS:
        points = points_of(log, key)
        if style == "faint":
            found.append(figure(title, [Curve(title, points, "faint"), Curve(title, smoothed(points))]))
        else:
            found.append(figure(title, [Curve(title, points, "dots" if style == "dots" else "line")]))
    return found


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    """Shows samples from the first to the last; of many, some of all times."""
    count = len(samples)
    places = sorted({round(idx * (count - 1) / max(1, _MAX_SAMPLES - 1)) for idx in range(min(count, _MAX_SAMPLES))})
    chosen = samples if count <= _MAX_SAMPLES else [samples[place] for place in places]
    cards = [
        f'<div class="sample"><span class="step">step {sample["step"]:,}{_reward(sample)}</span>'
        '<pre><span class="prompt">'
        f"{escape(str(sample.get('prompt', '')))}</span>{escape(str(sample.get('text', '')))}</pre></div>"
        for sample in chosen
    ]
    return f'<div class="samples">{"".join(cards)}</div>' if cards else ""


def _reward(sample: Mapping[str, Any]) -> str:
    return f" · reward {sample['reward']:.3g}" if "reward" in sample else ""


def _expert_loads(loads: Any) -> str:
    """Shows the share of tokens that each expert of each layer got in the last logged step."""
    if not isinstance(loads, list) or not loads:
        return ""
    lines = []
    for number, layer in enumerate(loads):
        shades = (min(90.0, 30 * share * len(layer)) for share in layer)  # 30 %: an equal share
        cells = "".join(
            f'<td style="background: color-mix(in srgb, var(--c0) {shade:.0f}%, transparent)">{share:.1%}</td>'
            for share, shade in zip(layer, shades, strict=True)
        )
        lines.append(f"<tr><th>layer {number}</th>{cells}</tr>")
    return f'<table class="loads">{"".join(lines)}</table>'


def _settings(record: RunRecord) -> str:
    values, defaults = flat_settings(record.config), flat_settings(RunConfig())
    changed = {name: value for name, value in values.items() if value != defaults.get(name)}
    return (
        f"<p>These differ from the defaults:</p>{rows(changed)}<details><summary>all settings</summary>"
        f"{rows(values)}</details>"
    )


def _facts(record: RunRecord) -> str:
    parts = [rows(record.about[name]) for name in ("machine", "versions") if record.about.get(name)]
    return f'<div class="columns">{"".join(f"<div>{part}</div>" for part in parts)}</div>' if parts else ""
