"""Numbers as flags of the command line take them: types for argparse that say which values are allowed."""

import argparse
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)
LARGEST_INT = 2**31 - 1
LARGEST_SEED = 2**32 - 1
"""numpy's own limit."""


def limited(read: Callable[[str], Number], is_allowed: Callable[[Number], bool], words: str) -> Callable[[str], Number]:
    """What reads a number for which `is_allowed`; `words` say which those are."""

    def read_allowed(text: str) -> Number:
        try:
            value = read(text)
        except ValueError:
            value = None
        if value is None or not is_allowed(value):
            raise argparse.ArgumentTypeError(f"{text:.60} is not {words}")
        return value

    return read_allowed


def whole(least: int, most: int = LARGEST_INT) -> Callable[[str], int]:
    return limited(int, lambda value: least <= value <= most, f"a whole number from {least} to {most}")


def positive(most: float) -> Callable[[str], float]:
    return limited(float, lambda value: 0 < value <= most, f"a number above 0 and up to {most:g}")


count = whole(0)
positive_count = whole(1)
seed = whole(0, LARGEST_SEED)
fraction = limited(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")
