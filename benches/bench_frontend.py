"""Streamed chats a second that a front end answers, in turn: ours, granian's own ceiling and vLLM's.

    make bench-frontend                            needs `wrk`, and vLLM's environment of `make bench-serving`
    make bench-frontend ARGS="--peers none"        without vLLM

`plain` is granian with an app that sends the same number of events and looks at nothing; `instant` is our app over an
engine whose logits are constant; `ours` and `vllm` serve the same model of one layer. `wrk` drives each over the same
number of connections, which stay open, from one thread of the same machine. The figures are medians of rounds.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

PEERS = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(PEERS))

import servers  # noqa: E402
import serving_report as report  # noqa: E402
from load import Load, http_request  # noqa: E402
from servers import NAME, Peer, running  # noqa: E402

from llm.checkpoint import atomic_directory, write_model  # noqa: E402
from llm.models import DecoderModel  # noqa: E402
from llm.settings.model import ModelConfig  # noqa: E402
from llm.tokenization import BPETokenizer, use_chat_template  # noqa: E402

NUM_TOKENS = 16
RESULTS = Path(__file__).with_name("results") / "frontend.json"
LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [==[%s]==]
"""
MESSAGES = [{"role": "user", "content": "To be, or not to be?"}]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=8, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default="vllm", help="vllm or none")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def write_model_of_one_layer(directory):
    """A checkpoint that every server opens, and whose pass takes next to nothing."""
    torch.manual_seed(0)
    tokenizer = BPETokenizer.train_from_iterator(
        ["To be, or not to be, that is the question. "], vocab_size=280, progress=False
    )
    use_chat_template(tokenizer, "play")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    with atomic_directory(directory) as unfinished:
        write_model(unfinished, DecoderModel(config), tokenizer)
    return directory


def contenders(peers):
    """The servers by name; each is given the model and a port."""
    script = str(PEERS / "front_end.py")
    found = {
        "plain": Peer("plain", (sys.executable, script, "plain", "{port}")),
        "instant": Peer("instant", (sys.executable, script, "instant", "{port}", "{model}")),
        "ours": servers.ours(),
    }
    if peers == "vllm":
        found["vllm"] = servers.vllm(servers.core_choices()[0])
    return found


def load_of(port):
    return Load(port=port, model=NAME, clients=1, conversations=[MESSAGES], output_tokens=NUM_TOKENS)


def chats_per_second(port, args):
    """What `wrk` counts; every answer must be a 200."""
    body = http_request(load_of(port), MESSAGES).partition(b"\r\n\r\n")[2].decode()
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LUA % body)
        script.flush()
        url = f"http://{servers.HOST}:{port}/v1/chat/completions"
        command = ["wrk", "-t1", f"-c{args.connections}", f"-d{args.seconds}s", "-s", script.name, url]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(f"error: not every answer was whole:\n{text}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1))


def main():
    args = arguments()
    if shutil.which("wrk") is None:
        raise SystemExit("error: `wrk` is not installed\nhint: apt-get install wrk")
    rounds, loads = {}, [report.load_average()]
    with tempfile.TemporaryDirectory() as folder:
        model = write_model_of_one_layer(Path(folder) / "model")
        for number in range(args.rounds):
            for name, peer in contenders(args.peers).items():
                with running(peer, model, "float32", Path(folder) / f"{name}.log") as server:
                    server.first_token(load_of(server.port), 300)
                    chats_per_second(server.port, argparse.Namespace(**vars(args) | {"seconds": 2}))  # warm-up
                    rounds.setdefault(name, []).append(chats_per_second(server.port, args))
                print(f"round {number + 1}  {name:8} {rounds[name][-1]:8.0f} chats/s", flush=True)
    loads.append(report.load_average())
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    for name, value in medians.items():
        print(f"{name:8} {value:8.0f} chats/s  {value / medians['plain']:.2f} of plain")
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    content = report.facts("make bench-frontend", settings, loads) | {"chats_per_s": rounds, "median": medians}
    args.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
