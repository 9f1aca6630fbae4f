"""Times our tokenizer beside the published ones: one process each, in turn, only where the ids equal tiktoken's.

    make bench-tokenizer                                            everything, into benches/results/
    python benches/peers/run.py --quick --only encode-array --vocab cl100k --peers fastokens
    python benches/peers/run.py --quick --only worst --peers none   ours alone

Environments of the peers are made as needed (see environments.py). Times are medians; MB/s is bytes of UTF-8.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import environments
import report
import texts
from contenders import CONTENDERS, TRAINERS
from workloads import GROUPS, Group, selected

HERE = Path(__file__).resolve().parent
# A peer this many times slower than the fastest in the first round isn't timed again.
FAR_BEHIND = 5.0
# tiktoken says what is right; its regex engine gives up on some long runs, which the next one takes.
REFERENCES = ("tiktoken", "tokenizers")
ALWAYS = ("ours", "tiktoken")


@dataclass
class Result:
    """What one contender gave for one row."""

    seconds: list[float] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)


# Row (group, vocabulary, row name), then contender.
Results = dict[tuple[str, str, str], dict[str, Result]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"groups by the beginning of their names, comma-separated: {', '.join(GROUPS)}")
    parser.add_argument("--vocab", default=",".join(texts.VOCABULARIES), help="vocabularies, comma-separated")
    parser.add_argument("--peers", help="peers, comma-separated, or `none` (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="how often the contenders take turns")
    parser.add_argument("--repetitions", type=int, default=3, help="timed calls a round; training: one")
    parser.add_argument("--quick", action="store_true", help="one round: for development, not for publishing")
    parser.add_argument(
        "--pin",
        type=int,
        metavar="CPU",
        default=max(os.sched_getaffinity(0)),
        help="where all runs that has one thread: some peers take every CPU they see (default: the last one)",
    )
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds: for one thread on a busy machine")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="most seconds for one process")
    parser.add_argument("--data", type=Path, default=os.environ.get("LLM_BENCH_DATA"), help="corpora and vocabularies")
    parser.add_argument("--out", type=Path, help="where results go (default: benches/results if all is run)")
    options = parser.parse_args()
    options.whole = not (options.only or options.peers or options.quick) and options.vocab == "cl100k,o200k"
    options.data = Path(options.data or environments.ROOT.parent / "shared" / "data")
    if not (options.data / "corpus").is_dir():
        parser.error(f"no corpora in {options.data}\nhint: name their directory with --data or LLM_BENCH_DATA")
    if options.out is None:
        options.out = environments.ROOT / "benches" / "results" if options.whole else environments.directory().parent
    options.out.mkdir(parents=True, exist_ok=True)
    return options


class Runner:
    """Starts the processes and gathers what they say."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options = options
        self.scratch = scratch
        self.results: Results = {}
        self.versions: dict[str, str] = {}
        self.highest_load = 0.0
        self.rounds = 1 if options.quick else options.rounds
        wanted = [
            name for name in environments.REQUIREMENTS if options.peers is None or name in options.peers.split(",")
        ]
        needed = sorted({"tiktoken", *wanted}) if any(self._has_ids(group) for group in self.groups()) else wanted
        there = environments.ensure(needed)
        self.peers = [name for name in wanted if name in there]
        if "tiktoken" in needed and "tiktoken" not in there:
            raise SystemExit("error: tiktoken must be there, for its ids are what all are held to")

    def groups(self) -> list[Group]:
        return selected(self.options.only)

    @staticmethod
    def _has_ids(group: Group) -> bool:
        return not group.name.startswith("train")

    def run(self) -> None:
        for vocabulary in self.options.vocab.split(","):
            for group in filter(self._has_ids, self.groups()):
                self._group(group, vocabulary, self.rounds)
        trained = [group for group in self.groups() if not self._has_ids(group)]
        if trained:
            texts.write_mix(self.options.data, self.scratch / "mix.txt")
        for group in trained:
            # One training a process: as many rounds as others have repetitions, but at least seven.
            self._group(group, "", 1 if self.options.quick else max(7, self.rounds))

    def _group(self, group: Group, vocabulary: str, rounds: int) -> None:
        expected = self._expected(group, vocabulary)
        table = CONTENDERS if self._has_ids(group) else TRAINERS
        for round_idx in range(rounds):
            for contender in ("ours", *self.peers):
                if contender in table and not self._is_done(group, vocabulary, contender, round_idx):
                    self._time(group, vocabulary, contender, expected)

    def _expected(self, group: Group, vocabulary: str) -> dict[str, str]:
        if not self._has_ids(group):
            return {}
        for reference in REFERENCES:
            answer = self._process(self._job(group, vocabulary, reference, {}, reference=True))
            if "rows" in answer:
                return {row: result["hash"] for row, result in answer["rows"].items()}
            print(f"{group.name} {vocabulary}: {reference} can't give the ids to compare with: {answer['failed']}")
        raise SystemExit(f"error: one of {', '.join(REFERENCES)} must give the ids to compare with")

    def _is_done(self, group: Group, vocabulary: str, contender: str, round_idx: int) -> bool:
        """Whether a later round has nothing to add: no such call, unequal, or far behind on every row."""
        if round_idx == 0:
            return False
        mine = [self._of(group, vocabulary, row).get(contender, Result()) for row in group.rows]
        if not any(result.seconds for result in mine):
            return True
        return contender not in ALWAYS and all(
            min(result.seconds, default=float("inf")) > FAR_BEHIND * self._fastest(group, vocabulary, row)
            for row, result in zip(group.rows, mine, strict=True)
        )

    def _fastest(self, group: Group, vocabulary: str, row: str) -> float:
        return min(min(result.seconds) for result in self._of(group, vocabulary, row).values() if result.seconds)

    def _of(self, group: Group, vocabulary: str, row: str) -> dict[str, Result]:
        return self.results.setdefault((group.name, vocabulary, row), {})

    def _time(self, group: Group, vocabulary: str, contender: str, expected: dict[str, str]) -> None:
        load = os.getloadavg()[0]
        self.highest_load = max(self.highest_load, load)
        started = time.perf_counter()
        answer = self._process(self._job(group, vocabulary, contender, expected))
        self.versions.setdefault(contender, answer.get("version", "unknown"))
        for row in group.rows:
            said = answer.get("rows", {}).get(row, {"failed": answer.get("failed")})
            result = self._of(group, vocabulary, row).setdefault(contender, Result())
            result.seconds += said.pop("seconds", [])
            result.about |= {"peak_rss": max(result.about.get("peak_rss", 0), said.pop("peak_rss", 0))} | said
            shown = report.shown(group, result.seconds, said) if result.seconds else next(iter(said), "nothing")
            if not said.get("absent"):
                print(f"{group.name:24} {vocabulary:7} {row:26} {contender:14} {shown}", file=sys.stderr, flush=True)
        took = time.perf_counter() - started
        if took > 30:
            print(f"{'':24} (that took {took:.0f} s, load {load:.1f})", file=sys.stderr, flush=True)

    def _job(
        self, group: Group, vocabulary: str, contender: str, expected: dict[str, str], *, reference: bool = False
    ) -> dict[str, Any]:
        options = self.options
        return {
            "group": group.name,
            "vocabulary": vocabulary,
            "contender": contender,
            "expected": expected,
            "reference": reference,
            "repetitions": 0 if reference else options.repetitions,
            "data": str(options.data),
            "scratch": str(self.scratch),
            "pin": options.pin,
            "cpu_time": options.cpu_time,
        }

    def _process(self, job: dict[str, Any]) -> dict[str, Any]:
        contender, threads = job["contender"], GROUPS[job["group"]].threads
        python = sys.executable if contender == "ours" else environments.python_of(contender)
        command = [str(python), str(HERE / "worker.py"), json.dumps(job)]
        limits = dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        environment = os.environ | limits | {"TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment, timeout=self.options.timeout
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"no answer in {self.options.timeout:.0f} s"}
        if done.returncode != 0:
            return {"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
        return json.loads(done.stdout.strip().splitlines()[-1])


def tokens_in_common(scratch: Path) -> Iterator[tuple[str, str, float]]:
    """Split, trainer and the share of our tokens that it learned too."""
    for file in sorted(scratch.glob("*.tokens")):
        split, trainer = file.stem.split(" ")
        ours = scratch / f"{split} ours.tokens"
        if trainer != "ours" and ours.is_file():
            mine = set(ours.read_text().split())
            yield split, trainer, len(mine & set(file.read_text().split())) / len(mine)


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(options, Path(scratch))
        try:
            runner.run()
        except KeyboardInterrupt:
            print("stopped: the table has what was timed until here", file=sys.stderr)
        common = list(tokens_in_common(Path(scratch)))
    command = " ".join(["python benches/peers/run.py", *sys.argv[1:]])
    document = report.document(runner.results, runner.versions, command, runner.highest_load, common)
    (options.out / "tokenizer-peers.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    table = report.markdown(document)
    (options.out / "tokenizer-peers.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
