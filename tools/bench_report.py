"""Writes docs/performance.md and its picture from the figures in benches/results/: `make bench-report`.

Every row has what was measured on both sides, and their ratio, so that above 1 is ours ahead.
"""

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benches" / "results"
PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "images" / "performance.svg"

Figures = dict[str, Any]


class Row(NamedTuple):
    """A case, the figure of each side, and how many times theirs ours is; of times, theirs over ours."""

    case: str
    ours: float
    peer: str
    theirs: float
    ratio: float


class Section(NamedTuple):
    """Rows of one file.

    Attributes:
        title: The heading.
        file: Name of the file in benches/results/.
        unit: What the figures are.
        command: What measures them again.
        rows: Reads the rows from the file.
        about: A sentence on what is compared.
    """

    title: str
    file: str
    unit: str
    command: str
    rows: Callable[[Figures], Iterator[Row]]
    about: str


def faster(case: str, ours: float, peer: str, theirs: float) -> Row:
    """A row of speeds."""
    return Row(case, ours, peer, theirs, ours / theirs)


def sooner(case: str, ours: float, peer: str, theirs: float) -> Row:
    """A row of times."""
    return Row(case, ours, peer, theirs, theirs / ours)


def serving(figures: Figures) -> Iterator[Row]:
    """Tokens a second by the number of clients."""
    for clients, servers in figures["levels"].items():
        peers = {name: found["output_tokens_per_s"] for name, found in servers.items() if name != "ours"}
        peer = max(peers, key=lambda name: peers[name])
        yield faster(f"{clients} clients", servers["ours"]["output_tokens_per_s"], "vLLM", peers[peer])


def served_packed(figures: Figures) -> Iterator[Row]:
    """Tokens a second of packed weights by the number of clients, beside each other server's best variant."""
    for clients, servers in figures["levels"].items():
        best: dict[str, float] = {}
        for name, found in servers.items():
            peer = name if name.startswith("ours") else name.split(",")[0]
            best[peer] = max(best.get(peer, 0.0), found["output_tokens_per_s"])
        ours = best.pop("ours")
        for peer, speed in best.items():
            yield faster(f"{clients} clients", ours, SERVERS.get(peer, peer), speed)


def offline(figures: Figures) -> Iterator[Row]:
    """Generated tokens a second of a batch."""
    speeds = {name: found["output_tokens"] / found["seconds"] for name, found in figures["engines"].items()}
    ours = speeds.pop("ours")
    yield faster(f"{figures['settings']['sequences']} prompts at once", ours, "vLLM", max(speeds.values()))


def front_end(figures: Figures) -> Iterator[Row]:
    """Requests a second that the HTTP side handles with an engine that answers at once."""
    yield faster("chats, 32 connections", figures["median"]["ours"], "vLLM", figures["median"]["vllm"])


def models(figures: Figures) -> Iterator[Row]:
    """Seconds of a model's work."""
    for case, found in figures["results"].items():
        yield sooner(case, found["ours_s"], "transformers", found["transformers_s"])


# What stands beside ours under a shorter name in the file.
OWN_NAMES = {"floats": "llm-oxide, bf16", "our Q4_1": "llm-oxide, Q4_1"}
SERVERS = {"ours, bf16": "llm-oxide, bf16", "vllm": "vLLM, bf16"}


def quantised(figures: Figures) -> Iterator[Row]:
    """Tokens a second on packed weights, beside each other program."""
    for name, found in figures["files"].items():
        for work in ("decode", "prefill"):
            speed = found["speed"][work]
            for peer in speed["ratios"]:
                yield faster(f"{name}, {work}", speed["ours"], OWN_NAMES.get(peer, peer), speed[peer])


def memory(figures: Figures) -> Iterator[Row]:
    """MB that serving a file adds to a bare process, beside the file itself."""
    for name, found in figures["files"].items():
        yield sooner(name, found["beyond bare"] / 1e6, "the file", found["file"] / 1e6)


def int8_cache(figures: Figures) -> Iterator[Row]:
    """Tokens a second with 8 bits a number in the cache, beside 16."""
    for one in figures["speed"]["figures"]:
        case = f"{one['weights']} weights, {one['rows']} requests, context {one['context']:,}"
        yield Row(case, one["int8"], "a bf16 cache", one["bfloat16"], one["ratio"])
    sizes = figures["bytes a token"]
    yield sooner("bytes a token", sizes["int8"], "a bf16 cache", sizes["bfloat16"])


