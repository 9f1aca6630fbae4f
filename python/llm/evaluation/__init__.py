"""Evaluation of trained models beyond the validation loss. Empty on purpose: nothing here is written yet."""
