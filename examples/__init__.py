"""Training loops with jumps; run one with `python -m examples.plain`."""
