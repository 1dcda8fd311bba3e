"""AlexNet_1 and Inception_v1 of the paper on ImageNet, and the script that trains them.

    python -m experiments run alexnet_1 --data ~/imagenet --arm introspection --fsdp --bfloat16

trains one arm with one seed on all devices. It needs ImageNet (see `data.imagenet.open_split`) and accelerators:
300 000 steps of AlexNet are 30 epochs, 1 500 000 of Inception 150. The paper's results are in the records below. The
same command goes on where it stopped.

Several processes, on TPU pods, with Slurm or Open MPI, find each other by `--distributed`, and share the work folder.
SIGTERM to one of them, with which clusters announce that they take a machine away, lets all save and stop.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rich.console import Console

from . import results
from ._config import Arm, Experiment, Paper
from .data.imagenet import Split, evaluation_batches, normalize, open_split, training_batches
from .networks import NETWORKS
from .optimizers import fingerprint, optimizer
from .runs import locked


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNet(Experiment):
    """An experiment on ImageNet; its augmentation is one of the crops of `data.imagenet.training_batches`.

    Attributes:
      image_size: side of the images.
      auxiliary_weight: weight of the losses of auxiliary heads.
    """

    image_size: int
    auxiliary_weight: float = 0.3
    data: str = "imagenet"

    @property
    def command(self) -> str:
        """Command that runs it."""
        return f"python -m experiments run {self.name} --data PATH"

    def settings(self) -> dict[str, Any]:
        """Returns what its results depend on apart from their arm, for JSON."""
        names = ("network", "optimizer", "learning_rate", "batch_size", "every", "data", "augmentation")
        return {name: getattr(self, name) for name in (*names, "image_size", "auxiliary_weight")}


alexnet_1 = ImageNet(
    name="alexnet_1",
    title="AlexNet_1",
    question="Does a predictor fitted on MNIST speed up AlexNet on ImageNet?",
    minutes=None,
    network="AlexNet",
    image_size=227,
    augmentation="alexnet",
    optimizer="momentum",
    learning_rate=0.01,
    batch_size=128,
    every=5000,
    arms=(
        Arm("plain", "plain", steps=300_000, seeds=1, decay="thirds"),
        Arm(
            "introspection",
            "network",
            "mnist-n0",
            (120_000, 130_000, 144_000, 160_000),
            steps=300_000,
            seeds=1,
            decay="thirds",
        ),
    ),
    paper=Paper(
        "section 4.2: 72 % top-5 accuracy after 179 000 steps with jumps, after 196 000 without",
        plain=0.72,
        jumps=0.72,
        plain_steps=196_000,
        jumps_steps=179_000,
    ),
    choices=(
        "The paper names no weight decay: none here, 5e-4 in AlexNet's own paper. Images are cropped as there: squares "
        "of 227 out of the central 256 of images whose shorter side is 256, and flips, without changes of colour. "
        "Accuracy is that of the central crop alone."
    ),
)

inception_v1 = ImageNet(
    name="inception_v1",
    title="Inception_v1",
    question="Does a predictor fitted on MNIST speed up Inception V1 on ImageNet?",
    minutes=None,
    network="Inception",
    image_size=224,
    augmentation="resized",
    optimizer="rmsprop",
    learning_rate=0.01,
    batch_size=128,
    every=10_000,
    arms=(
        Arm("plain", "plain", steps=1_500_000, seeds=1, decay="two-epochs-of-150"),
        *(
            Arm(
                f"introspection-{first}k",
                f"network, {first}k",
                "mnist-n0",
                tuple(1000 * first * number for number in (1, 2, 3)),
                steps=1_500_000,
                seeds=1,
                decay="two-epochs-of-150",
            )
            for first in (200, 300)
        ),
    ),
    jumps="introspection-200k",
    paper=Paper("section 4.2: 68.40 % accuracy after 852 000 and 944 000 steps"),
    choices=(
        "The learning rate falls every 20 000 steps, two epochs. RMSprop is TensorFlow's, whose settings the paper "
        "gives. The auxiliary heads count 0.3, and crops are random ones of 8 to 100 % of the area, with flips, as in "
        "GoogLeNet's paper. The paper names no weight decay: none here."
    ),
)

RECORDS: dict[str, ImageNet] = {record.name: record for record in (alexnet_1, inception_v1)}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a run on ImageNet; None leaves a setting to the record.

    Attributes:
      arm: name of the arm; None is the first with jumps.
      seed: seed of the initial weights, the batches and the dropout.
      steps: number of updates.
      jump_steps: steps at which the weights jump.
      batch_size: examples of a step on all devices.
      image_size: side of the images.
      fsdp: share weights, optimizer state and snapshots among the devices, instead of copying them to each.
      bfloat16: compute the network in bfloat16; weights and losses stay float32.
      distributed: join the other processes by `jax.distributed.initialize()`.
      checkpoint_every: steps between two checkpoints.
      report_every: steps between two lines of loss and speed.
      threads: threads of this process that decode images.
    """

    arm: str | None = None
    seed: int = 0
    steps: int | None = None
    jump_steps: tuple[int, ...] | None = None
    batch_size: int | None = None
    image_size: int | None = None
    fsdp: bool = False
    bfloat16: bool = False
    distributed: bool = False
    checkpoint_every: int = 2000
    report_every: int = 100
    threads: int = 16

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "image_size", "checkpoint_every", "report_every", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be a positive integer; got {value}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be an integer from 0 to 2**32 - 1; got {self.seed}")

    def resolve(self, record: ImageNet) -> tuple[ImageNet, Arm]:
        """Returns the record and its arm with these settings.

        Raises:
          ValueError: an unknown arm, jumps without a forecaster, or fewer steps than the last jump.
        """
        arm = record.arm(self.arm) if self.arm else next(arm for arm in record.arms if arm.jump_steps)
        names = (field.name for field in dataclasses.fields(self))
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        own = {name: given[name] for name in ("steps", "jump_steps") if name in given}
        changed = dataclasses.replace(arm, **own)
        arms = tuple(changed if other is arm else other for other in record.arms)
        sizes = {name: given[name] for name in ("batch_size", "image_size") if name in given}
        return dataclasses.replace(record, arms=arms, **sizes), changed


