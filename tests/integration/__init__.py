"""Tests across floors, on real ports and processes."""
