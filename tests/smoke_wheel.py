"""Tries the installed wheel, from an empty directory: command, tokenizer, training, generation."""

import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Fails with the first command that fails."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "corpus.txt").write_text("To be, or not to be, that is the question.\n" * 200, encoding="utf-8")
        llm = str(Path(sys.executable).parent / "llm")
        settings = ["tokenizer.vocab_size=300", "model.hidden_size=32", "model.max_position_embeddings=32"]
        check([llm, "--help"], directory, "tokenizer")
        check([llm, "train", "--data", "corpus.txt", "--out", "run", "--max-steps", "3", *settings], directory, "step_")
        check(
            [llm, "generate", "run", "To be", "--max-tokens", "8", "--temperature", "0"], directory, "\n", min_length=4
        )
        check([llm, "info", "run"], directory, "LlamaForCausalLM")
        page = "from llm.serving.endpoints.page import ASSETS; print(*ASSETS)"
        check([sys.executable, "-c", page], directory, "chat.js")
        check([sys.executable, "-c", "import llm; print(llm.__file__)"], directory, "site-packages")
    print("the wheel works")


def check(command: list[str], directory: str, expected: str, min_length: int = 1) -> None:
    """Runs `command` in `directory`; it must exit with 0 and print `expected` and as many characters or more."""
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0 or expected not in done.stdout or len(done.stdout) < min_length:
        sys.exit(f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")


if __name__ == "__main__":
    main()
