"""The serving table: each server's figures at each load, beside ours, and which bars are met."""

import os
from typing import Any

from report import machine

# Ours over the best of vLLM's, by clients: what has to hold, and what is aimed at.
MUST = {1: 1.5, 8: 1.5, 32: 1.25}
AIM = {1: 1.8, 8: 2.2, 32: 1.6}
# Our median first token over that of vLLM's faster variant.
AIM_FIRST_TOKEN = {1: 0.9, 8: 0.5, 32: 0.5}
START_S = 10.0
SHARED_PREFIX = 3.0
# Packed weights over llama.cpp's server and over our own bf16, with more clients than one.
OURS, OURS_BF16 = "ours", "ours, bf16"
AIM_PACKED = {"llama.cpp": 3.0, OURS_BF16: 1.4}
# The load that the bars are for.
STANDARD = {"prompt tokens": 142, "output tokens": 128}


def facts(command: str, settings: dict[str, Any], loads: list[float]) -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "machine": machine(),
        "command": command,
        "settings": settings,
        "load average": {"before": round(loads[0], 2), "highest between loads": round(max(loads), 2)},
    }


def heading(document: dict[str, Any]) -> list[str]:
    """The lines above a table."""
    here, load = document["machine"], document["load average"]
    settings = ", ".join(f"{key} {value}" for key, value in document["settings"].items())
    return [
        f"{here['cpu']} ({here['cores']} cores, {', '.join(here['vectors'])}), Python {here['python']}, load average "
        f"{load['before']} before, at most {load['highest between loads']} between loads (they count themselves).",
        f"`{document['command']}`: {settings}. Medians over rounds; × is ours over theirs, above 1 is ours ahead; for "
        "times it is ours over theirs too, so below 1 is ours ahead.",
        "",
    ]


def throughput(document: dict[str, Any]) -> str:
    """The tables of servers under load, from `levels` and `servers`."""
    lines, same = heading(document), document["agreement"]["share in common with ours"]
    lines += [
        "| clients | server | output tokens/s | spread | × | first token p50 ms | × | p99 ms | inter-token ms | × |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for clients, figures in document["levels"].items():
        lines += [_line(clients, label, one, figures.get(OURS)) for label, one in figures.items()]
    lines += [
        "",
        "| server | start to first token s | resident MB, idle | under load | answers begin as ours |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {label} | {one['start_s']:.1f} | {one['idle_bytes'] / 1e6:.0f} | {one['loaded_bytes'] / 1e6:.0f} "
        f"| {f'{same[label]:.0%}' if label in same else '–'} |"
        for label, one in document["servers"].items()
    ]
    return "\n".join([*lines, "", *bars(document), ""])


def _line(clients: str, label: str, figures: dict[str, float], ours: dict[str, float] | None) -> str:
    def ratio(key: str) -> str:
        return "–" if ours is None or label == OURS else f"{ours[key] / figures[key]:.2f}"

    cells = [
        clients,
        label,
        f"{figures['output_tokens_per_s']:.1f}",
        f"{figures['spread']:.0%}",
        ratio("output_tokens_per_s"),
        f"{figures['first_token_p50_s'] * 1e3:.0f}",
        ratio("first_token_p50_s"),
        f"{figures['first_token_p99_s'] * 1e3:.0f}",
        f"{figures['inter_token_p50_s'] * 1e3:.1f}",
        ratio("inter_token_p50_s"),
    ]
    return "| " + " | ".join(cells) + " |"


def bars(document: dict[str, Any]) -> list[str]:
    """The lines that say whether what was promised holds; none without ours, or for another load."""
    if any(document["settings"].get(key) != number for key, number in STANDARD.items()):
        return []
    lines = []
    for clients, figures in document["levels"].items():
        theirs = [one for label, one in figures.items() if label.startswith("vllm")]
        number, ours = int(clients), figures.get(OURS)
        for label, aim in AIM_PACKED.items() if ours is not None and number > 1 else ():
            if label in figures:
                rate = ours["output_tokens_per_s"] / figures[label]["output_tokens_per_s"]
                lines.append(f"| {clients} clients, beside {label} | {rate:.2f} | | ≥ {aim} {_met(rate >= aim)} |")
        for label in (OURS, OURS_BF16) if theirs and number in MUST else ():
            if label in figures:
                lines += _beside_vllm(number, label, figures[label], theirs)
    if (start := document["servers"].get(OURS, {}).get("start_s")) is not None:
        lines.append(f"| start to first token, s | {start:.1f} | ≤ {START_S:.0f} {_met(start <= START_S)} | |")
    return ["| bar | found | must | aim |", "|---|---|---|---|", *lines] if lines else []


def _beside_vllm(clients: int, label: str, ours: dict[str, float], theirs: list[dict[str, float]]) -> list[str]:
    """Tokens a second and first tokens beside vLLM's better variant."""
    rate = ours["output_tokens_per_s"] / max(one["output_tokens_per_s"] for one in theirs)
    first = ours["first_token_p50_s"] / min(one["first_token_p50_s"] for one in theirs)
    must, aim, limit = MUST[clients], AIM[clients], AIM_FIRST_TOKEN[clients]
    return [
        f"| {clients} clients, {label}, beside vLLM's better | {rate:.2f} | ≥ {must} {_met(rate >= must)} "
        f"| ≥ {aim} {_met(rate >= aim)} |",
        f"| {clients} clients, {label}, first token p50 | {first:.2f} | | ≤ {limit} {_met(first <= limit)} |",
    ]


def _met(is_met: bool) -> str:
    return "yes" if is_met else "**no**"


def shared_prefix(document: dict[str, Any]) -> str:
    """The load's table, and what the cache gains."""
    figures = next(iter(document["levels"].values()))
    table = throughput(document)
    with_cache, without = figures.get(OURS), figures.get(f"{OURS}, no prefix cache")
    if with_cache is None or without is None:
        return table
    gain = with_cache["output_tokens_per_s"] / without["output_tokens_per_s"]
    met = _met(gain >= SHARED_PREFIX)
    return f"{table}Ours with the prefix cache over ours without: {gain:.2f} (aim ≥ {SHARED_PREFIX}: {met})\n"


def offline(document: dict[str, Any]) -> str:
    """The table of whole workloads."""
    lines = heading(document)
    lines += [
        "| engine | seconds | output tokens/s | × | all tokens/s | load s | peak resident MB |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = document["engines"].get(OURS)
    for label, one in document["engines"].items():
        ratio = "–" if ours is None or label == OURS else f"{one['seconds'] / ours['seconds']:.2f}"
        lines.append(
            f"| {label} | {one['seconds']:.1f} | {one['output_tokens'] / one['seconds']:.1f} | {ratio} "
            f"| {(one['output_tokens'] + one['prompt_tokens']) / one['seconds']:.1f} | {one['load_s']:.1f} "
            f"| {one['peak_bytes'] / 1e6:.0f} |"
        )
    return "\n".join([*lines, ""])


def load_average() -> float:
    """Of the last minute; 0 where there is none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
