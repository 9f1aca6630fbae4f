"""Schemathesis over `/openapi.json`: `make test-openapi`."""
