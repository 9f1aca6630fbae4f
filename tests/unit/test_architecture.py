"""The floors of the house: imports go down only."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import pytest

from tests import rust_source

PACKAGE = Path(__file__).parents[2] / "python" / "llm"
# Lowest first. Names on one line may not import each other; a package may import within itself.
FLOORS = [
    {"errors", "_rust", "progress"},
    {"settings"},
    {"registry"},
    {"tokenization"},
    {"models"},
    {"checkpoint"},
    {"data", "inference"},
    {"training", "evaluation", "serving"},
    {"api", "benchmark", "info", "export", "quantizing", "simulation"},
    {"demo", "merging"},
    {"cli"},
    {"__main__"},
]
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
        assert floor_of(name) < floor_of(own), f"{own} (floor {floor_of(own)}) imports {name} (floor {floor_of(name)})"


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


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_modules_of_pytorch_that_load_its_compiler_are_imported_where_they_are_used(file: Path) -> None:
    heavy = ("torch.distributed.tensor", "torch.distributed.fsdp", "torch._dynamo")
    at_top = [node.module or "" for node in ast.parse(file.read_text()).body if isinstance(node, ast.ImportFrom)]
    assert [name for name in at_top if name.startswith(heavy)] == []


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
    siblings = {"answer", "corpus", "tokenizer", "sampling", "scheduler", "speculation", "grammar", "kernels"}
    for file in sorted(source.rglob("*.rs")):
        own = file.relative_to(source).parts[0].removesuffix(".rs")
        text = file.read_text()
        if own != "python" and file.name != "lib.rs":
            assert "pyo3" not in text, file
        for other in siblings - {own} if own in siblings else set():
            assert f"crate::{other}" not in text, f"{file} uses {other}"


ROOT = PACKAGE.parents[1]
CRATE = ROOT / "rust" / "src"
# The one stub lists what a whole crate offers.
MAX_LINES = {".py": 400, ".pyi": 800, ".rs": 600}
MAX_FUNCTION_LINES = 60
SOURCES = [
    file
    for folder in ("python", "rust", "tests", "benches", "examples")
    for file in sorted((ROOT / folder).rglob("*"))
    if file.suffix in MAX_LINES
]
Node = TypeVar("Node")


def circle_in(graph: Mapping[Node, set[Node]]) -> list[Node]:
    """The nodes of one circle, the first one repeated at the end; empty where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def package_imports() -> dict[str, set[str]]:
    """The modules of the package that each one imports outside `if TYPE_CHECKING`."""
    names = {file: ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in PACKAGE.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): file for file, name in names.items()}
    found = {}
    for module, file in modules.items():
        tree = ast.parse(file.read_text())
        checked_only = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for inner in ast.walk(node)
        }
        nodes = [node for node in ast.walk(tree) if id(node) not in checked_only]
        named = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                named += [name if name in modules else node.module or "" for name in whole]
        found[module] = {name for name in named if name in modules} - {module}
    return found


def test_no_circle_between_files_of_the_package() -> None:
    assert circle_in(package_imports()) == []


@pytest.mark.parametrize("folder", sorted(file.name for file in CRATE.iterdir() if file.is_dir()))
def test_no_circle_between_files_of_the_crate(folder: str) -> None:
    graph = rust_source.imports(CRATE)
    inside = {file for file in graph if file.relative_to(CRATE).parts[0] == folder}
    circle = circle_in({file: graph[file] & inside for file in inside})
    assert [str(file.relative_to(CRATE)) for file in circle] == []


def test_no_circle_between_folders_of_the_crate() -> None:
    graph: dict[str, set[str]] = {}
    for file, targets in rust_source.imports(CRATE).items():
        own = file.relative_to(CRATE).parts[0]
        graph.setdefault(own, set()).update(target.relative_to(CRATE).parts[0] for target in targets)
    graph.pop("lib.rs")
    assert circle_in({own: targets - {own, "lib.rs"} for own, targets in graph.items()}) == []


