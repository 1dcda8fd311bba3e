import re
from fractions import Fraction

import numpy as np
import pytest

from optax_introspect import arguments


@pytest.mark.parametrize("value", [1, 7, np.int64(7), np.uint8(1)])
def test_integers(value):
    result = arguments.integer("steps", value)
    assert type(result) is int
    assert result == value


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, "1", Fraction(1)])
def test_what_is_no_positive_integer(value):
    with pytest.raises(ValueError, match=rf"^steps must be a positive integer; got {re.escape(repr(value))}$"):
        arguments.integer("steps", value)


@pytest.mark.parametrize("value", [-1, 4, 2.0])
def test_integers_out_of_bounds(value):
    with pytest.raises(ValueError, match=rf"^degree must be an integer from 0 to 3; got {value}$"):
        arguments.integer("degree", value, 0, 3)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.25), Fraction(1, 3)])
def test_numbers(value):
    result = arguments.number("scale", value)
    assert type(result) is float
    assert result == float(value)


@pytest.mark.parametrize("value", [0, -0.5, float("nan"), float("inf"), True, None, "1"])
def test_what_is_no_positive_number(value):
    with pytest.raises(ValueError, match=rf"^scale must be a positive number; got {re.escape(repr(value))}$"):
        arguments.number("scale", value)


@pytest.mark.parametrize("value", [1e39, 1e-50])
def test_numbers_that_float32_cannot_hold(value):
    with pytest.raises(ValueError, match="scale must be a positive number that float32 can hold; got 1e"):
        arguments.number("scale", value)


def test_zero_where_it_is_allowed():
    assert arguments.number("stddev", 0, zero=True) == 0
    with pytest.raises(ValueError, match=r"^stddev must be a number of at least 0; got -1$"):
        arguments.number("stddev", -1, zero=True)
