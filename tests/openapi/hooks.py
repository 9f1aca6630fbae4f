"""Hooks of Schemathesis: most generated requests name the served model, so that they reach the engine."""

import os

import schemathesis

MODEL = os.environ["LLM_SERVED_MODEL"]


@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and isinstance(body.get("model"), str) and body["model"]:
        return body | {"model": MODEL}
    return body
