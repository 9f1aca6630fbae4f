"""The floors of the house: imports go down only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "python" / "llm"
# Lowest first. Names on one line may not import each other; a package may import within itself.
FLOORS = [
    {"errors", "_rust"},
    {"config", "model_config", "sampling_params", "registry"},
    {"tokenization"},
    {"models"},
    {"checkpoint", "quantization"},
    {"data", "inference"},
    {"training", "evaluation", "serving"},
    {"api", "info", "export", "simulation"},
    {"demo"},
    {"cli"},
]
# Within its floor, a module may use these; they never use it back.
BESIDE = {"registry": {"config"}, "config": {"model_config"}}
LAZY_IMPORTERS = {"cli", "__init__", "demo", "api", "training"}


def floor_of(name: str) -> int:
    return next(idx for idx, names in enumerate(FLOORS) if name in names)


def top_name(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(tree: ast.AST) -> list[str]:
    """First name below `llm` of every import in `tree`, at any depth, outside `if TYPE_CHECKING`."""
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            names = [f"llm.{alias.name}" for alias in node.names] if node.module == "llm" else [node.module or ""]
        found += [name.split(".")[1] for name in names if name.startswith("llm.")]
    return found


FILES = sorted(file for file in PACKAGE.rglob("*.py") if file.name != "__init__.py" or file.parent != PACKAGE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down_only(file: Path) -> None:
    own = top_name(file)
    for name in imported_modules(ast.parse(file.read_text())):
        if name == own:
            continue
        below = floor_of(name) < floor_of(own) or name in BESIDE.get(own, set())
        assert below, f"{own} (floor {floor_of(own)}) imports {name} (floor {floor_of(name)})"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_own_modules_are_imported_at_the_top_except_by_the_command_line(file: Path) -> None:
    if top_name(file) in LAZY_IMPORTERS:
        return
    tree = ast.parse(file.read_text())
    inner = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lazy = [name for node in inner for name in imported_modules(node)]
    assert lazy == [], f"{file.name} imports {lazy} inside a function"


def test_every_module_has_a_floor() -> None:
    assert {top_name(file) for file in FILES} <= set().union(*FLOORS)


@pytest.mark.parametrize("heavy", ["torch", "granian", "transformers", "matplotlib"])
def test_importing_llm_and_its_command_stays_light(heavy: str) -> None:
    code = f"import llm, llm.cli.main, sys; llm.registry.names('norm'); sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The one module that reads pickles, with an unpickler that looks up no class of the file's choice.
TENSOR_READER = Path("models/tensor_files.py")
PICKLE_READER = Path("tokenization/readers/pickled.py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_pickle_is_ever_trusted(file: Path) -> None:
    text = file.read_text()
    names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    assert not {"marshal", "shelve"} & names
    if file.relative_to(PACKAGE) == TENSOR_READER:
        assert text.count("torch.load") == text.count("weights_only=True") == 1
        return
    assert "torch.load" not in text
    if file.relative_to(PACKAGE) == PICKLE_READER:
        assert not {"load", "loads"} & called_on(ast.parse(text), "pickle")
        return
    assert "pickle" not in names
    assert "allow_pickle=True" not in text


def called_on(tree: ast.AST, name: str) -> set[str]:
    """What is called as an attribute of `name`."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    attributes = [call for call in calls if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name)]
    return {call.attr for call in attributes if isinstance(call.value, ast.Name) and call.value.id == name}


def test_rust_siblings_never_meet_and_the_core_knows_no_python() -> None:
    source = PACKAGE.parents[1] / "rust" / "src"
    siblings = {"tokenizer", "sampling", "scheduler", "speculation", "kernels"}
    for file in sorted(source.rglob("*.rs")):
        own = file.relative_to(source).parts[0].removesuffix(".rs")
        text = file.read_text()
        if own != "python" and file.name != "lib.rs":
            assert "pyo3" not in text, file
        for other in siblings - {own} if own in siblings else set():
            assert f"crate::{other}" not in text, f"{file} uses {other}"
