"""Encodes scores as numbers, base64 or bytes, in vLLM's number types and byte orders."""

import base64
import json
import sys
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from starlette.responses import Response

from app.api.compat.dialect import CompatBody
from app.errors import InvalidInputError

EmbedDType = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
Endianness = Literal["native", "big", "little"]
EncodingFormat = Literal["float", "base64", "bytes", "bytes_only"]
Values = list[float] | list[list[float]]
DTYPES: dict[str, tuple[torch.dtype, torch.dtype]] = {
    "float32": (torch.float32, torch.int32),
    "float16": (torch.float16, torch.int16),
    "bfloat16": (torch.bfloat16, torch.int16),
    "fp8_e4m3": (torch.float8_e4m3fn, torch.uint8),
    "fp8_e5m2": (torch.float8_e5m2, torch.uint8),
}
"""Each type, and an integer type of the same size that numpy supports."""


class Encoding(CompatBody):
    encoding_format: EncodingFormat = Field("float", description="base64 is what OpenAI's clients ask for.")
    embed_dtype: EmbedDType = Field("float32", description="Type of the numbers in base64 and bytes.")
    endianness: Endianness = Field("native", description="Their byte order.")

    def encoded(self, values: Values) -> Values | str:
        """The values as they appear in JSON."""
        return values if self.encoding_format == "float" else base64.b64encode(self.packed(values)).decode()

    def packed(self, values: Values) -> bytes:
        """The values as bytes. Raises InvalidInputError for a value that the type cannot represent."""
        dtype, integers = DTYPES[self.embed_dtype]
        numbers = torch.tensor(values, dtype=torch.float32).flatten()
        typed = numbers.to(dtype)
        if not bool(torch.isfinite(typed.float()).all()):
            raise InvalidInputError(
                f"a score of {float(numbers.abs().max()):g} does not fit {self.embed_dtype}; set embed_dtype to float32"
            )
        packed = typed.view(integers).numpy()
        is_native = self.endianness in {"native", sys.byteorder}
        return bytes((packed if is_native else packed.byteswap()).tobytes())

    def response(self, outputs: list[Values], fields: dict[str, Any]) -> Response:
        """A response with all outputs concatenated, and unless `bytes_only` a header with the offsets of each."""
        parts = [self.packed(values) for values in outputs]
        headers = {}
        if self.encoding_format == "bytes":
            ends = np.cumsum([len(part) for part in parts]).tolist()
            items = [
                {
                    "index": i,
                    "embed_dtype": self.embed_dtype,
                    "endianness": self.endianness,
                    "start": end - len(part),
                    "end": end,
                    "shape": shape(values),
                }
                for i, (values, part, end) in enumerate(zip(outputs, parts, ends, strict=True))
            ]
            headers["metadata"] = json.dumps({**fields, "data": items})
        return Response(b"".join(parts), headers=headers, media_type="application/octet-stream")


def shape(values: Values) -> list[int]:
    first = values[0] if values else 0.0
    return [len(values), len(first)] if isinstance(first, list) else [len(values)]
