"""Model runners: each turns a step's plan into logits on its own kind of hardware."""
