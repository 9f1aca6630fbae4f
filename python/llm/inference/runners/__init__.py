"""Model runners, each of which computes the logits of a step's plan on one kind of hardware."""
