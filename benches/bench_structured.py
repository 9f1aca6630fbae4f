"""Tokens a second of our server under a grammar, beside the same load without one, in turn on one server.

    make bench-structured                          32 clients, 128 tokens each

`free` has no grammar. `bound` has a schema that holds at every token and leaves the text open: a list of strings that
never ends. `forced` has an object of long names in a given order and short values, so most tokens are known beforehand.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

PEERS = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(PEERS))

import environments  # noqa: E402
import servers  # noqa: E402
import serving_report as report  # noqa: E402
from load import Load  # noqa: E402
from servers import NAME, driven, running  # noqa: E402

GGUF = environments.ROOT / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Path(__file__).with_name("results") / "structured.json"
PARTS = ("customer", "shipping_address", "billing_account", "order_confirmation", "delivery_estimate")
DETAILS = ("identification_number", "requested_quantity", "remaining_balance", "last_modification_year")
NAMES = [f"{part}_{detail}" for part in PARTS for detail in DETAILS]
SCHEMAS = {
    "bound": {"type": "array", "items": {"type": "string"}, "minItems": 500},
    "forced": {
        "type": "object",
        "properties": {name: {"type": "integer", "minimum": 0, "maximum": 9} for name in NAMES},
        "required": NAMES,
        "additionalProperties": False,
    },
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--requests", type=int, default=2, help="of each client in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def load_of(kind, port, args):
    questions = (f"List {number} facts about a warehouse as JSON." for number in range(args.clients * args.requests))
    schema = {"json_schema": {"name": kind, "schema": SCHEMAS.get(kind)}, "type": "json_schema"}
    return Load(
        port=port,
        model=NAME,
        clients=args.clients,
        conversations=[[{"role": "user", "content": question}] for question in questions],
        output_tokens=args.tokens,
        extra={} if kind == "free" else {"response_format": schema},
    )


def main():
    args = arguments()
    speeds, loads = {}, [report.load_average()]
    with (
        tempfile.TemporaryDirectory() as folder,
        running(servers.ours(), GGUF, "bfloat16", Path(folder) / "log") as server,
    ):
        server.first_token(load_of("free", server.port, args), 300)
        for number in range(args.rounds + 1):  # the first warms up
            for kind in ("free", *SCHEMAS):
                load = load_of(kind, server.port, args)
                seconds, answers = driven(server, load)
                speed = sum(answer["output_tokens"] for answer in answers) / seconds
                if number:
                    speeds.setdefault(kind, []).append(speed)
                print(f"round {number}  {kind:7} {speed:8.1f} tokens/s", flush=True)
    loads.append(report.load_average())
    ratios = {
        kind: statistics.median(mine / free for mine, free in zip(speeds[kind], speeds["free"], strict=True))
        for kind in SCHEMAS
    }
    for kind, ratio in ratios.items():
        print(f"{kind:7} {ratio:.3f} of free (median of rounds)")
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    content = report.facts("make bench-structured", settings, loads) | {"tokens_per_s": speeds, "of_free": ratios}
    args.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
