"""Evaluation beside EleutherAI's lm-evaluation-harness: `make test-eval`."""
