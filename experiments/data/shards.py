"""Finds missing and incomplete files among those that TFDS prepared."""

import os
from pathlib import Path
from typing import Any


def damaged_shards(split: Any) -> list[str]:
    """Returns the names of the files of a split that are not whole.

    Args:
      split: a `tfds.core.SplitInfo`.
    """
    from array_record.python import array_record_module  # there is none but for Linux

    damaged = []
    for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
        try:
            reader = array_record_module.ArrayRecordReader(os.fspath(path))
            records = reader.num_records()
            reader.close()
        except RuntimeError:
            records = 0
        if records != length:
            damaged.append(Path(path).name)
    return damaged
