"""Pydantic types for lists of numbers that become numpy arrays: a trainer's body holds millions of numbers.

Imports neither torch nor the rest of the API, so that the worker process starts quickly.
"""

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class FromList:
    """Annotates an array that is read from a list. `entry` is the type of the list's entries; null becomes NaN."""

    def __init__(self, entry: Any, dtype: DTypeLike, *, min_length: int = 0) -> None:
        self.entry = entry
        self.dtype = dtype
        self.min_length = min_length

    def __get_pydantic_core_schema__(self, _source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        entries = core_schema.list_schema(handler.generate_schema(self.entry), min_length=self.min_length)
        return core_schema.no_info_after_validator_function(self._array, entries)

    def _array(self, entries: list[Any]) -> NDArray[Any]:
        return np.array(entries, self.dtype)


class ToList:
    """Annotates an array of floats that is serialized as a list."""

    def __get_pydantic_core_schema__(self, _source: object, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.is_instance_schema(
            np.ndarray,
            serialization=core_schema.plain_serializer_function_ser_schema(
                np.ndarray.tolist, return_schema=core_schema.list_schema(core_schema.float_schema())
            ),
        )


Logprobs = Annotated[
    NDArray[np.float64],  # (tokens,) NaN for null
    FromList(float | None, np.float64, min_length=1),
    Field(description="Log-probabilities of the response's tokens; any number or null where masked."),
]
Mask = Annotated[
    NDArray[np.bool_],  # (tokens,)
    FromList(Literal[0, 1] | bool, np.bool_),
    Field(description="1 counts a token; absent counts all."),
]
Floats = Annotated[NDArray[np.float64], ToList()]
