"""What was computed, as tables for the console and as a page."""

import dataclasses
import textwrap
from collections.abc import Sequence

from rich import box
from rich.table import Table

from .costs import ADAM_ARRAYS, CHIPS, FLOPS_A_WEIGHT, FLOPS_OF_H100, H100, HOST_LINK, POINTS, TPU_V5E, Costs
from .measured import Measured, weights_by_form
from .networks import NETWORKS_AT_SCALE, Network, total

COMMAND = "python -m experiments scale --output results"
PREDICTOR = next(iter(POINTS))

_KEPT = ("network", "forecaster, snapshots")


@dataclasses.dataclass(frozen=True)
class Section:
    """A table.

    Attributes:
      title: its heading.
      text: what its figures are.
      columns: the heads of its columns.
      left: how many of them, from the left, are not figures.
      rows: the cells.
    """

    title: str
    text: str
    columns: tuple[str, ...]
    left: int
    rows: Sequence[tuple[str, ...]]


def sections(measured: Measured) -> list[Section]:
    """Returns all that is computed."""
    costs = [
        Costs(network, forecaster, dtype)
        for network in NETWORKS_AT_SCALE
        for forecaster in POINTS
        for dtype in ((None, "bfloat16") if network.dtype == "float32" else (None,))
    ]
    return [
        _trainings(),
        _memory(costs, measured),
        _bounds(costs),
        _host([cost for cost in costs if cost.host_bytes]),
        _cpu([network for network in NETWORKS_AT_SCALE if network.chips == 1], measured),
    ]


def _trainings() -> Section:
    rows = [
        (
            network.name,
            network.dtype,
            f"{total(network.arrays):,}",
            str(len(network.arrays)),
            str(network.chips),
            f"{network.steps:,}",
            " ".join(f"{step:,}" for step in network.jump_steps),
        )
        for network in NETWORKS_AT_SCALE
    ]
    sources = ". ".join(f"{network.name}: {network.source}" for network in NETWORKS_AT_SCALE)
    text = f"""
        {sources}. The paper has no schedule for the last two: theirs are examples.

        The chips share the weights as the training on ImageNet shares them with `--fsdp`: every array lies in as many
        pieces as there are chips, but for small ones, which all of them have.
    """
    columns = ("network", "dtype", "weights", "arrays", "chips", "steps", "jumps at")
    return Section("Trainings", text, columns, 2, rows)


def _memory(costs: list[Costs], measured: Measured) -> Section:
    rows = [
        (
            *_names(cost),
            str(cost.plan.num_buffers),
            size(cost.snapshot_bytes),
            size(cost.weight_bytes),
            size(cost.adam_bytes),
            size(cost.slot_bytes),
            _temporaries(cost, measured),
        )
        for cost in costs
    ]
    text = """
        Bytes on one chip, from shapes and `optax_introspect.plan`; MB and GB are powers of ten. *On the device*: what
        stays there of the snapshots with `memory_kind="pinned_host"`, one slot. *Temporaries*: what a jump keeps in
        between on an H100 while it lasts, if it is as many bytes for each weight of the largest array as it was when
        compiled for arrays of 8.4 M weights ([accelerators](accelerators/README.md)); not compiled for two points.
        Adam's moments are of the dtype of the weights, as Optax makes them.
    """
    columns = (*_KEPT, "slots", "snapshots", "weights", "Adam", "on the device", "temporaries")
    return Section("Memory", text, columns, 2, rows)


def _temporaries(cost: Costs, measured: Measured) -> str:
    if cost.forecaster != PREDICTOR:
        return ""
    largest = max(total([leaf]) for leaf in cost.network.arrays_on_a_chip)
    return size(measured.temporaries[cost.case] * largest)


def _bounds(costs: list[Costs]) -> Section:
    rows = [
        (
            *_names(cost),
            *(seconds(moved / chip.bandwidth) for moved in (cost.capture_bytes, cost.jump_bytes) for chip in CHIPS),
            f"{len(cost.plan.captures)} + {len(cost.plan.jumps)}",
            f"{cost.in_updates_of_adam(cost.all_bytes):.1f}",
            f"{cost.in_updates_of_adam(cost.slot_bytes):.2f}",
        )
        for cost in costs
    ]
    arithmetic, memory = FLOPS_A_WEIGHT / FLOPS_OF_H100, 6 * 4 / H100.bandwidth
    text = f"""
        Lower bounds, computed and not measured: bytes that must be read and written on one chip, over the bandwidth of
        its memory as published, {H100.bandwidth / 1e12:g} TB/s for an [H100 SXM]({H100.source}) and
        {TPU_V5E.bandwidth / 1e9:g} GB/s for a [TPU v5e]({TPU_V5E.source}). A capture reads the weights and writes a
        slot, and reads `w_0` where differences to it are kept. A jump reads the weights and a snapshot for each other
        point, writes the forecast, and reads it once more to see whether it is finite. Arithmetic isn't counted: the
        {FLOPS_A_WEIGHT // 2} multiply-adds of the predictor take an H100 at least {1e12 * arithmetic:.1f} ps a weight,
        at the {FLOPS_OF_H100 / 1e12:g} TFLOPS of its data sheet, and moving {6 * 4} bytes in float32
        {1e12 * memory:.1f} ps; for the vector unit of the TPU no rate is published.

        *In updates of Adam*: all captures and jumps of the training together move as many bytes as so many updates of
        Adam, each of which reads and writes {ADAM_ARRAYS} arrays; forward and backward pass not counted. *Each step*:
        between jumps, too, the choice between forecast and update reads one slot, which is so many updates of Adam in
        every step, whatever the number of jumps. On a CPU the [benchmark](benchmark.md) doesn't show it.
    """
    columns = (
        *_KEPT,
        *(f"{what}, {chip.name}" for what in ("capture", "jump") for chip in CHIPS),
        "captures + jumps",
        "in updates of Adam",
        "each step",
    )
    return Section("Bounds of time", text, columns, 2, rows)


