"""Our server beside others, in turn, on the same weights, number type and load.

    make bench-serving                                    clients 1, 8 and 32, three rounds, beside vLLM's CPU build
    make bench-serving ARGS="--quick --clients 1,8"       one round, few requests: for development
    make bench-serving ARGS="shared-prefix"               16 clients with one system prompt, our prefix cache on and off
    make bench-serving ARGS="offline"                     256 sequences at once, without a server
    make bench-serving ARGS="quantised"                   a GGUF file's packed weights, the same in bf16, and llama.cpp
    make bench-serving ARGS="quantised --peers vllm"      … and vLLM's CPU build on the same weights in bf16

Each server is started, driven at every number of clients and stopped, then the next one; that is a round. Clients are
closed loops: the next request goes out when the last answer is there. A table is printed and the figures are written
beside it as JSON. Logs of the servers stay in `.cache/serving`.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

PEERS = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(PEERS))

import environments  # noqa: E402
import prompts  # noqa: E402
import servers  # noqa: E402
import serving_report as report  # noqa: E402
from figures import Answer, LoadError, over_rounds, share_in_common, summary  # noqa: E402
from load import Load  # noqa: E402
from servers import Peer, Server, ServerFailedError, driven  # noqa: E402

from llm import __version__  # noqa: E402
from llm.errors import LLMError  # noqa: E402
from llm.export import export  # noqa: E402
from llm.tokenization import load_tokenizer  # noqa: E402

CACHE = environments.ROOT / ".cache"
GGUF = CACHE / "SmolLM2-135M-Instruct.Q4_1.gguf"
MODES = ("throughput", "shared-prefix", "offline", "quantised")
NO_PREFIX_CACHE = "--no-prefix-caching"
# Requests of each client in a round: enough for seconds of load, as long as few clients are slow.
REQUESTS = {1: 6, 8: 4}
MANY_CLIENTS_REQUESTS = 3
SYSTEM_TOKENS, SHARED_CLIENTS = 1000, 16
# What a server says to these should be what we say: in float32 all of it, in bf16 but for near-ties, which some have.
QUESTIONS = (
    "Name the days of the week.",
    "Who wrote Hamlet?",
    "Write the numbers from one to ten.",
    "What is water made of?",
)
QUESTION_TOKENS = 8
WATCH_S = 0.5


@dataclass
class Record:
    """What the rounds gave, by server."""

    levels: dict[int, dict[str, list[dict[str, float]]]] = field(default_factory=lambda: defaultdict(dict))
    servers: dict[str, list[dict[str, float]]] = field(default_factory=lambda: defaultdict(list))
    texts: dict[str, list[str]] = field(default_factory=dict)
    loads: list[float] = field(default_factory=lambda: [report.load_average()])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", nargs="?", default="throughput", choices=MODES)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--peers", help="comma-separated: vllm; quantised: llama-server, vllm; or `none` for ours")
    parser.add_argument(
        "--cores", help="cores of vLLM's variants, such as `0,0-1` (default: all, and all but the last)"
    )
    parser.add_argument("--skip-ours", action="store_true", help="measure the peers alone")
    parser.add_argument("--clients", help="numbers of clients, comma-separated (default: 1,8,32; shared-prefix: 16)")
    parser.add_argument("--rounds", type=int, help="how often the servers take turns (default: 3)")
    parser.add_argument("--requests", type=int, help="requests of each client in a round (default: 6 to 3)")
    parser.add_argument("--prompt-tokens", type=int, default=142)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--same-prompts", action="store_true", help="one prompt for all instead of distinct ones")
    parser.add_argument("--sequences", type=int, help="of the offline load (default: 256)")
    parser.add_argument("--divisor", type=int, default=4, help="of the offline load's lengths; 1: as on a GPU")
    parser.add_argument("--quick", action="store_true", help="one round of few requests: for development")
    parser.add_argument("--start-timeout", type=float, default=300, metavar="S", help="most seconds to a first token")
    parser.add_argument(
        "--model", type=Path, help="a Hugging Face directory; quantised: a .gguf file (default: SmolLM2)"
    )
    parser.add_argument("--out", type=Path, help="where results go (default: benches/results; quick: .cache/serving)")
    return settled(parser.parse_args())


def settled(options: argparse.Namespace) -> argparse.Namespace:
    """Fills in what depends on the mode and on `--quick`."""
    clients = options.clients or (str(SHARED_CLIENTS) if options.mode == "shared-prefix" else "1,8,32")
    options.clients = [int(number) for number in clients.split(",")]
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.sequences = options.sequences or (24 if options.quick else 256)
    known = ("llama-server", "vllm") if options.mode == "quantised" else ("vllm",)
    options.peers = [] if options.peers == "none" else (options.peers or known[0]).split(",")
    if unknown := set(options.peers) - set(known):
        raise SystemExit(f"error: a peer must be {', '.join(known)} or none, got {', '.join(sorted(unknown))}")
    options.logs = CACHE / "serving"
    options.out = options.out or (options.logs if options.quick else environments.ROOT / "benches" / "results")
    for directory in (options.logs, options.out):
        directory.mkdir(parents=True, exist_ok=True)
    return options


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def model_directory(given: Path | None, mode: str) -> Path:
    """The weights for all: a GGUF file, or ours and the peers' in the same bf16, which float32 runs read too."""
    if given is not None:
        return given
    return GGUF if mode == "quantised" else floats(GGUF)


