"""The sections of the report, in their order."""

from ..blocks import Section
from ..results import Results
from .batch_norm import batch_norm
from .budgets import budgets
from .comparison import comparison
from .jumps import jumps
from .logits import logits
from .movement import movement
from .predictors import predictors
from .rates import rates
from .rows import ROWS
from .rules import rules
from .schedules import schedules


def sections(results: Results) -> list[Section]:
    """Returns all sections of the report."""
    rows = [comparison(results, name) for name in ROWS]
    others = (predictors, schedules, rules, rates, budgets, logits, jumps, batch_norm)
    return [
        *rows,
        *(section(results) for section in others),
        movement(results, "movement", "How weights move"),
        movement(results, "movement-cifar10", "How weights move on CIFAR-10"),
    ]
