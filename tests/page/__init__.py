"""The chat page in a headless Chromium: `make test-page`."""
