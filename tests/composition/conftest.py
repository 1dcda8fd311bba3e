"""Keeps the suite off the programs of this folder, which take over JAX or Optax as they are imported."""

collect_ignore = ["optax_sharding.py", "sharded.py"]
