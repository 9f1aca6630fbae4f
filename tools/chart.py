"""Renders deploy/chart with each file of deploy/values into deploy/kubernetes; `make chart` runs it.

Helm itself renders, as the library that `helm-python-sdk` brings. Each rendered file names the digest of what it was
made from, by which a test without Helm sees that it is up to date.
"""

import hashlib
import sys
from pathlib import Path

DEPLOY = Path(__file__).parents[1] / "deploy"
RELEASE, NAMESPACE = "llm-oxide", "serving"


def digest(values: Path) -> str:
    """Returns the digest of the chart and of a file of values."""
    files = sorted(file for file in (DEPLOY / "chart").rglob("*") if file.is_file())
    summed = hashlib.sha256()
    for file in [*files, values]:
        content = file.read_bytes()
        summed.update(f"{file.relative_to(DEPLOY).as_posix()} {len(content)}\n".encode() + content)
    return summed.hexdigest()


def rendered(values: Path) -> str:
    """Returns the manifests of the chart with a file of values."""
    import helm_python as helm  # type: ignore[import-not-found, unused-ignore]

    chosen = helm.values_from_yaml(values.read_text())
    if problems := [finding for finding in helm.lint(DEPLOY / "chart", chosen)["messages"] if finding["severity"] > 1]:
        raise SystemExit(f"{values}: {problems}")
    with helm.Chart.load(DEPLOY / "chart") as chart:
        manifests = chart.render(chosen, name=RELEASE, namespace=NAMESPACE)
    parts = [text.strip() for name, text in sorted(manifests.items()) if name.endswith(".yaml") and text.strip()]
    return "\n---\n".join(parts) + "\n"


def main() -> None:
    """Writes the file of each file of values."""
    for values in sorted((DEPLOY / "values").glob("*.yaml")):
        about = values.read_text().splitlines()[0].removeprefix("# ")
        command = f"helm template {RELEASE} deploy/chart -n {NAMESPACE} -f deploy/values/{values.name}"
        head = f"# {about}\n# Made by `make chart`, which does: {command}\n# digest: {digest(values)}\n"
        (DEPLOY / "kubernetes" / values.name).write_text(head + rendered(values))
        sys.stdout.write(f"deploy/kubernetes/{values.name}\n")


if __name__ == "__main__":
    main()
