"""All of Optax's own tests that take any optimizer, of ones that end in `introspect`: `python -m tests.composition`.

Prints a table, and exits with 1 if one fails. The last figures stand in docs/composition.md.
"""

import contextlib
import io
import subprocess
import sys
import traceback

from optax.contrib import _common_test
from optax.transforms import _accumulation_test

from tests.composition import optax_own


def run_all(test: str) -> tuple[int, int, int]:
    """Runs all cases of one test; returns how many passed, are left out by Optax, and failed."""
    passed = left_out = failed = 0
    for name in optax_own.cases(_common_test.ContribTest, test):
        try:
            reason = optax_own.run_contributed(test, name)
        except Exception:
            failed += 1
            print(f"{name} failed:", file=sys.stderr)
            traceback.print_exc()
        else:
            passed += reason is None
            left_out += reason is not None
    return passed, left_out, failed


def run_slow_accumulation() -> tuple[int, int, int]:
    """Runs those of Optax's tests of accumulation that compile anew in every call."""
    names = ["test_multi_steps_every_k_schedule"]
    names += optax_own.cases(_accumulation_test.AccumulationTest, "test_multi_steps_mixed_precision")
    with optax_own.optimizers_jump(optax_own.exact_jump(1)):
        for name in names:
            _accumulation_test.AccumulationTest(name).debug()
    return len(names), 0, 0


def main() -> int:
    """Runs all and prints the table."""
    failures = 0
    print(f"| {'test':76} | passed | left out by Optax | failed |\n| --- | ---: | ---: | ---: |", flush=True)
    runs = {test: (lambda test=test: run_all(test)) for test in optax_own.CONTRIBUTED}
    for test, run in (runs | {"test_multi_steps_...": run_slow_accumulation}).items():
        with contextlib.redirect_stdout(io.StringIO()):
            passed, left_out, failed = run()
        failures += failed
        print(f"| `{test}`{' ' * (74 - len(test))} | {passed} | {left_out} | {failed} |", flush=True)
    sharded = subprocess.run([sys.executable, "-m", "tests.composition.optax_sharding", "1"], check=False)
    return 1 if failures or sharded.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
