"""Finds missing and incomplete files among those that TFDS prepared."""

import os
from typing import Any


def damaged_shards(split: Any) -> tuple[int, list[str]]:
    """Returns how many examples the files of a split have, and the names of those files that are not whole.

    Args:
      split: a `tfds.core.SplitInfo`.
    """
    from array_record.python import array_record_module  # there is none but for Linux

    found, damaged = 0, []
    for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
        try:
            reader = array_record_module.ArrayRecordReader(os.fspath(path))
            records = reader.num_records()
            reader.close()
        except RuntimeError:
            records = 0
        found += records
        if records != length:
            damaged.append(path.name)
    return found, damaged