def drawn_floors(side: str) -> list[set[str]]:
    """The boxes of one side of the picture in docs/architecture.md, highest first."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    side = re.search(rf"subgraph {side}\[.*?\n(.*?)\n    end", page, re.DOTALL)[1]
    return [set(box.split(" ‖ ")) for box in re.findall(r'\w\d+\["(.+?)"\]', side)]


def test_the_architecture_page_draws_the_floors() -> None:
    assert drawn_floors("Python")[::-1] == FLOORS[:-1]
    crate = {path.name.removesuffix(".rs") for path in CRATE.iterdir()} - {"lib"}
    floors = drawn_floors("Rust")[::-1]
    assert set().union(*floors) == crate
    for file, targets in rust_source.imports(CRATE).items():
        own = file.relative_to(CRATE).parts[0].removesuffix(".rs")
        for name in {target.relative_to(CRATE).parts[0].removesuffix(".rs") for target in targets} - {own, "lib"}:
            lower = next(idx for idx, names in enumerate(floors) if name in names)
            assert own == "lib" or lower < next(idx for idx, names in enumerate(floors) if own in names), (own, name)


def test_a_circle_is_found_through_nested_imports_and_re_exports(tmp_path: Path) -> None:
    (tmp_path / "lib.rs").write_text("pub mod a; pub mod b; pub use b::Thing;")
    (tmp_path / "a.rs").write_text('use crate::{Thing, // use crate::b::Other;\n c};\nconst S: &str = "use crate::b;";')
    (tmp_path / "b.rs").write_text("pub struct Thing; fn f() { crate::a::go() }")
    graph = rust_source.imports(tmp_path)
    assert graph[tmp_path / "a.rs"] == {tmp_path / "b.rs", tmp_path / "lib.rs"}
    assert {tmp_path / "a.rs", tmp_path / "b.rs"} <= set(circle_in(graph))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_stay_within_their_limits(file: Path) -> None:
    assert file.read_text(encoding="utf-8").count("\n") <= MAX_LINES[file.suffix]
    if file.is_relative_to(PACKAGE) or file.is_relative_to(CRATE):  # a test's table may be longer
        assert [(name, lines) for name, lines in functions_of(file) if lines > MAX_FUNCTION_LINES] == []


def functions_of(file: Path) -> list[tuple[str, int]]:
    """Each function of a file and its number of lines."""
    if file.suffix == ".rs":
        return rust_source.function_lengths(file)
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(node.name, (node.end_lineno or 0) - node.lineno + 1) for node in functions]


def test_lengths_of_rust_functions_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "long.rs"
    file.write_text(
        "fn short(a: [f32; 4]) {}\ntrait T { fn none(&self); }\nfn long() {\n// }\n" + "    f();\n" * 3 + "}\n"
    )
    assert rust_source.function_lengths(file) == [("short", 1), ("long", 6)]


@pytest.mark.parametrize("index", ["docs/architecture.md", "mkdocs.yml"])
def test_every_decision_is_in_the_indexes(index: str) -> None:
    decisions = sorted(file.name for file in (ROOT / "docs" / "adr").glob("*.md"))
    assert re.findall(r"adr/(\d{4}-[\w-]+\.md)", (ROOT / index).read_text().split("## Decisions")[-1]) == decisions


def foreign_modules() -> set[str]:
    """First name of everything that the package imports from outside itself and Python."""
    nodes = [node for file in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"llm"}


def test_types_are_checked_without_the_packages_of_extras() -> None:
    """Linters run before an extra is installed, so each import of one is named in mypy's settings."""
    settings = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    required = {re.split(r"[\[<>=~ ]", need)[0].replace("-", "_") for need in settings["project"]["dependencies"]}
    overrides = settings["tool"]["mypy"]["overrides"]
    absent = {
        name.removesuffix(".*")
        for entry in overrides
        if entry.get("ignore_missing_imports")
        for name in entry["module"]
    }
    # The file that imports Triton says itself what mypy is to skip.
    assert foreign_modules() - required - absent == {"triton"}
