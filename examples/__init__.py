"""Training loops with jumps, each a script of its own: `python -m examples.plain`."""
