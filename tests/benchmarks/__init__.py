"""Measurements of the store beside one step a message by hand; `python -m tests.benchmarks` prints them."""
