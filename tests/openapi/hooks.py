"""Hooks of Schemathesis: most requests name the served model, so that they reach the engine, and answers are noted."""

import json
import os

import schemathesis

MODEL = os.environ["LLM_SERVED_MODEL"]
NOTES = os.environ["LLM_OPENAPI_NOTES"]


@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and isinstance(body.get("model"), str) and body["model"]:
        return body | {"model": MODEL}
    return body


@schemathesis.hook
def after_call(context, case, response):
    """Notes the answer to a request that follows the document."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    note = {"operation": case.operation.label, "status": response.status_code}
    if response.status_code >= 400:
        note["problem"] = response.text[:300]
    with open(NOTES, "a", encoding="utf-8") as notes:
        notes.write(json.dumps(note) + "\n")
