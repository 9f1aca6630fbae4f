"""Request and response types of the HTTP API, a file for each endpoint."""