def floats(file: Path) -> Path:
    """The weights of a GGUF file in bf16."""
    name = "SmolLM2-135M-Instruct" if file == GGUF else file.stem
    target = CACHE / "serving" / f"{name}.bf16"
    if not target.is_dir():
        say(f"writing {target}")
        export(file, target, "hf", dtype="bfloat16")
    return target


def contenders(options: argparse.Namespace, model: Path) -> list[Peer]:
    """Ours first; a peer whose environment can't be made is left out, and that is said."""
    chosen = [] if options.skip_ours else [servers.ours()]
    packed = options.mode == "quantised"
    if chosen and packed:
        chosen.append(servers.ours(report.OURS_BF16, model=floats(model)))
    if chosen and options.mode == "shared-prefix":
        if servers.has_option(NO_PREFIX_CACHE):
            chosen.append(servers.ours("ours, no prefix cache", NO_PREFIX_CACHE))
        else:
            say(f"`llm serve` has no {NO_PREFIX_CACHE} here: ours is not compared with itself without the cache")
    for peer in environments.ensure(options.peers):
        if peer == "llama-server":
            chosen.append(servers.llama_server(max(options.clients)))
        else:
            chosen += [servers.vllm(cores, floats(model) if packed else None) for cores in cores_of(options)]
    return chosen


def cores_of(options: argparse.Namespace) -> list[str]:
    return options.cores.split(",") if options.cores else servers.core_choices()


def conversations(options: argparse.Namespace, tokenizer: Any, round_idx: int, clients: int) -> list[Any]:
    """A round's conversations: the same for each server, and new ones in each round."""
    each = options.requests or (2 if options.quick else REQUESTS.get(clients, MANY_CLIENTS_REQUESTS))
    seeds = [f"{round_idx} {clients} {'' if options.same_prompts else idx}" for idx in range(each * clients)]
    if options.mode != "shared-prefix":
        return [prompts.conversation(tokenizer, options.prompt_tokens, seed) for seed in seeds]
    # The template's own tokens and a short question come on top.
    system = prompts.system_prompt(SYSTEM_TOKENS, f"{round_idx}")
    return [prompts.conversation(tokenizer, SYSTEM_TOKENS + 48, seed, system) for seed in seeds]


def measure(options: argparse.Namespace, model: Path) -> Record:
    """All rounds; what was measured until an interrupt is kept."""
    record, tokenizer, peers = Record(), load_tokenizer(model), contenders(options, model)
    try:
        for round_idx in range(options.rounds):
            for peer in peers:
                say(f"round {round_idx + 1} of {options.rounds}: starting {peer.label}")
                log = options.logs / f"{options.mode}.{peer.label.replace(', ', '.').replace(' ', '-')}.log"
                with servers.running(peer, model, options.dtype, log) as server:
                    one_server(options, record, server, partial(conversations, options, tokenizer, round_idx))
    except KeyboardInterrupt:
        say("stopped: the table has what was measured until here")
    return record


def one_server(
    options: argparse.Namespace, record: Record, server: Server, conversations_for: Callable[[int], list[Any]]
) -> None:
    """Start, questions (they warm up too) and every number of clients."""
    label = server.peer.label
    questions = [[{"role": "user", "content": question}] for question in QUESTIONS]
    load = Load(server.port, servers.NAME, 1, questions, QUESTION_TOKENS)
    start_s = server.first_token(load, options.start_timeout)
    figures = {"start_s": start_s, "idle_bytes": float(servers.resident_bytes(server.process.pid))}
    say(f"  {label}: {start_s:.1f} s to the first token, {figures['idle_bytes'] / 1e6:.0f} MB")
    record.texts[label] = [str(one["text"]) for one in driven(server, load)[1]]
    for clients in options.clients:
        record.loads.append(report.load_average())
        load = Load(server.port, servers.NAME, clients, conversations_for(clients), options.output_tokens)
        seconds, said = driven(server, load)
        answers = [Answer(**one) for one in said]
        check_prompts(options, label, answers)
        one = summary(answers, seconds)
        record.levels[clients].setdefault(label, []).append(one)
        say(
            f"  {label}, {clients} clients: {one['output_tokens_per_s']:.1f} tokens/s, first token "
            f"{one['first_token_p50_s'] * 1e3:.0f} ms, then {one['inter_token_p50_s'] * 1e3:.1f} ms ({seconds:.1f} s)"
        )
    figures["loaded_bytes"] = float(servers.resident_bytes(server.process.pid))
    record.servers[label].append(figures)


def check_prompts(options: argparse.Namespace, label: str, answers: list[Answer]) -> None:
    """All servers must have read the same prompts."""
    expected = SYSTEM_TOKENS + 48 if options.mode == "shared-prefix" else options.prompt_tokens
    if wrong := {answer.prompt_tokens for answer in answers} - {expected}:
        raise LoadError(f"{label} read prompts of {sorted(wrong)} tokens, they have {expected}: another chat template?")


