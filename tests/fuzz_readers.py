"""Changes bytes of quantised files at random: each opens or is one error, in little memory.

`python -m tests.fuzz_readers SECONDS` gives each reader so many seconds.
"""

import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from llm import BPETokenizer
from llm.checkpoint import Checkpoint
from llm.errors import LLMError
from llm.export import export
from llm.models.quantised import joined
from llm.models.quantised.scheme import Scheme
from llm.models.tensor_files import TensorFiles
from tests.quantised_checkpoints import FORMATS, write_pair

# Models here take a few MB, so what is beyond this comes from a count in a changed file.
_MAX_GROWTH_KB = 400_000
_MAX_SECONDS = 10.0
_HEAD_BYTES = 6000
_NUMBERS = (b"\0" * 8, b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\x00\x7e", b"\x00\x7c", b"9" * 12, b"-1")


def main() -> None:
    """Fuzzes all readers, one after the other."""
    seconds = float(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        for name, (files, opened) in _targets(Path(scratch)).items():
            done, refused = _fuzz(files, opened, seconds)
            sys.stdout.write(f"» {name}: {done} changed files, {refused} refused\n")
            sys.stdout.flush()


def _targets(root: Path) -> dict[str, tuple[list[Path], Callable[[], object]]]:
    """Returns the files of each reader, and what opens them."""
    found: dict[str, tuple[list[Path], Callable[[], object]]] = {}
    for name, form in FORMATS.items():
        write_pair(root / name, form, num_hidden_layers=1, intermediate_size=128)
        directory = root / name / "quantised"
        found[name] = [directory / "config.json", directory / "model.safetensors"], _opener(directory)
    tokenizer = BPETokenizer.train_from_iterator(["to be or not to be"], vocab_size=260, progress=False)
    write_pair(root / "plain", FORMATS["awq"], tokenizer, hidden_size=256, num_hidden_layers=1)
    for kind in ("q8_0", "q4_0", "q4_k", "q6_k"):
        file = export(root / "plain" / "plain", root / f"{kind}.gguf", "gguf", quantization=kind)
        found[f"GGUF {kind}"] = [file], _opener(file)
    (root / "mxfp4").mkdir()
    file = root / "mxfp4" / "model.safetensors"
    blocks = torch.randint(0, 256, (2, 64, 2, 16), dtype=torch.uint8)
    save_file({"experts.down_proj_blocks": blocks, "experts.down_proj_scales": blocks[..., 0].clone()}, file)
    found["mxfp4"] = [file], lambda: _load_all(file.parent)
    return found


def _opener(path: Path) -> Callable[[], object]:
    return lambda: Checkpoint(path).model("float32", keep_packed=random.random() < 0.5)


def _load_all(directory: Path) -> list[torch.Tensor]:
    return [tensor.load(torch.float32) for tensor in joined(Scheme("mxfp4"), TensorFiles(directory)).values()]


def _fuzz(files: list[Path], opened: Callable[[], object], seconds: float) -> tuple[int, int]:
    """Returns how many changed files were opened or refused, and how many were refused.

    Raises:
        AssertionError: A file took too much memory or time. Any other error is a reader's fault too.
    """
    opened()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    originals = {file: file.read_bytes() for file in files}
    done, refused, end = 0, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        file, start = random.choice(files), time.monotonic()
        changed = _changed(originals[file])
        file.write_bytes(changed)
        try:
            opened()
        except LLMError:
            refused += 1
        except Exception as error:
            kept = Path(tempfile.mkdtemp(prefix="fuzz-")) / file.name
            kept.write_bytes(changed)
            error.add_note(f"the changed file is {kept}")
            raise
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < _MAX_GROWTH_KB, f"{file.name} takes {grown} KB"
        assert time.monotonic() - start < _MAX_SECONDS, f"{file.name} takes {time.monotonic() - start:.1f} s"
        file.write_bytes(originals[file])
        done += 1
    return done, refused


def _changed(content: bytes) -> bytes:
    """Returns content that is cut, or has other bytes in a few places, most of them in its head."""
    if random.random() < 0.1:
        return content[: random.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(random.randint(1, 4)):
        reach = len(content) if random.random() < 0.2 else min(len(content), _HEAD_BYTES)
        place, number = random.randrange(reach), random.choice((*_NUMBERS, random.randbytes(random.randint(1, 4))))
        changed[place : place + len(number)] = number
    return bytes(changed)


if __name__ == "__main__":
    main()
