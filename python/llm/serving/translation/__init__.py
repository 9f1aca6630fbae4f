"""Requests of other APIs as chat requests, a file for each API."""
