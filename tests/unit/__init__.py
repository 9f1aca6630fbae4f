"""Fast tests, one file a module."""
