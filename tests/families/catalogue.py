"""All families, by importing the modules that register them."""

from tests.families import classifiers, deep_heads, encoders, judges, process, published_heads, value_heads
from tests.families.family import FAMILIES, Family

MODULES = (classifiers, value_heads, published_heads, deep_heads, process, judges, encoders)

__all__ = ["FAMILIES", "MODULES", "Family"]
