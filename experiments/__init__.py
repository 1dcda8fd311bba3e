"""Experiments: everything that the paper reports, as commands."""