def train(name: str, data: Path, workdir: Path, *, results_folder: Path | None = None, **options: Any) -> bool:
    """Trains one arm of a record, from its last checkpoint if there is one.

    Args:
      name: key of `RECORDS`.
      data: ImageNet, see `data.imagenet.open_split`.
      workdir: folder for checkpoints, the same on all processes.
      results_folder: folder that the results are added to; None is `workdir`.
      **options: see `Options`.

    Returns:
      Whether all steps are made; if not, the run was preempted, and the same call goes on.

    Raises:
      ValueError, FileNotFoundError: options or data that can't be used, or a work folder of other settings.
      BlockingIOError: another process trains in the same folder.
      FloatingPointError: the loss is not finite.
    """
    chosen = Options(**options)
    record, arm = chosen.resolve(RECORDS[name])
    if chosen.distributed:
        jax.distributed.initialize()
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    if record.batch_size % mesh.size:
        raise ValueError(
            f"batch_size must be a multiple of the number of devices, {mesh.size}; got {record.batch_size}"
        )
    splits = open_split(data, "train"), open_split(data, "validation")
    folder = workdir.absolute() / name / arm.name / f"seed-{chosen.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(locked(folder, "another process trains in"))
        training = _Run(record, arm, chosen, splits, mesh, folder, workdir / "predictors" / "fitted")
        rows = training.train()
    if rows is not None and jax.process_index() == 0:
        results.append(
            results_folder or workdir,
            name,
            rows,
            settings=record.settings(),
            arms={arm.name: arm.settings() | {key: training.settings[key] for key in ("forecaster", "bfloat16")}},
            environment=results.environment(splits[0].description),
        )
    return rows is not None


class State(NamedTuple):
    """Weights and optimizer state, which a training step updates."""

    params: Any
    opt_state: Any


class Programs(NamedTuple):
    """The functions of a run.

    Attributes:
      shapes: shapes and shardings of a state.
      start: returns the state at step 0.
      step: from state, batch and step to state and metrics.
      evaluate: from weights and batch to sums over the examples.
    """

    shapes: State
    start: Any
    step: Any
    evaluate: Any