def adapters(figures: Figures) -> Iterator[Row]:
    """Tokens a second of eight requests with adapters, beside the base alone."""
    speeds = figures["tokens_per_s"]
    for count, ratio in figures["ratio_to_base"].items():
        yield Row(f"{count} adapters in a batch of 8", speeds[count], "the base alone", speeds["0"], ratio)


def structured(figures: Figures) -> Iterator[Row]:
    """Tokens a second under a grammar, beside the same load without one."""
    middle = {name: statistics.median(rounds) for name, rounds in figures["tokens_per_s"].items()}
    for name in ("bound", "forced"):
        yield faster(GRAMMARS[name], middle[name], "no grammar", middle["free"])


GRAMMARS = {"bound": "32 clients, a schema", "forced": "32 clients, a schema with fixed words"}


def sampling(figures: Figures) -> Iterator[Row]:
    """Microseconds a row of logits."""
    for case, found in figures["results"].items():
        rows, vocab = case.split("x")
        times = found["us_per_row"]
        for peer, name in (("transformers", "transformers"), ("hand", "PyTorch by hand")):
            yield sooner(f"{rows} rows of {int(vocab):,}", times["ours"], name, times[peer])


def tokenizing(table: Figures) -> Iterator[Row]:
    """Speeds and times of the tokenizer, beside the fastest other one of each row."""
    for cells in table["rows"]:
        work, vocabulary, text, ours, _, fastest, ratio = cells[:7]
        if vocabulary != "cl100k" or not work.startswith(("encode", "chat", "decode")) or " over " in work:
            continue
        speed, unit = ours.split()
        peer, theirs = fastest.rsplit(" ", 1)
        yield Row(f"{work}, {text}, {unit}", float(speed), peer, float(theirs), float(ratio))


def training(figures: Figures) -> Iterator[Row]:
    """Trained tokens a second, beside each other loop."""
    for case, found in figures["results"].items():
        ours, *others = found["loops"]
        for other in others:
            yield faster(case, ours["tokens_per_s"], other["name"], other["tokens_per_s"])


def tuning(figures: Figures) -> Iterator[Row]:
    """Tokens a second without padding and MiB at the peak, beside TRL and PEFT, and ours beside ours."""
    sides = {
        "all weights": ("ours-unpacked", "trl-unpacked", "TRL"),
        "all weights, packed": ("ours-packed", "trl-unpacked", "TRL"),
        "adapters": ("ours-lora", "trl-lora", "PEFT"),
    }
    for group in figures["groups"]:
        loops = {loop["name"]: loop for loop in group["loops"]}
        for case, (ours, theirs, peer) in sides.items():
            if {ours, theirs} <= loops.keys():
                one, other = loops[ours], loops[theirs]
                speeds = one["useful_tokens_per_s"], other["useful_tokens_per_s"]
                yield faster(f"{case}, tokens/s", speeds[0], peer, speeds[1])
                yield sooner(f"{case}, peak MiB", one["peak_mib"], peer, other["peak_mib"])
        if {"ours-lora", "ours-unpacked"} <= loops.keys():
            steps = loops["ours-lora"]["step_s"], loops["ours-unpacked"]["step_s"]
            yield sooner("adapters, s a step", steps[0], "all weights", steps[1])
        if {"ours-qlora", "ours-lora"} <= loops.keys():
            peaks = loops["ours-qlora"]["peak_mib"], loops["ours-lora"]["peak_mib"]
            yield sooner("4-bit base, peak MiB", peaks[0], "bf16 base", peaks[1])


def rollouts(figures: Figures) -> Iterator[Row]:
    """Tokens a second of answers to learn from."""
    speeds = figures["tokens_per_s"]
    yield faster("answers of GRPO", speeds["engine"], "transformers", speeds["transformers"])


def replicas(figures: Figures) -> Iterator[Row]:
    """Seconds until the first token behind Ray Serve, and of one server at the same load."""
    first = figures["first_token"]
    settings = figures["settings"]
    yield sooner(
        f"{settings['replicas']} replicas, {settings['requests_per_s']:g} requests/s",
        first["replicas"]["mean_s"], "one server", first["one server"]["mean_s"],
    )  # fmt: skip


def gpu(figures: Figures) -> Iterator[Row]:
    """Tokens a second on a GPU."""
    for row in figures["rows"]:
        speeds = row["tokens_s"]
        if "transformers" in speeds:
            yield faster(
                f"{row['model']}, {row['requests']} requests", speeds["graphs"], "transformers", speeds["transformers"]
            )


