"""The Rust core's binding. The one stub: signatures, errors and cost."""

__version__: str
