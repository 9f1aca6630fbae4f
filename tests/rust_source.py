"""The crate's source as the architecture tests see it: files as modules, what each imports, how long each function is.

Rust is read as text: comments, strings and `#[cfg(test)]` modules are blanked first, so line numbers stay right.
"""

import re
from collections.abc import Iterator
from pathlib import Path

_BLANKED = re.compile(
    r"""//[^\n]*|/\*.*?\*/|r(?P<hashes>#*)".*?"(?P=hashes)|b?"(?:\\.|[^"\\])*"|b?'(?:\\.[^']*|[^\\'])'""", re.DOTALL
)
_USE = re.compile(r"\b(?P<public>pub(?:\([^)]*\))?\s+)?use\s+(?P<tree>[^;]+);")
_INLINE_PATH = re.compile(r"\b(?:crate|self|super)(?:::\w+)+")
_FUNCTION = re.compile(r"\bfn\s+(\w+)")
_TEST_MODULE = re.compile(r"#\[cfg\(test\)\]\s*mod\s+\w+\s*(?=\{)")

ModulePath = tuple[str, ...]


def code_of(file: Path) -> str:
    """The file's code: comments, literals and test modules become blanks of the same shape."""
    code = _BLANKED.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), file.read_text(encoding="utf-8"))
    for match in _TEST_MODULE.finditer(code):
        end = _closing_brace(code, match.end())
        code = code[: match.start()] + re.sub(r"[^\n]", " ", code[match.start() : end]) + code[end:]
    return code


def function_lengths(file: Path) -> list[tuple[str, int]]:
    """Each function with a body and its number of lines."""
    code, found = code_of(file), []
    for match in _FUNCTION.finditer(code):
        body = re.compile(r"[{;]").search(code, _past_signature(code, match.end()))
        if body is not None and body[0] == "{":
            end = _closing_brace(code, body.start())
            found.append((match[1], code.count("\n", match.start(), end) + 1))
    return found


def modules(source: Path) -> dict[ModulePath, Path]:
    """Every file below `source` by the path of its module, the crate's root being `()`."""
    found = {}
    for file in sorted(source.rglob("*.rs")):
        parts = file.relative_to(source).with_suffix("").parts
        found[() if parts == ("lib",) else parts[:-1] if parts[-1] == "mod" else parts] = file
    return found


def imports(source: Path) -> dict[Path, set[Path]]:
    """The files whose items each file names, with re-exports followed to the file that defines the item.

    A `pub use` passes an item on and needs none itself, so a parent that re-exports its children does not import them.
    """
    files = modules(source)
    code = {module: code_of(file) for module, file in files.items()}
    passed_on = {module: _re_exports(module, text) for module, text in code.items()}
    found: dict[Path, set[Path]] = {}
    for module, text in code.items():
        targets = {_resolve(path, files, passed_on) for path in _named_paths(module, text)}
        found[files[module]] = {files[target] for target in targets if target is not None} - {files[module]}
    return found


def _named_paths(module: ModulePath, code: str) -> Iterator[ModulePath]:
    for match in _USE.finditer(code):
        if match["public"] is None:
            yield from (path for path, _ in _absolute(module, match["tree"]))
    for match in _INLINE_PATH.finditer(_USE.sub("", code)):
        yield from (path for path, _ in _absolute(module, match[0]))


def _re_exports(module: ModulePath, code: str) -> dict[str, ModulePath]:
    public = (match["tree"] for match in _USE.finditer(code) if match["public"])
    return {name: path for tree in public for path, name in _absolute(module, tree)}


def _absolute(module: ModulePath, tree: str) -> Iterator[tuple[ModulePath, str]]:
    """Each path of a `use` tree from the crate's root, with the name it goes by here; other crates' are left out."""
    for path, name in _leaves(re.sub(r"\s+", " ", tree).strip()):
        base, rest = ((), path[1:]) if path[0] == "crate" else (module, path)
        while rest and rest[0] in {"self", "super"}:
            base, rest = base[:-1] if rest[0] == "super" else base, rest[1:]
        yield (*base, *rest), name


def _leaves(tree: str) -> Iterator[tuple[list[str], str]]:
    head, brace, inner = tree.partition("{")
    start = [part for part in head.replace(" ", "").split("::") if part]
    if not brace:
        path, _, alias = tree.partition(" as ")
        parts = [part for part in path.replace(" ", "").split("::") if part not in {"", "*"}]
        yield parts, alias or parts[-1]
        return
    for part in _split(inner[: inner.rindex("}")]):
        for path, name in _leaves(part):
            full = start + [step for step in path if step != "self"]
            yield full, name if name != "self" else full[-1]


def _split(inner: str) -> list[str]:
    parts, depth = [""], 0
    for letter in inner:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _resolve(
    path: ModulePath, files: dict[ModulePath, Path], passed_on: dict[ModulePath, dict[str, ModulePath]]
) -> ModulePath | None:
    """The module that defines what `path` names; `None` for another crate's."""
    known = next((path[:end] for end in range(len(path), -1, -1) if path[:end] in files), None)
    if known is None or known == path:
        return known
    name = path[len(known)]
    if name in passed_on[known] and passed_on[known][name] != path:
        return _resolve((*passed_on[known][name], *path[len(known) + 1 :]), files, passed_on)
    return known


def _past_signature(code: str, start: int) -> int:
    """Past the parameters, whose types may hold `;` (`[f32; 4]`)."""
    opening = code.index("(", start)
    return _closing(code, opening, "(", ")")


def _closing_brace(code: str, start: int) -> int:
    return _closing(code, code.index("{", start), "{", "}")


def _closing(code: str, opening: int, left: str, right: str) -> int:
    depth = 0
    for place in range(opening, len(code)):
        depth += (code[place] == left) - (code[place] == right)
        if depth == 0:
            return place + 1
    return len(code)