def grammar(figures: Figures) -> Iterator[Row]:
    """Milliseconds until a grammar is ready, and microseconds of a mask."""
    ours = figures["rows"]["llm-oxide"]
    for name, theirs in figures["rows"].items():
        if name == "llm-oxide":
            continue
        for key in ("ready p50 ms", "ready p99 ms", "mask mean µs", "mask p50 µs", "mask p99 µs"):
            yield sooner(key, ours[key], name, theirs[key])


SECTIONS = (
    Section("Serving", "serving-throughput.bfloat16.json", "tokens/s", "make bench-serving", serving,
            "SmolLM2-135M in bfloat16 behind HTTP, each client with one request after another."),
    Section("Serving packed weights", "serving-quantised.SmolLM2-135M-Instruct.Q4_1.json", "tokens/s",
            'make bench-serving ARGS="quantised --peers llama-server,vllm"', served_packed,
            "The same model as a GGUF file of 4 bits a weight behind HTTP; vLLM serves its values in bfloat16."),
    Section("A batch offline", "serving-offline.bfloat16.json", "tokens/s", "make bench-serving", offline,
            "The same model without HTTP, prompts and answers of 100 to 1,024 tokens."),
    Section("The server's front end", "frontend.json", "requests/s", "make bench-frontend", front_end,
            "HTTP, JSON and the tokenizer in front of an engine that takes no time."),
    Section("Quantized weights", "quantised.json", "tokens/s", "python benches/bench_quantised.py TEXT", quantised,
            "SmolLM2-135M from the same file, one request."),
    Section("Memory of packed weights", "memory.json", "MB", "python benches/bench_memory.py FILE", memory,
            "What serving a file adds to a bare process, its key-value cache included."),
    Section("An int8 cache", "kv_cache.json", "tokens/s", "python benches/bench_kv_cache.py TEXT", int8_cache,
            "The same requests on keys and values of 8 bits and of 16."),
    Section("Adapters in a batch", "adapters.json", "tokens/s", "python benches/bench_adapters.py", adapters,
            "Eight requests with adapters of rank 16 on all linear layers."),
    Section("A model's work", "models.float32.json", "s", "python benches/bench_models.py", models,
            "SmolLM2-135M in float32: loading, a prompt, a token, a training step."),
    Section("Training", "training.json", "tokens/s", "python benches/bench_training.py", training,
            "The same model, data and optimizer in other training loops."),
    Section("Fine-tuning", "tuning.json", "see the case", "python benches/bench_tuning.py", tuning,
            "SmolLM2-135M in bfloat16 on 500 dialogues of 50 tokens, 8 a step."),
    Section("Answers for reinforcement", "rollouts.json", "tokens/s", "python benches/bench_rollouts.py", rollouts,
            "SmolLM2-135M draws groups of answers on the weights that are trained."),
    Section("Grammars", "grammar.json", "see the case", "python benches/bench_grammar.py", grammar,
            "JSON schemas compiled and turned into masks over a vocabulary."),
    Section("Answers under a grammar", "structured.json", "tokens/s", "make bench-structured", structured,
            "32 clients of one server, with and without a JSON schema."),
    Section("Sampling", "sampling.2.float32.json", "µs a row", "python benches/bench_sampling.py", sampling,
            "Temperature, top-k 50, top-p 0.9 and a repetition penalty, on two threads."),
    Section("Tokenizing", "tokenizer.peers.md", "unit in the case", "make bench-tokenizer", tokenizing,
            "The vocabulary cl100k beside eight others, of which each row has the fastest; the file has all."),
    Section("Replicas under Ray Serve", "ray.json", "s", "make test-ray", replicas,
            "Mean time to SmolLM2-135M's first token after 280 new tokens; each server has one of two cores."),
    Section("One GPU", "gpu.json", "tokens/s", "make bench-gpu", gpu,
            "Decoding 64 tokens after prompts of 128."),
)  # fmt: skip


def rows_of(section: Section) -> list[Row]:
    """Returns the rows of a section's file."""
    return list(section.rows(read(section)))


