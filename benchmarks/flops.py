"""Matrix-product FLOPs of a Llama-shaped trunk, counted from the rows and query-key pairs that sequences need.

Pure functions. A multiply-add counts as 2. The count includes the linear layers and attention's two products; the embedding,
norms, softmax, rotary embedding and the one-output head are negligible. A causal query at depth d attends to d + 1 keys, so a
sequence of n tokens has n (n + 1) / 2 pairs, even if a kernel computes more.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a trunk that determine its matrix products."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelShape":
        """Reads the sizes from a Llama `config.json`."""
        num_heads = int(config["num_attention_heads"])
        return cls(
            num_layers=int(config["num_hidden_layers"]),
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_heads=num_heads,
            num_kv_heads=int(config.get("num_key_value_heads", num_heads)),
            head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // num_heads),
        )

    @property
    def projections(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of each linear layer of one decoder layer: q, k, v, o, gate, up, down."""
        query = self.num_heads * self.head_dim
        key_value = self.num_kv_heads * self.head_dim
        hidden, intermediate = self.hidden_size, self.intermediate_size
        return (
            (hidden, query),
            (hidden, key_value),
            (hidden, key_value),
            (query, hidden),
            (hidden, intermediate),
            (hidden, intermediate),
            (intermediate, hidden),
        )


@dataclass(frozen=True, slots=True)
class Work:
    """The work of a trunk: rows (computed tokens), attention's query-key pairs, scored positions."""

    num_rows: int
    num_pairs: int
    num_scored: int


def whole_work(sequences: Sequence[Sequence[int]]) -> Work:
    """The work if every sequence is computed by itself."""
    lengths = [len(sequence) for sequence in sequences]
    return Work(sum(lengths), sum(length * (length + 1) // 2 for length in lengths), len(lengths))


def shared_work(sequences: Sequence[Sequence[int]]) -> Work:
    """The work if every common prefix is computed once: each node of the sequences' trie attends to its ancestors and itself."""
    num_rows = num_pairs = 0
    previous: Sequence[int] = ()
    for sequence in sorted(tuple(sequence) for sequence in sequences):
        shared = _common_prefix_length(previous, sequence)
        num_rows += len(sequence) - shared
        num_pairs += (len(sequence) * (len(sequence) + 1) - shared * (shared + 1)) // 2
        previous = sequence
    return Work(num_rows, num_pairs, len(sequences))


def interpolated_work(whole: Work, shared: Work, num_rows: int) -> Work:
    """Return the work of a server that reports `num_rows` computed rows, by interpolation between no sharing and full sharing.

    Exact at either end; an estimate in between, since servers do not report which prefixes were in one batch.
    """
    if whole.num_rows == shared.num_rows:
        return whole
    unshared = (num_rows - shared.num_rows) / (whole.num_rows - shared.num_rows)
    num_pairs = shared.num_pairs + round(unshared * (whole.num_pairs - shared.num_pairs))
    return Work(num_rows, num_pairs, whole.num_scored)


def trunk_flops(shape: ModelShape, work: Work, *, pruned_last_layer: bool = False) -> int:
    """FLOPs of `work`; with `pruned_last_layer`, the last layer computes keys and values for every row, and everything else for scored rows only.

    The pruned layer's attention is estimated from the mean pairs per row, because `work` does not have the depths of the scored rows.
    """
    per_pair = 4 * shape.num_heads * shape.head_dim
    full_layer = work.num_rows * linear_flops_per_row(shape) + work.num_pairs * per_pair
    if not pruned_last_layer:
        return shape.num_layers * full_layer
    key_value = 4 * shape.hidden_size * shape.num_kv_heads * shape.head_dim
    scored_pairs = round(2 * work.num_pairs * work.num_scored / max(work.num_rows, 1))
    last_layer = (
        work.num_rows * key_value
        + work.num_scored * (linear_flops_per_row(shape) - key_value)
        + scored_pairs * per_pair
    )
    return (shape.num_layers - 1) * full_layer + last_layer


def linear_flops_per_row(shape: ModelShape) -> int:
    """FLOPs of one decoder layer's linear layers for one row."""
    return sum(2 * num_in * num_out for num_in, num_out in shape.projections)


def _common_prefix_length(first: Iterable[int], second: Iterable[int]) -> int:
    length = 0
    for left, right in zip(first, second, strict=False):
        if left != right:
            break
        length += 1
    return length
