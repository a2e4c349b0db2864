"""Formats quantities for messages."""


def byte_size(num_bytes: int) -> str:
    """A number of bytes with its unit, such as `141.35 GB`, `30.88 kB` or `12 bytes`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes} bytes"
