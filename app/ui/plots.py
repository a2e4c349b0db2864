"""The geometry of the charts: values to percentages of a plot's width and height, and to SVG paths. Draws nothing.

A chart stretches with its column: its lines are an SVG without a fixed size, its words are HTML and keep their size.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PADDING = 0.06
"""The margin of a fitted axis beyond its values, as a share of their range."""
MAX_POINTS = 1200
"""Maximum points of a line: more would not be visible, and a long text has thousands of tokens."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear scale from `low` to `high` as 0 to 100 percent."""

    low: float
    high: float
    step: float
    low_is_tick: bool = True
    """Whether the ticks count from `low`; else they are multiples of `step`."""

    @classmethod
    def over(cls, values: Iterable[float], num_steps: int = 4) -> "Axis":
        """A scale with round ends that contains all values, in about `num_steps` steps of 1, 2 or 5 times a power of ten."""
        known = list(values)
        low, high = min(known), max(known)
        if high - low < 1e-9 * max(1.0, abs(low)):
            low, high = low - 0.5, high + 0.5
        rough = (high - low) / num_steps
        power: float = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
        return cls(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step)

    @classmethod
    def fitting(cls, values: Iterable[float], num_steps: int = 5) -> "Axis":
        """A scale that ends a little beyond the values, with round ticks between its ends."""
        known = list(values)
        rounded = cls.over(known, num_steps)
        low, high = min(known), max(known)
        if high - low < 1e-9 * max(1.0, abs(low)):
            return rounded
        room = PADDING * (high - low)
        return cls(max(low - room, rounded.low), min(high + room, rounded.high), rounded.step, low_is_tick=False)

    def at(self, value: float) -> float:
        """The position of a value in percent; values outside the scale give positions outside 0 to 100."""
        return round(100 * (value - self.low) / (self.high - self.low), 3)

    def clamped(self, value: float) -> float:
        return min(max(self.at(value), 0.0), 100.0)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """(position in percent, label) of each tick."""
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        first = self.low if self.low_is_tick else math.ceil(self.low / self.step - 1e-6) * self.step
        num_ticks = math.floor((self.high - first) / self.step + 1e-6) + 1
        values = [first + i * self.step for i in range(num_ticks)]
        return [(self.at(value), f"{value + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")) for value in values]


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    kind: str
    path: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A line across the plot, with a label."""

    at: float
    label: str
    kind: str


@dataclass(frozen=True, slots=True)
class Dot:
    """`side` is where its label is: CSS classes without their prefix, such as `left up`."""

    x: float
    y: float
    label: str
    kind: str
    side: str = "right"


@dataclass(frozen=True, slots=True)
class Chart:
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    levels: tuple[Rule, ...] = ()
    moments: tuple[Rule, ...] = ()
    dots: tuple[Dot, ...] = ()


def path(x: Axis, y: Axis, points: Sequence[tuple[float, float]]) -> str:
    """An SVG path in a box of 100 by 100, y downwards; thinned evenly, with the first and last point kept."""
    if len(points) > MAX_POINTS:
        stride = (len(points) - 1) / (MAX_POINTS - 1)
        points = [points[round(i * stride)] for i in range(MAX_POINTS)]
    return "M" + "L".join(f"{x.at(a):g},{round(100 - y.at(b), 3):g}" for a, b in points)


def area(x: Axis, y: Axis, points: Sequence[tuple[float, float]]) -> str:
    """The path, closed along the bottom edge."""
    first, last = x.at(points[0][0]), x.at(points[-1][0])
    return f"{path(x, y, points)}L{last:g},100L{first:g},100Z"


def span(axis: Axis, start: float, end: float) -> tuple[float, float]:
    """Left edge and width, in percent, of a bar between two values."""
    left, right = sorted((axis.clamped(start), axis.clamped(end)))
    return left, round(right - left, 3)