def _host(costs: list[Costs]) -> Section:
    rows = [
        (
            *_names(cost),
            size(cost.host_bytes),
            seconds(cost.slot_bytes / HOST_LINK),
            seconds(cost.host_bytes / HOST_LINK),
            seconds(cost.jump_bytes / H100.bandwidth),
        )
        for cost in costs
    ]
    text = f"""
        With `memory_kind="pinned_host"`: lower bounds again, at {HOST_LINK / 1e9:g} GB/s in each direction, the nominal
        rate of PCI Express 5.0 with 16 lanes, to which an H100 is connected. A capture moves one slot. A jump moves all
        slots that the host has, not only those of its points, since one program serves all jumps and picks on the
        device; so it is in what XLA compiles for a TPU v5e. Where one slot is all there is, nothing lies with the host.
    """
    columns = (*_KEPT, "with the host", "capture", "jump", "jump, all on the H100")
    return Section("Snapshots in the memory of the host", text, columns, 2, rows)


def _cpu(networks: list[Network], measured: Measured) -> Section:
    rows = []
    for network in networks:
        fast, compact = weights_by_form(network.arrays)
        rows.append(
            (
                network.name,
                f"{fast / 1e6:.3g} M",
                f"{compact / 1e6:.3g} M",
                seconds(measured.jump_seconds(network.arrays)),
                seconds(measured.stream_seconds(network.arrays)),
            )
        )
    text = f"""
        On the two cores of the [benchmark](benchmark.md), from its nanoseconds a weight; float32, the predictor. The 24
        largest arrays and all others of 2^20 weights and more are evaluated *written out*, at the rate measured for the
        nearest number of weights; the rest, and all below 2^16, in a *compact* form that compiles faster, at
        {measured.compact:.0f} ns a weight. *Moving*: reading four arrays and writing one, which is more than a capture
        or a jump from two points has to move; those weren't measured by themselves.
    """
    columns = ("network", "written out", "compact", "jump", "moving")
    return Section("On a CPU", text, columns, 1, rows)


def _names(cost: Costs) -> tuple[str, ...]:
    return cost.network.name, f"{cost.forecaster}, {cost.kept_as}"


def size(number: float) -> str:
    """Returns bytes with three digits.

    Examples:
      >>> size(6.1e7), size(2.195e9), size(4096)
      ('61 MB', '2.19 GB', '0.0041 MB')
    """
    return f"{number / 1e9:.3g} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"


def seconds(number: float) -> str:
    """Returns a time with two digits.

    Examples:
      >>> seconds(3.64e-5), seconds(0.0123), seconds(0.21), seconds(1.24)
      ('36 µs', '12 ms', '210 ms', '1.2 s')
    """
    scaled, unit = (number, "s") if number >= 1 else (1e3 * number, "ms") if number >= 1e-3 else (1e6 * number, "µs")
    return f"{scaled:.0f} {unit}" if scaled >= 9.95 else f"{scaled:.1f} {unit}"


def table(section: Section) -> Table:
    """Returns a section for the console."""
    made = Table(title=section.title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for i, column in enumerate(section.columns):
        made.add_column(column, justify="left" if i < section.left else "right", no_wrap=i < section.left)
    for row in section.rows:
        made.add_row(*row)
    return made


def page(found: list[Section]) -> str:
    """Returns all sections as Markdown."""
    lines = [
        "# What jumps cost at scale, on paper",
        "",
        f"`{COMMAND}`",
        "",
        "Computed, not run: networks larger than what was measured here, on devices that weren't there.",
        "",
    ]
    for section in found:
        paragraphs = textwrap.dedent(section.text).strip().split("\n\n")
        lines += [f"## {section.title}", ""]
        for paragraph in paragraphs:
            lines += [textwrap.fill(paragraph, 118, break_long_words=False, break_on_hyphens=False), ""]
        rule = ["---" if i < section.left else "---:" for i in range(len(section.columns))]
        lines += [f"| {' | '.join(cells)} |" for cells in (section.columns, rule, *section.rows)]
        lines.append("")
    return "\n".join(lines)
