"""Medians and spread as JSON, and as a table that says which bars are met."""

import os
import platform
import statistics
from pathlib import Path
from typing import Any

from workloads import GROUPS, LONG, SHORT, Group

# A trainer whose tokens differ more than ties can explain does other work than ours.
LEAST_IN_COMMON = 0.98
# Flags of a processor that decide which kernels run.
VECTORS = ("avx2", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def value(group: Group, seconds: float, about: dict[str, Any]) -> float:
    """A time in the group's unit."""
    if group.unit == "MB/s":
        return about["bytes"] / seconds / 1e6
    return seconds / about["calls"] * {"µs": 1e6, "ms": 1e3, "s": 1.0}[group.unit]


def shown(group: Group, seconds: list[float], about: dict[str, Any]) -> str:
    middle, best, worst = (value(group, pick(seconds), about) for pick in (statistics.median, min, max))
    return f"{_number(middle)} {group.unit} ({_number(best)} … {_number(worst)}, {len(seconds)} times)"


def _number(number: float) -> str:
    return f"{number:.3g}" if number < 100 else f"{number:,.0f}"


def machine() -> dict[str, Any]:
    """What the numbers hold for."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    about = {key.strip(): text.strip() for key, _, text in (line.partition(":") for line in lines)}
    flags = about.get("flags", "").split()
    return {
        "cpu": about.get("model name", platform.processor()),
        "family and model": f"{about.get('cpu family', '?')}/{about.get('model', '?')}",
        "cores": os.cpu_count(),
        "vectors": [flag for flag in VECTORS if flag in flags],
        "system": platform.system(),
        "python": platform.python_version(),
    }


def document(
    results: dict[tuple[str, str, str], dict[str, Any]],
    versions: dict[str, str],
    command: str,
    highest_load: float,
    common: list[tuple[str, str, float]],
) -> dict[str, Any]:
    rows = []
    for (group, vocabulary, row), contenders in results.items():
        digests = {name: _digest(GROUPS[group], result) for name, result in contenders.items()}
        kept = {name: digest for name, digest in digests.items() if digest is not None}
        rows.append({"group": group, "vocabulary": vocabulary, "row": row, "contenders": kept})
    return {
        "machine": machine(),
        "versions": versions,
        "command": command,
        "highest load average": round(highest_load, 2),
        "tokens in common": {f"{split} {trainer}": round(share, 4) for split, trainer, share in common},
        "rows": rows,
    }


def _digest(group: Group, result: Any) -> dict[str, Any] | None:
    about = result.about
    if about.get("absent"):
        return None
    if not result.seconds:
        return {"left out": "unequal" if about.get("unequal") else about.get("failed") or "no result"}
    numbers = {
        "unit": group.unit,
        "value": value(group, statistics.median(result.seconds), about),
        "median_s": statistics.median(result.seconds),
        "min_s": min(result.seconds),
        "max_s": max(result.seconds),
        "times": len(result.seconds),
    }
    return numbers | ({"peak_rss_bytes": about["peak_rss"]} if about.get("peak_rss") else {})


def markdown(document: dict[str, Any]) -> str:
    """The table, then what follows from it: growth, threads and memory."""
    machine, versions = document["machine"], document["versions"]
    lines = [
        f"{machine['cpu']} (family/model {machine['family and model']}, {machine['cores']} cores, "
        f"{', '.join(machine['vectors'])}), Python {machine['python']}, "
        f"highest load average {document['highest load average']}.",
        ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        f"`{document['command']}`. Medians (spread = (max - min) / median). "
        "Ratio: the fastest peer's time over ours, above 1 is ours ahead.",
        "",
        "| work | vocabulary | text | ours | spread | fastest peer | ratio | bar | met | × tiktoken | others |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row, document["tokens in common"]) for row in document["rows"]),
        "",
    ]
    derived = [*_growth(document), *_threads(document), *_memory(document)]
    if derived:
        lines += ["| also | vocabulary | text | found | limit | met |", "|---|---|---|---|---|---|", *derived, ""]
    return "\n".join(lines)


def _line(row: dict[str, Any], common: dict[str, float]) -> str:
    group, contenders = GROUPS[row["group"]], row["contenders"]
    ours = contenders.get("ours", {"left out": "not run"})
    timed = {name: c for name, c in contenders.items() if name != "ours" and "median_s" in c}
    counted = {name: c for name, c in timed.items() if _same_work(group, name, common)}
    ranked = sorted(timed, key=lambda name: timed[name]["median_s"])
    fastest = next((name for name in ranked if name in counted), None)
    others = [f"{name} {_number(timed[name]['value'])}" for name in ranked if name != fastest]
    others += [f"{name}: {c['left out']}" for name, c in contenders.items() if "left out" in c and name != "ours"]
    cells = [group.name, row["vocabulary"], row["row"]]
    if "median_s" not in ours:
        best = f"{fastest} {_number(timed[fastest]['value'])}" if fastest else "–"
        return "| " + " | ".join([*cells, ours["left out"], "–", best, "–", "–", "–", "–", ", ".join(others)]) + " |"
    spread = (ours["max_s"] - ours["min_s"]) / ours["median_s"]
    cells += [f"{_number(ours['value'])} {group.unit}", f"{spread:.0%}"]
    if fastest is None:
        return "| " + " | ".join([*cells, "–", "–", f"{group.bar:.2f}", "–", "–", ", ".join(others)]) + " |"
    ratio = timed[fastest]["median_s"] / ours["median_s"]
    cells += [
        f"{fastest} {_number(timed[fastest]['value'])}",
        f"{ratio:.2f}",
        f"{group.bar:.2f}",
        _met(ratio >= group.bar),
    ]
    return "| " + " | ".join([*cells, _beside_tiktoken(group, ours, timed), ", ".join(others)]) + " |"


def _same_work(group: Group, name: str, common: dict[str, float]) -> bool:
    """Trainers count only if they learn what ours learns."""
    return not group.name.startswith("train") or common.get(f"{group.method} {name}", 0.0) >= LEAST_IN_COMMON


def _met(is_met: bool) -> str:
    return "yes" if is_met else "**no**"


def _beside_tiktoken(group: Group, ours: dict[str, Any], timed: dict[str, Any]) -> str:
    if "tiktoken" not in timed:
        return "–"
    ratio = timed["tiktoken"]["median_s"] / ours["median_s"]
    if not group.must_tiktoken:
        return f"{ratio:.1f}"
    return f"{ratio:.1f} (must {group.must_tiktoken:.0f}: {_met(ratio >= group.must_tiktoken)})"


def _ours(document: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {
        (row["group"], row["vocabulary"], row["row"]): row["contenders"]["ours"]
        for row in document["rows"]
        if "median_s" in row["contenders"].get("ours", {})
    }


def _growth(document: dict[str, Any]) -> list[str]:
    ours = _ours(document)
    pairs = [
        (vocabulary, row, long["median_s"] / ours[f"worst-{SHORT}", vocabulary, row]["median_s"])
        for (group, vocabulary, row), long in ours.items()
        if group == f"worst-{LONG}" and (f"worst-{SHORT}", vocabulary, row) in ours
    ]
    return [
        f"| time(1 MB) / time(100 KB) | {vocabulary} | {row} | {growth:.1f} | ≤ 12 | {_met(growth <= 12)} |"
        for vocabulary, row, growth in pairs
    ]


def _threads(document: dict[str, Any]) -> list[str]:
    ours, lines = _ours(document), []
    for (group, vocabulary, row), two in ours.items():
        one = ours.get((group.removesuffix("-2") + "-1", vocabulary, row))
        if group.endswith("-2") and one is not None:
            limit = 1.5 if group.startswith("train") else 1.7
            gain = one["median_s"] / two["median_s"]
            lines.append(
                f"| {group} over 1 thread | {vocabulary} | {row} | {gain:.2f} | ≥ {limit} | {_met(gain >= limit)} |"
            )
    return lines


def _memory(document: dict[str, Any]) -> list[str]:
    lines = []
    for row in document["rows"]:
        peaks = {name: c["peak_rss_bytes"] / 1e6 for name, c in row["contenders"].items() if "peak_rss_bytes" in c}
        ours = peaks.pop("ours", None)
        for name, peak in peaks.items():
            if ours is not None:
                lines.append(
                    f"| {row['group']} peak memory, beside {name} | | {row['row']} | {ours:.0f} MB | ≤ {peak:.0f} MB "
                    f"| {_met(ours <= peak)} |"
                )
    return lines
