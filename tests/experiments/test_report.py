import re

import pytest

from experiments import figures, report, results, statistics
from experiments._config import Arm, Experiment, Paper
from experiments.registry import EXPERIMENTS
from experiments.tables import Report, claims, interval

PAGE = results.FOLDER / "README.md"
TINY = Experiment(
    name="tiny",
    title="Tiny",
    question="Do jumps help?",
    minutes=1,
    network="MNIST_3",
    optimizer="sgd",
    learning_rate=0.1,
    batch_size=1,
    every=5,
    arms=(
        Arm("plain", "plain", steps=20, seeds=2),
        Arm("introspection", "network", "mnist-n0", (10,), steps=20, seeds=2),
    ),
    paper=Paper("section 4", plain=0.9, jumps=0.95, plain_steps=100, jumps_steps=60),
)


@pytest.fixture
def tiny(tmp_path):
    accuracies = {
        ("plain", 0): (1, 2, 3),
        ("plain", 1): (1, 2, 4),
        ("introspection", 0): (1, 4, 5),
        ("introspection", 1): (1, 4, 6),
    }
    rows = [
        {"arm": arm, "seed": seed, "step": 10 * i, "test_accuracy": a / 10}
        for (arm, seed), run in accuracies.items()
        for i, a in enumerate(run)
    ]
    arms = {arm.name: arm.settings() for arm in TINY.arms}
    results.append(tmp_path, "tiny", rows, settings=TINY.settings(), arms=arms, environment={}, version="0.2.0")
    return Report({"tiny": TINY}, tmp_path)


def test_the_page_is_what_the_results_say():
    assert report.write(Report(EXPERIMENTS), PAGE.read_text(), draw=False) == PAGE.read_text(), (
        "results/README.md is not up to date: run python -m experiments report"
    )


def test_all_figures_of_the_page_are_there_and_no_others():
    named = set(re.findall(r"\]\((figures/[^)]+)\)", PAGE.read_text()))
    assert named == {f"figures/{path.name}" for path in (results.FOLDER / "figures").iterdir()}


def test_every_result_and_every_table_has_a_place_on_the_page():
    used = set(re.findall(r"<!-- (?:table|figure): (\S+)", PAGE.read_text()))
    assert used == report.TABLES.keys() | report.FIGURES.keys()


def test_tables_are_filled_between_markers(tiny):
    page = "Before\n<!-- table: summary -->\nold\n<!-- end -->\nbetween\n<!-- table: arms tiny -->\n<!-- end -->\n"
    written = report.write(tiny, page)
    assert "| Tiny | 2 | 35.00 | 55.00 | +20.00 [+20.00, +20.00] | 0.50 | 90.00 → 95.00, steps 0.60 |" in written
    assert "| **reproduced** | 0.2.0 |" in written
    assert "| network | 2 | 20 | 55.00 | 55.00 | +20.00 [+20.00, +20.00] | 0.50 |" in written
    assert "old" not in written
    assert report.write(tiny, written) == written


def test_figures_are_drawn_the_same_each_time(tiny):
    page = "<!-- figure: curves tiny -->\n<!-- end -->\n"
    assert "](figures/tiny.png)" in report.write(tiny, page)
    first = (tiny.folder / "figures" / "tiny.png").read_bytes()
    report.write(tiny, page)
    assert (tiny.folder / "figures" / "tiny.png").read_bytes() == first


@pytest.mark.parametrize(
    "page", ["<!-- table: nothing -->\n<!-- end -->\n", "<!-- figure: nothing -->\n<!-- end -->\n"]
)
def test_unknown_markers(tiny, page):
    with pytest.raises(ValueError, match=r"must be one of .*; got 'nothing'"):
        report.write(tiny, page)


def test_a_marker_without_an_end(tiny):
    with pytest.raises(ValueError, match="followed by an <!-- end -->"):
        report.write(tiny, "<!-- table: summary -->\n\n<!-- table: arms tiny -->\n<!-- end -->\n")


def test_the_first_claim_is_that_of_the_paper():
    (claim,) = claims(TINY)
    assert (claim.arm, claim.expects, claim.share) == ("introspection", "gain", 0.6)
    assert claim.points == pytest.approx(5)


def test_new_results_take_the_place_of_those_of_version_0_1(tiny):
    (tiny.folder / "tiny.json").rename(tiny.folder / "tiny-v0.1.json")
    (tiny.folder / "tiny.csv.gz").rename(tiny.folder / "tiny-v0.1.csv.gz")
    assert tiny.newest("tiny") == "tiny-v0.1"
    rows = [{"arm": "plain", "seed": 0, "step": 0, "test_accuracy": 0.5}]
    results.append(tiny.folder, "tiny", rows, settings={}, arms={"plain": {}}, environment={}, version="0.2.0")
    assert tiny.newest("tiny") == "tiny"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((1.0, 1.0), "+1.00 [+1.00, +1.00]"),
        ((-0.5,), "\N{MINUS SIGN}0.50"),
        ((-0.001, 0.001), "0.00 [\N{MINUS SIGN}0.01, +0.01]"),
    ],
)
def test_intervals_in_words(values, text):
    assert interval(statistics.Difference(values)) == text


@pytest.mark.parametrize("name", [name for name in report.FIGURES if name not in ("curves", "movement", "gains")])
def test_figures_of_the_results_have_labels_and_tell_lines_apart(name):
    figure = report.FIGURES[name][1](Report(EXPERIMENTS))
    for axis in figure.axes:
        assert axis.get_xlabel()
        assert axis.get_ylabel() or axis.get_yticklabels() or axis.get_subplotspec().colspan.start > 0
        looks = [
            (line.get_color(), line.get_marker(), line.get_linestyle())
            for line in axis.get_lines()
            if line.get_label()[0] != "_"
        ]
        assert len(set(looks)) == len(looks) > 0
    figures.plt.close(figure)
