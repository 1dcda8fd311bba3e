"""What the results of other commands say of a jump."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax

from optax_introspect import pretrained
from optax_introspect.forecast import _WRITTEN_OUT_FROM, forecaster_of_arrays

from ..accelerators import SHAPE
from ..benchmark.jump import JUMP, OTHER_TREES, STREAM

BENCHMARK = "python -m experiments benchmark --sections jumps"
ACCELERATORS = "python -m experiments accelerators"

# The tree of the benchmark of which every array is evaluated in the compact form.
_COMPACT = next(name for name, (_, largest) in OTHER_TREES.items() if largest < _WRITTEN_OUT_FROM)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Figures from results.

    Attributes:
      fast: nanoseconds a weight of a jump, by the number of weights, where arrays are written out.
      stream: the same of reading four arrays and writing one.
      compact: nanoseconds a weight of a jump, where arrays are evaluated in the compact form.
      temporaries: bytes that a jump keeps on an H100 for every weight of an array, by the case of `accelerators`.
    """

    fast: dict[int, float]
    stream: dict[int, float]
    compact: float
    temporaries: dict[str, float]

    @classmethod
    def read(cls, results: Path) -> "Measured":
        """Reads them.

        Args:
          results: the folder with the results of `benchmark` and `accelerators`.

        Raises:
          FileNotFoundError: one of the files is missing.
          ValueError: a file is not as the commands write it, or lacks a figure.
        """
        benchmark = results / "benchmark" / "benchmark.json"
        accelerators = results / "accelerators" / "accelerators.json"
        rows = _parsed(benchmark, BENCHMARK).get("jumps", [])
        compiled = _parsed(accelerators, ACCELERATORS)
        by_form = {
            form: {row["place"]["weights"]: row["median"] for row in rows if row["place"].get("form") == form}
            for form in (JUMP, STREAM)
        }
        compact = [row["median"] for row in rows if row["what"].startswith(JUMP) and row["what"].endswith(_COMPACT)]
        temporaries = {
            row["case"]: row["temporaries"] / math.prod(SHAPE) for row in compiled if "H100" in row["target"]
        }
        for found, what, path, command in (
            (by_form[JUMP], "a jump", benchmark, BENCHMARK),
            (by_form[STREAM], STREAM, benchmark, BENCHMARK),
            (compact, f"a jump, {_COMPACT}", benchmark, BENCHMARK),
            (temporaries, "an H100", accelerators, ACCELERATORS),
        ):
            if not found:
                raise ValueError(f"{path} has no figures of {what}; `{command}` makes them")
        return cls(by_form[JUMP], by_form[STREAM], compact[0], temporaries)

    def jump_seconds(self, arrays: list[jax.ShapeDtypeStruct]) -> float:
        """Returns how long a jump of the shipped predictor takes on the CPU of the benchmark."""
        fast, compact = weights_by_form(arrays)
        return 1e-9 * (fast * _nearest(self.fast, fast + compact) + compact * self.compact)

    def stream_seconds(self, arrays: list[jax.ShapeDtypeStruct]) -> float:
        """Returns how long it takes there to read four arrays and write one."""
        weights = sum(weights_by_form(arrays))
        return 1e-9 * weights * _nearest(self.stream, weights)


def weights_by_form(arrays: list[jax.ShapeDtypeStruct]) -> tuple[int, int]:
    """Returns how many weights the predictor evaluates written out, and how many in the compact form."""
    forms: Any = forecaster_of_arrays(pretrained(), arrays)
    sizes = [math.prod(leaf.shape) for leaf in arrays]
    fast = [size for size, form in zip(sizes, forms, strict=True) if not form._compact and size >= _WRITTEN_OUT_FROM]
    return sum(fast), sum(sizes) - sum(fast)


def _parsed(path: Path, command: str) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; `{command}` makes it, and --results says where it is") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); `{command}` makes it anew") from error


def _nearest(by_weights: dict[int, float], weights: int) -> float:
    return by_weights[min(by_weights, key=lambda measured: abs(math.log(measured / weights)))]
