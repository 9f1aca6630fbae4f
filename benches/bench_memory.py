"""Memory and load of quantised files: resident bytes of a server beside the file's, and seconds until a model is there.

`python benches/bench_memory.py FILE...` writes `benches/results/memory.json`. Each file is served in a process of its
own, which answers a request before its memory is read from `/proc`. A process with the same imports and no model is
subtracted; the cache is not, of which the request uses little. `--random GB` adds a random Llama of that size in Q4_0,
with the tokenizer of the first file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benches" / "peers")]

from serving_report import facts, load_average  # noqa: E402 - after the folders are in the path

from llm._rust import instruction_sets  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "memory.json"
CACHE_BYTES, SPARE_BYTES, SHARE_OF_FILE, SECONDS_A_GB = 64 << 20, 60_000_000, 1.1, 2.0
HIDDEN, INNER, KV_WIDTH, VOCABULARY = 2048, 5632, 256, 49_152
CHILD = """
import json, os, sys, time
from pathlib import Path
import httpx, torch
from llm import LLM
from llm.inference import EngineConfig
from llm.serving import ServerConfig, ServerHandle
def memory(process):
    lines = dict(line.split(":") for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM", "RssAnon", "RssFile")}
work, file, cache = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = EngineConfig(kv_cache_memory_bytes=cache, max_model_len=512)
if work == "import":
    answer = memory("self")
elif work == "load":
    started = time.perf_counter()
    LLM(file, config=config)
    answer = {"load s": round(time.perf_counter() - started, 2)}
else:
    with ServerHandle(file, ServerConfig(port=0, engine=config)) as server:
        model = httpx.get(f"{server.base_url}/models", trust_env=False).json()["data"][0]["id"]
        body = {"model": model, "prompt": "Once upon a time " * 20, "max_tokens": 16, "ignore_eos": True}
        httpx.post(f"{server.base_url}/completions", json=body, timeout=60, trust_env=False).raise_for_status()
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        found = [memory(process) for process in children]
        answer = max(found, key=lambda each: each["VmRSS"]) | {"processes": len(found)}
print(json.dumps(answer))
"""


def child(work: str, file: str = "") -> dict[str, Any]:
    """Memory of a server ("serve") or of a process with its imports alone ("import"), or the seconds to load a file."""
    command = [sys.executable, "-c", CHILD, work, file, str(CACHE_BYTES)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(said.splitlines()[-1]))


def row(file: Path, bare: dict[str, Any]) -> dict[str, Any]:
    """A file's figures; `over` is what the server takes beyond the bar, negative below it."""
    size, found = file.stat().st_size, child("serve", str(file)) | child("load", str(file))
    allowed = SHARE_OF_FILE * size + SPARE_BYTES
    beyond = found["VmRSS"] - bare["VmRSS"]
    return {
        "file": size,
        "beyond bare": beyond,
        "over": round(beyond - allowed),
        "peak over": round(found["VmHWM"] - bare["VmRSS"] - allowed),
        "seconds a GB": round(found["load s"] / size * 1e9, 2),
    } | found


def random_llama(source: Path, target: Path, num_bytes: int) -> None:
    """Writes a Llama of random weights in Q4_0, with the tokenizer of `source`."""
    random = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType.Q4_0
    shapes = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (KV_WIDTH, HIDDEN), "attn_v": (KV_WIDTH, HIDDEN)}
    shapes |= {"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN)}
    shapes |= {"ffn_down": (HIDDEN, INNER)}
    layer_bytes = sum(rows * cols for rows, cols in shapes.values()) * 18 // 32
    num_layers = max(1, round((num_bytes - VOCABULARY * HIDDEN * 18 // 32) / layer_bytes))
    writer = gguf.GGUFWriter(target, "llama")
    for field in gguf.GGUFReader(source).fields.values():
        if field.name.startswith("tokenizer."):
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    writer.add_block_count(num_layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HIDDEN // 64)
    writer.add_head_count_kv(KV_WIDTH // 64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)

    def add(name: str, rows: int, cols: int) -> None:
        blocks = random.integers(0, 256, (rows, cols // 32, 18), dtype=np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(0.004).tobytes(), np.uint8)
        writer.add_tensor(f"{name}.weight", blocks.reshape(rows, -1), raw_dtype=kind)

    add("token_embd", VOCABULARY, HIDDEN)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for layer in range(num_layers):
        for name, (rows, cols) in shapes.items():
            add(f"blk.{layer}.{name}", rows, cols)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Measures each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--random", type=float, default=0.0, help="GB of a random Llama in Q4_0")
    arguments = parser.parse_args()
    load, bare = load_average(), child("import")
    rows = {file.name: row(file, bare) for file in arguments.files}
    if arguments.random:
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "random.gguf"
            random_llama(arguments.files[0], file, int(arguments.random * 1e9))
            rows["random Q4_0"] = row(file, bare)
    bars = {"share of file": SHARE_OF_FILE, "spare": SPARE_BYTES, "seconds a GB": SECONDS_A_GB}
    result = {"bare": bare, "files": rows, "bars": bars}
    result |= facts("python benches/bench_memory.py FILE...", {"instructions": instruction_sets()[-1]}, [load])
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
