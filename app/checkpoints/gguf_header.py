"""Reads the names and shapes of a GGUF file's tensors from its header. The package gguf takes seconds for a large vocabulary.

Needs neither gguf nor torch.
"""

import re
import struct
from pathlib import Path
from typing import BinaryIO

from app.checkpoints.files import Shape

MAGIC, VERSIONS = b"GGUF", {2, 3}
STRING, ARRAY = 8, 9
NUM_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Of a value that is neither, by its type."""
MAX_NAME_BYTES = 1 << 16
LANGUAGE_MODEL = re.compile(r"^(token_embd|blk\.\d+|output_norm|output|rope_freqs)\.")
"""llama.cpp's names of a Llama's tensors."""


def other_tensors(file: Path) -> dict[str, Shape] | None:
    """The tensors that no language model has; None for a file that is incomplete or of another version."""
    try:
        with file.open("rb") as stream:
            shapes = read_shapes(stream)
    except (struct.error, KeyError, ValueError, OSError, OverflowError):
        return None
    return {name: shape for name, shape in shapes.items() if not LANGUAGE_MODEL.match(name)}


def read_shapes(stream: BinaryIO) -> dict[str, Shape]:
    if stream.read(4) != MAGIC or read_number(stream, "I") not in VERSIONS:
        raise ValueError("another format")
    num_tensors, num_values = read_number(stream, "Q"), read_number(stream, "Q")
    for _ in range(num_values):
        read_name(stream)
        skip_value(stream, read_number(stream, "I"))
    shapes = {}
    for _ in range(num_tensors):
        name = read_name(stream)
        sizes = [read_number(stream, "Q") for _ in range(read_number(stream, "I"))]
        stream.seek(4 + 8, 1)  # its type and offset
        shapes[name] = Shape(tuple(reversed(sizes)))
    return shapes


def skip_value(stream: BinaryIO, kind: int) -> None:
    length = 1
    if kind == ARRAY:
        kind, length = read_number(stream, "I"), read_number(stream, "Q")
    if kind != STRING:
        stream.seek(NUM_BYTES[kind] * length, 1)
        return
    for _ in range(length):
        stream.seek(read_number(stream, "Q"), 1)


def read_name(stream: BinaryIO) -> str:
    num_bytes = read_number(stream, "Q")
    if num_bytes > MAX_NAME_BYTES:
        raise ValueError(f"a name of {num_bytes} bytes")
    return stream.read(num_bytes).decode()


def read_number(stream: BinaryIO, code: str) -> int:
    return int(struct.unpack(f"<{code}", stream.read(struct.calcsize(f"<{code}")))[0])