def agreement(record: Record) -> dict[str, Any]:
    """How much of our answers to the questions each server's begin with, on average; and what all said."""
    mine = record.texts.get(report.OURS)
    shares = {
        label: sum(map(share_in_common, mine, theirs)) / len(mine) for label, theirs in record.texts.items() if mine
    }
    return {"questions": QUESTIONS, "share in common with ours": shares, "answers": record.texts}


def serving(options: argparse.Namespace, model: Path) -> tuple[dict[str, Any], str]:
    """The modes with servers: the document and its table."""
    record = measure(options, model)
    if not record.servers:
        raise SystemExit("error: nothing was measured")
    names = ("dtype", "prompt_tokens", "output_tokens", "rounds")
    settings = {name.replace("_", " "): getattr(options, name) for name in names}
    if options.mode == "shared-prefix":
        settings["prompt tokens"] = f"{SYSTEM_TOKENS} shared + 48"
    levels = {
        str(clients): {label: over_rounds(rounds) for label, rounds in by_label.items()}
        for clients, by_label in record.levels.items()
    }
    by_server = {
        label: {"rounds": len(rounds)}
        | {key: sorted(one[key] for one in rounds)[len(rounds) // 2] for key in rounds[0]}
        for label, rounds in record.servers.items()
    }
    document = facts(options, settings, record.loads) | {
        "levels": levels,
        "servers": by_server,
        "agreement": agreement(record),
    }
    return document, (report.shared_prefix if options.mode == "shared-prefix" else report.throughput)(document)


def offline(options: argparse.Namespace, model: Path) -> tuple[dict[str, Any], str]:
    """One process an engine, in its own environment."""
    loads = [report.load_average()]
    ids, lengths = prompts.offline_workload(options.sequences, options.divisor, load_tokenizer(model).vocab_size)
    work = {"model": str(model), "dtype": options.dtype, "prompts": ids, "lengths": lengths}
    runs = [] if options.skip_ours else [("ours", report.OURS, Path(sys.executable), {})]
    if "vllm" in environments.ensure(options.peers):
        python = environments.python_of("vllm")
        runs += [("vllm", f"vllm, cores {cores}", python, servers.vllm_variables(cores)) for cores in cores_of(options)]
    engines: dict[str, Any] = {}
    for engine, label, python, variables in runs:
        say(f"{label}: {options.sequences} sequences, {sum(map(len, ids))} tokens in, {sum(lengths)} out")
        log = options.logs / f"offline.{label.replace(', ', '.').replace(' ', '-')}.log"
        engines[label] = one_engine([str(python), str(PEERS / "offline.py")], work | {"engine": engine}, variables, log)
        loads.append(report.load_average())
        say(f"  {sum(lengths) / engines[label]['seconds']:.1f} output tokens/s in {engines[label]['seconds']:.1f} s")
    settings = {
        "dtype": options.dtype,
        "sequences": options.sequences,
        "lengths": f"100 to 1,024 over {options.divisor}",
    }
    document = facts(options, settings, loads) | {"engines": engines}
    return document, report.offline(document)


def one_engine(command: list[str], work: dict[str, Any], variables: dict[str, str], log: Path) -> dict[str, Any]:
    """What the engine's process says of itself, and its peak memory; it and its children are stopped if we are."""
    environment = servers.environment_of(variables)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        log.open("wb") as sink,
        subprocess.Popen(command, **pipes, stderr=sink, start_new_session=True, env=environment) as process,
    ):
        try:
            said, peak_bytes = watched(process, json.dumps(work).encode())
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        tail = servers.end_of(log)
        raise ServerFailedError(f"{work['engine']} ended with exit code {process.returncode}; the end of {log}:{tail}")
    return json.loads(said) | {"peak_bytes": peak_bytes}


def watched(process: subprocess.Popen[bytes], rest: bytes | None) -> tuple[bytes, int]:
    """What a process answers, and the most memory seen of it and its children."""
    peak_bytes = 0
    while True:
        try:
            return process.communicate(rest, timeout=WATCH_S)[0], peak_bytes
        except subprocess.TimeoutExpired:
            rest = None  # it has been told
            peak_bytes = max(peak_bytes, servers.resident_bytes(process.pid))


def facts(options: argparse.Namespace, settings: dict[str, Any], loads: list[float]) -> dict[str, Any]:
    versions = {"llm-oxide": __version__} | {peer: environments.ALL[peer][0] for peer in options.peers}
    command = shlex.join(["python", "benches/bench_serving.py", *sys.argv[1:]])
    return report.facts(command, settings, loads) | {"versions": versions}


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a server that runs is stopped
    try:
        model = model_directory(options.model, options.mode)
        document, table = (offline if options.mode == "offline" else serving)(options, model)
    except (LoadError, ServerFailedError, LLMError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    name = f"serving-{options.mode}.{model.stem if options.mode == 'quantised' else options.dtype}"
    (options.out / f"{name}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    (options.out / f"{name}.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
