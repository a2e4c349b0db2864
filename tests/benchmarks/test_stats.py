import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.stats import Spread, percentile


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (25, 1.75), (50, 2.5), (99, 3.97), (100, 4.0)])
def test_percentiles_interpolate_between_ranks(percent: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == pytest.approx(expected)


def test_one_value_is_every_percentile() -> None:
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        percentile([], 50)


@pytest.mark.parametrize("percent", [-1, 101])
def test_a_percentile_is_from_0_to_100(percent: float) -> None:
    with pytest.raises(ValueError, match="range"):
        percentile([1.0], percent)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_a_spread_is_ordered(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.low <= spread.median <= spread.high