def programs(
    record: ImageNet, tx: optax.GradientTransformation, classes: int, mesh: Mesh, options: Options
) -> Programs:
    """Returns the functions of a run, which compile when they are first called."""
    dtype = jnp.bfloat16 if options.bfloat16 else None

    def network() -> Any:
        rngs = nnx.Rngs(options.seed)
        return NETWORKS[record.network](classes=classes, image_size=record.image_size, dtype=dtype, rngs=rngs)

    def init(params: Any) -> State:
        return State(params, tx.init(params))

    def start() -> State:
        # Array by array and with the generator that is quick to compile: as one program with the default generator,
        # the initial weights of Inception take XLA minutes on a CPU.
        with jax.default_prng_impl("rbg"):
            params = jax.tree.map(np.asarray, nnx.state(network(), nnx.Param))
        state: State = jax.jit(init, out_shardings=shardings)(params)
        return state

    def loss_function(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        if options.fsdp:
            # Whole weights and shared examples: XLA could as well share the activations, and move those.
            params = jax.lax.with_sharding_constraint(params, everywhere)
        outputs = nnx.merge(graphdef, params)(normalize(batch["image"]), key)
        losses = [_mean_loss(logits, batch) for logits in (outputs if isinstance(outputs, tuple) else (outputs,))]
        return losses[0] + record.auxiliary_weight * sum(losses[1:])

    def step(state: State, batch: Any, number: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        # Apart from the keys of the initial weights, which are counted from 0.
        key = jax.random.fold_in(jax.random.key(options.seed), 2**30 + number)
        loss, gradients = jax.value_and_grad(loss_function)(state.params, batch, key)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, opt_state), {"loss": loss, "examples": jnp.sum(batch["weight"])}

    def evaluate(params: Any, batch: Any) -> dict[str, jax.Array]:
        logits, weight = nnx.merge(graphdef, params)(normalize(batch["image"])), batch["weight"]
        hits = jax.lax.top_k(logits, min(5, classes))[1] == batch["label"][:, None]
        return {
            "examples": jnp.sum(weight),
            "test_loss": jnp.sum(weight * _losses(logits, batch)),
            "test_accuracy": jnp.sum(weight * hits[:, 0]),
            "test_top5": jnp.sum(weight * jnp.any(hits, axis=-1)),
        }

    everywhere = NamedSharding(mesh, PartitionSpec())
    split: Any = nnx.split(nnx.eval_shape(network), nnx.Param)
    graphdef, shapes = split[0], jax.eval_shape(init, split[1])
    shardings = jax.tree.map(lambda leaf: _sharding(leaf.shape, mesh, options.fsdp), shapes)
    return Programs(
        jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
        ),
        start,
        jax.jit(step, out_shardings=(shardings, everywhere), donate_argnums=0),
        jax.jit(evaluate, out_shardings=everywhere),
    )


