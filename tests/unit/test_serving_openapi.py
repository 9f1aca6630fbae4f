"""The OpenAPI document beside the routes, and the page made from it."""

import json
import re

import pytest

from llm.serving.openapi.document import document
from llm.serving.openapi.operations import OPERATIONS
from llm.serving.routes import OPEN_ROUTES, PAGE_ROUTES, ROUTES
from tests.unit.test_serving_app import loading_app, send

METHODS = [
    (path, method, operation) for path, methods in document()["paths"].items() for method, operation in methods.items()
]


def test_every_route_has_an_operation_and_every_operation_a_route():
    routes = {f"{method} {path}" for path, methods in ROUTES.items() for method in methods if path not in PAGE_ROUTES}
    assert set(OPERATIONS) == routes, "add a line to serving/openapi/operations.py"
    is_open = {key for key, operation in OPERATIONS.items() if operation.is_open}
    assert is_open == {key for key in routes if key.split(" ")[1] in OPEN_ROUTES}


def test_document_is_served_without_a_key():
    response = send(loading_app(api_keys=("secret",)), "GET", "/openapi.json")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == json.loads(json.dumps(document()))
    assert response.json()["openapi"] == "3.1.0"


def test_every_reference_has_a_component():
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document())))
    assert named <= set(document()["components"]["schemas"])


@pytest.mark.parametrize(
    ("path", "method", "operation"), METHODS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_operations_are_complete(path, method, operation):
    assert operation["operationId"].startswith(method)
    assert operation["summary"][0].isupper()
    names = {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "path"}
    assert names == set(re.findall(r"\{(\w+)\}", path))
    assert ("requestBody" in operation) == (method == "post" and not path.endswith("/cancel"))
    assert set(operation["responses"]) >= {"200", "400", "500", "503"}


def test_request_schema_holds_ranges_and_descriptions():
    field = document()["components"]["schemas"]["ChatCompletionRequest"]["properties"]["top_logprobs"]
    assert {"type": "null"} in field["anyOf"]
    assert (field["anyOf"][0]["minimum"], field["anyOf"][0]["maximum"]) == (0, 20)


@pytest.mark.parametrize("path", [path for path, method, operation in METHODS if "requestBody" in operation])
def test_every_field_of_a_request_is_described(path):
    schemas = document()["components"]["schemas"]
    body = document()["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = schemas[body["$ref"].rpartition("/")[2]]["properties"]
    assert [name for name, field in fields.items() if not described(field)] == []


def described(field):
    """Whether a field is described, or refers to a type, which its docstring describes."""
    return "description" in field or "$ref" in field or any(map(described, field.get("anyOf", ())))


def test_names_of_tools_have_one_pattern_in_the_apis_of_chats_and_messages():
    schemas = document()["components"]["schemas"]
    patterns = {
        path: schema["properties"]["name"].get("pattern")
        for path, schema in schemas.items()
        if {"name", "input_schema"} <= schema.get("properties", {}).keys() or path == "Function"
    }
    assert len(patterns) == 2
    assert set(patterns.values()) == {r"^[\w.:/-]{1,256}$"}


def test_streams_describe_the_data_of_their_events():
    answer = document()["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]
    event = answer["content"]["text/event-stream"]["schema"]
    assert event["properties"]["data"]["contentSchema"] == {"$ref": "#/components/schemas/ChatCompletionChunk"}
    assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ChatCompletion"}


def test_docs_page_lists_every_operation_without_scripts():
    response = send(loading_app(api_keys=("secret",), chat_page=False), "GET", "/docs")
    assert response.status_code == 200
    assert "script-src 'self'" in response.headers["content-security-policy"]
    for path, method, operation in METHODS:
        assert f"<code>{method.upper()} {path}</code>" in response.text
        assert operation["summary"] in response.text.replace("&#x27;", "'")
    assert re.findall(r"<script|<style| style=| on\w+=|https?://", response.text) == []
    style = send(loading_app(chat_page=False), "GET", "/static/docs.css")
    assert style.status_code == 200
