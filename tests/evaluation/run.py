"""Makes an environment with `lm_eval`, exports SmolLM2 for it, serves it and runs `compare.py`."""

import os
import site
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from llm.export import export
from llm.inference import EngineConfig
from llm.serving import ServerConfig, ServerHandle
from tests.evaluation.data import write_tasks

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
ENVIRONMENT = ROOT / ".cache" / "compat" / "lm-eval"
REQUIREMENT = "lm_eval[api]==0.4.*"
NUM_SAMPLES = 16


def environment() -> Path:
    """Returns the Python of an environment with `lm_eval`, made if it is missing; the rest comes from this one."""
    python, done = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".done"
    if not done.exists():
        print(f"» installing {REQUIREMENT}", flush=True)
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
        packages = next(ENVIRONMENT.glob("lib/python*/site-packages"))
        # Packages of the new environment come first.
        (packages / "shared.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, REQUIREMENT], check=True)
        done.touch()
    return python


def main() -> None:
    python = environment()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        samples = write_tasks(directory, int(sys.argv[1]) if len(sys.argv) > 1 else NUM_SAMPLES)
        weights = export(MODEL, directory / "smollm2", dtype="float32")
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(directory / "huggingface")}
        paths = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]).rstrip(os.pathsep)
        engine = EngineConfig(max_model_len=4096)
        with ServerHandle(weights, ServerConfig(port=0, dtype="float32", engine=engine)) as server:
            command = [python, "-m", "tests.evaluation.compare", weights, directory, server.url, samples]
            subprocess.run(command, env=os.environ | offline | {"PYTHONPATH": paths}, cwd=ROOT, check=True)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
