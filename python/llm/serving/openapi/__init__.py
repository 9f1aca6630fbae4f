"""The description of the HTTP API: OpenAPI 3.1 at `/openapi.json`, and a page made from it at `/docs`."""
