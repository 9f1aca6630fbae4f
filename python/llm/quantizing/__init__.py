"""Quantises checkpoints: integers of four or eight bits instead of floating-point weights."""

from llm.quantizing.run import QuantizationReport, quantize

__all__ = ["QuantizationReport", "quantize"]
