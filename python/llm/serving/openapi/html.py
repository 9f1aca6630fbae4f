"""The page at `/docs`: the OpenAPI document as plain HTML, without scripts."""

from functools import cache
from html import escape
from typing import Any

from llm.serving.openapi.document import document

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>API</title>
<link rel="icon" type="image/svg+xml" href="static/icon.svg">
<link rel="stylesheet" href="static/docs.css">
</head>
<body>
<main>
"""


@cache
def docs_page() -> bytes:
    """Returns the page: a section for each operation, with the fields of its request and its responses."""
    described = document()
    title = f"<h1>{escape(described['info']['title'])} {escape(described['info']['version'])}</h1>"
    about = f"<p>{escape(described['info']['summary'])} For programs: <a href='openapi.json'>openapi.json</a>.</p>"
    sections = [
        _section(method, path, operation, described["components"]["schemas"])
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    return "\n".join([_HEAD, title, about, *sections, "</main>\n</body>\n</html>\n"]).encode()


def _section(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    lines = [
        f"<section id='{operation['operationId']}'>",
        f"<h2><code>{method.upper()} {escape(path)}</code></h2>",
        f"<p>{escape(operation['summary'])}{'' if 'security' in operation else '; needs no API key'}.</p>",
    ]
    if "requestBody" in operation:
        schema = _resolved(operation["requestBody"]["content"]["application/json"]["schema"], schemas)
        lines.append(_fields("Request", schema))
    answer = operation["responses"]["200"]["content"].get("application/json")
    if answer is not None:
        lines.append(_fields("Response", _resolved(answer["schema"], schemas)))
    errors = ", ".join(status for status in operation["responses"] if status != "200")
    return "\n".join([*lines, f"<p>Other status codes: {errors}.</p>", "</section>"])


def _fields(title: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        f"<tr><td><code>{escape(name)}</code>{' (required)' if name in required and title == 'Request' else ''}</td>"
        f"<td>{escape(_kind(field))}</td><td>{escape(_description(field))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    ]
    head = "<thead><tr><th>Field</th><th>Type</th><th>Description</th></tr></thead>"
    return (
        f"<details><summary>{title}</summary>\n<table>{head}<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody></table></details>"
    )


def _resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    return schemas[_name(schema)] if "$ref" in schema else schema


def _name(schema: dict[str, Any]) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def _description(schema: dict[str, Any]) -> str:
    inner = (_description(part) for part in schema.get("anyOf", ()))
    return schema.get("description") or next(filter(None, inner), "")


def _kind(schema: dict[str, Any]) -> str:
    """Returns a short name of a type, such as `integer ≥ 1 or null`."""
    if "$ref" in schema:
        return _name(schema)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_kind, schema["anyOf"])))
    if "enum" in schema:
        return " or ".join(f'"{value}"' for value in schema["enum"])
    if "const" in schema:
        return f'"{schema["const"]}"'
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        return f"list of {_kind(schema['items'])}"
    kind = schema.get("type", "any")
    limits = (("≥", "minimum"), (">", "exclusiveMinimum"), ("≤", "maximum"), ("<", "exclusiveMaximum"))
    shown = [
        f"{sign} {schema[limit]:g}" for sign, limit in limits if limit in schema and abs(schema[limit]) < 2**31 - 1
    ]
    return " ".join([kind, " and ".join(shown)]).strip()
