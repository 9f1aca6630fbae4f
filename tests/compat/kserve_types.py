"""KServe's resources by the types that its Python package declares, read without importing that package.

The package's classes are generated from KServe's OpenAPI document: `openapi_types` says the type of each attribute,
`attribute_map` its name in a manifest. Importing them would take FastAPI, pandas and gRPC.
"""

import ast
import functools
import re
from pathlib import Path
from typing import Any

import kubernetes_validate

SCALARS: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "bool": (bool,), "float": (int, float)}


class Declared:
    """What a class declares: the type of each field of a manifest, and the fields it can't do without."""

    def __init__(self, text: str) -> None:
        [body] = [node.body for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
        tables = {
            node.targets[0].id: ast.literal_eval(node.value)
            for node in body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        names = tables["attribute_map"]
        self.types = {names[attribute]: kind for attribute, kind in tables["openapi_types"].items()}
        self.required = {names[attribute] for attribute in re.findall(r"for `(\w+)`, must not be `None`", text)}


@functools.cache
def declarations(folder: Path) -> dict[str, Declared]:
    """Returns the package's classes by name."""
    texts = [file.read_text(encoding="utf-8") for file in sorted((folder / "python/kserve/models").glob("v1*.py"))]
    return {re.search(r"^class (\w+)", text, re.MULTILINE)[1]: Declared(text) for text in texts}  # type: ignore[index]


def problems_of(value: Any, kind: str, classes: dict[str, Declared], path: str) -> list[str]:
    """Returns how a value differs from a declared type; Kubernetes' own types are left to Kubernetes' schemas."""
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        if not isinstance(value, list):
            return [f"{path} must be a list, got {value!r}"]
        nested = [problems_of(item, inner[1], classes, f"{path}[{idx}]") for idx, item in enumerate(value)]
        return [problem for problems in nested for problem in problems]
    if kind in SCALARS:
        is_right = isinstance(value, SCALARS[kind]) and (kind == "bool" or not isinstance(value, bool))
        return [] if is_right else [f"{path} must be of type {kind}, got {value!r}"]
    if kind not in classes:
        return []
    if not isinstance(value, dict):
        return [f"{path} must be an object, got {value!r}"]
    declared = classes[kind]
    problems = [f"{path} has no field {name}" for name in value.keys() - declared.types.keys()]
    problems += [f"{path} must have the field {name}" for name in declared.required - value.keys()]
    for name in value.keys() & declared.types.keys():
        problems += problems_of(value[name], declared.types[name], classes, f"{path}.{name}")
    return problems


def pod_problems(predictor: dict[str, Any], classes: dict[str, Declared], version: str) -> list[str]:
    """Checks the fields that a predictor has from a pod, as a pod."""
    types = classes["V1beta1PredictorSpec"].types
    own = {name for name, kind in types.items() if kind in classes} | classes[
        "V1beta1ComponentExtensionSpec"
    ].types.keys()
    pod = {name: value for name, value in predictor.items() if name not in own}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "model"}, "spec": pod}
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"as a pod: {error.message}"]
    return []


def kserve_problems(folder: Path, document: dict[str, Any], version: str) -> tuple[str, list[str]]:
    """Returns by what an `InferenceService` was checked, and what is wrong with it.

    Args:
        folder: Where `python` has KServe's package.
        document: The object.
        version: The version of Kubernetes whose schemas check its pod.
    """
    [about] = (folder / "python").glob("kserve-*.dist-info")
    schema = f"{about.stem} and Kubernetes {version}"
    if (document["apiVersion"], document["kind"]) != ("serving.kserve.io/v1beta1", "InferenceService"):
        return schema, [f"{document['apiVersion']} {document['kind']} can't be checked here"]
    classes = declarations(folder)
    problems = problems_of(document, "V1beta1InferenceService", classes, document["kind"])
    if not problems:
        problems = pod_problems(document["spec"]["predictor"], classes, version)
    return schema, problems
