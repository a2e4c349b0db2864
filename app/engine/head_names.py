"""The names of a head's parts, for declarations. In a module without torch, which takes seconds to import."""

from typing import Literal

PositionKind = Literal["last", "last_non_pad", "before_first", "at", "before", "index", "all", "last_of"]
Reduction = Literal["last", "min", "max", "mean", "product"]
ActivationName = Literal["relu", "leaky_relu", "gelu", "silu", "tanh"]