def read(section: Section) -> Figures:
    """Returns a section's file; of a page in Markdown, the cells of its tables and its first paragraph."""
    text = (RESULTS / section.file).read_text(encoding="utf-8")
    if section.file.endswith(".md"):
        rows = [
            [cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:1] == "|"
        ]
        return {"rows": [cells for cells in rows if len(cells) > 6], "said": text.split("\n\n")[1].replace("\n", " ")}
    figures: Figures = json.loads(text)
    return figures


def number(value: float) -> str:
    """A figure with three digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def conditions(figures: Figures) -> str:
    """Machine, versions and load, as far as the file tells."""
    if "said" in figures:
        return str(figures["said"])
    figures = figures.get("speed", figures)
    machine = figures.get("machine") or figures.get("device") or figures.get("about", {}).get("machine", "")
    if isinstance(machine, dict):
        vectors = ", ".join(machine.get("vectors", ()))
        machine = f"{machine.get('cpu')}, {machine.get('cores')} cores{', ' if vectors else ''}{vectors}"
    versions = dict(figures.get("versions", {}))
    versions |= {name: figures[name] for name in ("torch", "transformers") if name in figures}
    peers = figures.get("settings", {}).get("peers")
    versions |= [words.split("==") for words in peers.values()] if isinstance(peers, dict) else []
    parts = [f"Machine: {machine}." if machine else "", *(f"{name} {version}." for name, version in versions.items())]
    load = figures.get("load average", {}).get("before", figures.get("load_average"))
    rounds = figures.get("rounds", figures.get("settings", {}).get("rounds"))
    parts += [f"Rounds: {rounds}." if rounds else "", f"Load average before: {load:.2f}." if load is not None else ""]
    return " ".join(part for part in parts if part)


def page() -> str:
    """Returns the page."""
    parts = [
        "# Performance",
        "This page is made from the files in `benches/results/` by `make bench-report`. A ratio above 1 is llm-oxide\n"
        "ahead: its speed over the other's, or the other's time over its own. Each section names the machine, the\n"
        "versions and the command that measures again. Figures of other machines differ, ratios less so.",
        "![Ratios of all cases on a logarithmic scale](images/performance.svg)",
    ]
    for section in SECTIONS:
        lines = [f"| Case | llm-oxide, {section.unit} | Beside | Its figure | Ratio |", "|---|---|---|---|---|"]
        lines += [
            f"| {row.case} | {number(row.ours)} | {row.peer} | {number(row.theirs)} | {row.ratio:.2f} |"
            for row in rows_of(section)
        ]
        parts += [f"## {section.title}", section.about, "\n".join(lines)]
        parts.append(f"{conditions(read(section))} `{section.command}`; `benches/results/{section.file}`.")
    return "\n\n".join(parts) + "\n"


_LEFT, _WIDTH, _LINE, _SPAN = 330, 820, 18, 5.0  # pixels, and powers of 2 to each side


def picture() -> str:
    """Returns the ratios as bars from 1, to the right where ours is ahead."""
    bars: list[str] = []
    y, middle = 24, _LEFT + (_WIDTH - _LEFT) * 0.35
    scale = (_WIDTH - 50 - middle) / _SPAN
    for section in SECTIONS:
        bars.append(f'<text x="8" y="{y + 12}" font-weight="bold">{escape(section.title)}</text>')
        y += _LINE
        for row in rows_of(section):
            reach = max(-_SPAN / 2, min(math.log2(row.ratio), _SPAN)) * scale
            color = "#2a7f62" if row.ratio >= 1 else "#b3541e"
            start = middle + min(reach, 0)
            label = f"{row.case} / {row.peer}"
            bars.append(f'<text x="20" y="{y + 12}">{escape(label)}</text>')
            bars.append(f'<rect x="{start:.1f}" y="{y + 3}" width="{abs(reach):.1f}" height="11" fill="{color}"/>')
            bars.append(f'<text x="{middle + max(reach, 0) + 4:.1f}" y="{y + 12}">{row.ratio:.2f}</text>')
            y += _LINE
        y += 6
    axis = f'<line x1="{middle:.1f}" y1="8" x2="{middle:.1f}" y2="{y}" stroke="#888"/>'
    size = f'width="{_WIDTH}" height="{y + 8}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    body = "\n".join([f'<rect {size} fill="#fff"/>', axis, *bars])
    return f"{head}\n<title>Speed beside others, from 1</title>\n{body}\n</svg>\n"


def main() -> None:
    """Writes the page and the picture."""
    PAGE.write_text(page(), encoding="utf-8")
    PICTURE.write_text(picture(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}\n{PICTURE.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