def _losses(logits: jax.Array, batch: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def _mean_loss(logits: jax.Array, batch: Any) -> jax.Array:
    return jnp.sum(batch["weight"] * _losses(logits, batch)) / jnp.sum(batch["weight"])


def _sharding(shape: tuple[int, ...], mesh: Mesh, fsdp: bool, smallest: int = 2**14) -> NamedSharding:
    """Shares an array along its largest dimension that the devices divide; small arrays are on every device.

    It follows from the shape alone, so what an optimizer keeps of an array, and its snapshots, lie where it lies.
    """
    able = [axis for axis, size in enumerate(shape) if size % mesh.size == 0]
    if not fsdp or not able or math.prod(shape) < smallest:
        return NamedSharding(mesh, PartitionSpec())
    chosen = max(able, key=lambda axis: (shape[axis], axis))
    return NamedSharding(mesh, PartitionSpec(*(None,) * chosen, "data"))


class _Run:
    """One run with everything that doesn't change in it."""

    def __init__(
        self,
        record: ImageNet,
        arm: Arm,
        options: Options,
        splits: tuple[Split, Split],
        mesh: Mesh,
        folder: Path,
        predictors: Path,
    ):
        self.record, self.arm, self.options, self.mesh, self.folder = record, arm, options, mesh, folder
        self.training, self.validation = splits
        if self.training.classes != self.validation.classes:
            classes = f"{self.training.classes} and {self.validation.classes}"
            raise ValueError(f"data must have the same number of classes in both splits; got {classes}")
        tx = optimizer(record, arm, predictors).tx
        self.programs = programs(record, tx, self.training.classes, mesh, options)
        self.settings = {
            **record.settings(),
            **arm.settings(),
            "forecaster": fingerprint(arm.forecaster, predictors),
            "seed": options.seed,
            "bfloat16": options.bfloat16,
            "classes": self.training.classes,
            "examples": len(self.training.source),
        }
        self.input = {
            "image_size": record.image_size,
            "batch_size": record.batch_size,
            "process": jax.process_index(),
            "processes": jax.process_count(),
            "threads": options.threads,
        }
        self.console = Console(quiet=jax.process_index() > 0, highlight=False, soft_wrap=True)

    def train(self) -> list[results.Row] | None:
        """Makes the steps that are left; returns the evaluations, or None if it was preempted."""
        options, record, last = self.options, self.record, self.arm.steps
        manager_options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        with ocp.CheckpointManager(self.folder / "checkpoints", options=manager_options) as manager:
            batches = iter(
                training_batches(self.training, seed=options.seed, crop=record.augmentation or "resized", **self.input)
            )
            state, rows, step, skipped = self._restore(manager, batches)
            self._introduce(step)
            saved, pending, since = step, [], time.monotonic()
            with closing(batches):
                while step < last:
                    batch = self._on_mesh(next(batches))
                    state, metrics = self.programs.step(state, batch, np.int32(step))
                    step += 1
                    pending.append(metrics)
                    evaluates = step % record.every == 0 or step == last
                    preempted = manager.reached_preemption(step)
                    saves = preempted or step % options.checkpoint_every == 0 or step == last
                    if evaluates or saves or step % options.report_every == 0:
                        loss, unread = self._read(pending, step)
                        skipped += unread
                        speed = len(pending) * record.batch_size / (time.monotonic() - since)
                        self._say(step, loss, speed, skipped)
                        if evaluates:
                            rows.append(self._evaluate(state, step) | {"train_loss": loss, "skipped": skipped})
                        if saves:
                            about = {"settings": self.settings, "rows": rows, "skipped": skipped}
                            about["position"] = batches.get_state()
                            items = {"state": ocp.args.StandardSave(state), "about": ocp.args.JsonSave(about)}
                            manager.save(step, args=ocp.args.Composite(**items), force=True)
                            saved = step
                        pending, since = [], time.monotonic()
                    if preempted:
                        break
            manager.wait_until_finished()
        if step < last:
            self.console.print(f"Preempted after step {step}, saved at {saved}: the same command goes on.")
        return rows if step == last else None

    def _restore(self, manager: Any, batches: Any) -> tuple[State, list[results.Row], int, int]:
        """Returns state, evaluations, step and number of skipped images, and moves the pipeline to its position."""
        step = manager.latest_step()
        if step is None:
            return self.programs.start(), [], 0, 0
        about = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        now = self.settings
        before = about["settings"]
        differ = [name for name in now if now[name] != before.get(name)]
        if differ:
            texts = (f"{name} was {before.get(name)!r} and is {now[name]!r}" for name in differ)
            raise ValueError(f"workdir must be one of the same settings; in {self.folder} {', '.join(texts)}")
        restored = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(self.programs.shapes)))
        batches.set_state(about["position"])
        return restored["state"], about["rows"], step, about["skipped"]

    def _read(self, pending: list[Mapping[str, jax.Array]], step: int) -> tuple[float, int]:
        """Returns the mean loss of some steps, and how many images could not be decoded."""
        metrics = jax.device_get(pending)
        examples = [int(of_step["examples"]) for of_step in metrics]
        if 0 in examples:
            raise ValueError(
                f"data must have images that can be decoded; {self.training.description} has none in a batch"
            )
        loss = float(np.mean([of_step["loss"] for of_step in metrics]))
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss was not finite in the {len(metrics)} steps up to {step}")
        return loss, len(examples) * self.record.batch_size - sum(examples)

    def _evaluate(self, state: State, step: int) -> results.Row:
        sums: Any = None
        with closing(iter(evaluation_batches(self.validation, **self.input))) as batches:
            for batch in batches:
                of_batch = self.programs.evaluate(state.params, self._on_mesh(batch))
                sums = of_batch if sums is None else jax.tree.map(jnp.add, sums, of_batch)
        values = {name: float(value) for name, value in jax.device_get(sums).items()}
        examples = values.pop("examples")
        if not examples:
            raise ValueError(f"data must have images that can be decoded; {self.validation.description} has none")
        row: results.Row = {"arm": self.arm.name, "seed": self.options.seed, "step": step}
        row |= {name: round(value / examples, 6) for name, value in values.items()}
        if self.arm.forecaster is not None:
            jumps = state.opt_state[-1]
            row |= {"jumps_taken": int(jumps.jumps_taken), "jumps_refused": int(jumps.jumps_refused)}
        self.console.print(
            f"step {step:,}: top-1 {row['test_accuracy']:.2%}, top-5 {row['test_top5']:.2%} of {examples:,.0f} images"
        )
        return row

    def _on_mesh(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        sharding = NamedSharding(self.mesh, PartitionSpec("data"))
        return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}

    def _introduce(self, step: int) -> None:
        weights = sum(leaf.size for leaf in jax.tree.leaves(self.programs.shapes.params))
        self.console.print(
            f"{self.record.title}, {self.arm.name}, seed {self.options.seed}: {weights:,} weights on {self.mesh.size} "
            f"devices, {jax.process_count()} processes; steps {step:,} to {self.arm.steps:,}\n"
            f"{self.training.description}; {len(self.validation.source)} for validation"
        )

    def _say(self, step: int, loss: float, speed: float, skipped: int) -> None:
        hours = (self.arm.steps - step) * self.record.batch_size / speed / 3600
        self.console.print(
            f"step {step:,}: loss {loss:.4f}, {speed:,.0f} images a second, {hours:.1f} hours left"
            + (f", {skipped} images skipped" if skipped else "")
        )
