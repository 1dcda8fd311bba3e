"""Checkpoints of a run: weights, statistics, optimizer with snapshots, and what they are of.

They are written while training goes on, and can be restored onto any number of devices and processes. A folder that is
not whole is never taken for a checkpoint.
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

# A second one, should the newest turn out to be damaged.
KEPT = 2


class CheckpointError(OSError):
    """A checkpoint could not be written; those before it are as they were.

    Attributes:
      step: its step.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: where they are; all processes see the same folder.
      settings: what the run is, in groups, as plain data.
      shapes: of the training state, with the shardings that it is to have.
      arrays: those of the model: their shapes and dtypes complete `settings["model"]`.

    Attributes:
      latest: the step of the last one; None if there is none.
      notes: what was noted with the last one.

    Raises:
      ValueError: the last one is of another run, with what differs, or can't be read.
      OSError: there is not enough space for them.
    """

    def __init__(self, folder: Path, settings: dict[str, dict[str, Any]], shapes: Any, arrays: Any = ()):
        self.folder, self.shapes = folder.absolute(), shapes
        model = settings["model"] | {"arrays": _arrays(arrays)}
        self.settings = settings | {"model": model}
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_names=("state", "about"),
            options=ocp.CheckpointManagerOptions(max_to_keep=KEPT, cleanup_tmp_directories=True),
        )
        try:
            self.latest: int | None = self._manager.latest_step()
            self._check_space()
            self.notes: dict[str, Any] = {} if self.latest is None else self._checked_notes(self.latest)
        except BaseException:
            self._manager.close()
            raise

    def restore(self) -> Any:
        """Returns the state of the last one, with the shardings of `shapes`.

        Raises:
          ValueError: it can't be read.
        """
        return self._read("state", ocp.args.StandardRestore(self.shapes))

    def save(self, step: int, state: Any, notes: dict[str, Any]) -> None:
        """Begins to write the state after so many steps; on return it may be changed.

        Args:
          step: the number of updates.
          state: the training state.
          notes: more to be kept with it, as plain data.

        Raises:
          CheckpointError: this one can't be written, or the one before could not be.
        """
        self.wait()
        about = {"settings": self.settings, "notes": notes}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about))
        try:
            self._manager.save(step, args=items, force=True)
        except Exception as error:
            raise self._failure(step, error) from error
        self._writing = step

    _writing: int | None = None

    def wait(self) -> None:
        """Returns when what was begun is on disk.

        Raises:
          CheckpointError: it could not be written.
        """
        if self._writing is None:
            return
        step, self._writing = self._writing, None
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(step, error) from error
        self.latest = step

    def close(self) -> None:
        """Waits, and releases what is held."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _failure(self, step: int, error: Exception) -> CheckpointError:
        if jax.process_count() == 1:
            # What was begun takes space that the next one needs.
            for path in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)
            self._manager.reload()  # those that were to give way to it are still there, and counted
        last = "there is none before it" if self.latest is None else f"the last good one is of step {self.latest}"
        text = f"the checkpoint of step {step} in {self.folder} could not be written; {last}: {error}"
        return CheckpointError(text, step)

    def _check_space(self) -> None:
        each = sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(self.shapes))
        needed = each * max(1, KEPT + 1 - len(self._manager.all_steps()))
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(
                f"{self.folder} has {free / 1e6:,.1f} MB of space; checkpoints of {each / 1e6:,.1f} MB each need "
                f"{needed / 1e6:,.1f} MB"
            )

    def _checked_notes(self, step: int) -> dict[str, Any]:
        about = self._read("about", ocp.args.JsonRestore())
        if not isinstance(about, dict) or not {"settings", "notes"} <= about.keys():
            raise ValueError(f"{self.folder / str(step)} is not a checkpoint of this program")
        check_same(f"the checkpoint of step {step} in {self.folder}", about["settings"], self.settings)
        notes: dict[str, Any] = about["notes"]
        return notes

    def _read(self, item: str, args: Any) -> Any:
        try:
            return self._manager.restore(self.latest, args=ocp.args.Composite(**{item: args}))[item]
        except Exception as error:  # Orbax and what is below it raise whatever they like
            raise ValueError(
                f"the checkpoint of step {self.latest} in {self.folder} can't be read; without its folder the run goes "
                f"on from the one before it, if there is any: {error}"
            ) from error


def check_same(what: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raises a ValueError if settings differ, which says of which group they are and what they were.

    Args:
      what: what has the settings that were found.
      found: settings in groups.
      expected: those that they should be.
    """
    for group, settings in expected.items():
        before, now = _flat(found.get(group, {})), _flat(settings)
        differ = [
            f"{name} was {before.get(name, 'not there')} and is {now.get(name, 'not there')}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if differ:
            more = f"; and {len(differ) - 4} more" if len(differ) > 4 else ""
            raise ValueError(f"{what} is of another {group}: {'; '.join(differ[:4])}{more}. Use another workdir")


def _flat(settings: dict[str, Any], name: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in settings.items():
        inner = f"{name}.{key}" if name else key
        flat |= _flat(value, inner) if isinstance(value, dict) else {inner: repr(value)}
    return flat


def _arrays(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in jax.tree.leaves_with_path(tree)
    }
