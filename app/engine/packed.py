"""Forward passes of a batch's prefix tree as one packed row, in which every shared token is computed once."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from app.engine.attention.backend import AttentionBackend
from app.engine.attention.cpu import BlockBackend, Queries, padded_length
from app.engine.attention.cuda import FlexBackend
from app.engine.attention.interface import IMPLEMENTATION, PackedRow
from app.engine.attention.last_layer import LastLayerRows, restrict_to_rows
from app.engine.batch import Batch
from app.engine.devices import upload
from app.engine.forward import Computed, Lease, Prepared, releasing
from app.engine.prefix_tree import IntArray
from app.engine.row_layout import RowLayout, zero_padded

if TYPE_CHECKING:
    from app.engine.attention.pool import KeyValueCache
    from app.engine.reward_model import RewardModel

BackendName = Literal["blocks", "flex"]
BACKENDS: dict[BackendName, AttentionBackend] = {"blocks": BlockBackend(), "flex": FlexBackend()}


def prepare_packed(
    model: "RewardModel", batch: Batch, positions: Sequence[IntArray], cache: "KeyValueCache | None"
) -> Prepared:
    """Prepares a forward pass on the host, for the tokens that are not cached. `positions` are those that the head reads."""
    if cache is None:
        return prepare_rows(model, batch, positions, RowLayout(batch.tree), None)
    lease = Lease(cache, cache.reserve(batch))
    with releasing(lease):
        layout = RowLayout(batch.tree)
        if any(lease.reservation.num_cached_tokens):
            layout = RowLayout.of(batch.tree, lease.reservation.slots >= 0, wanted_rows(batch, positions))
        return prepare_rows(model, batch, positions, layout, lease)


def prepare_rows(
    model: "RewardModel", batch: Batch, positions: Sequence[IntArray], layout: RowLayout, lease: Lease | None
) -> Prepared:
    packed_row = PackedRow(layout, model.device, BACKENDS[model.plan.backend], row_multiple=model.row_multiple)
    windows = {layer.options.window for layer in model.attended_layers if layer.device == model.device}
    packed_row.attention.upload(model.device, windows)
    if lease is not None:
        counts = (packed_row.num_rows, packed_row.num_keys)
        packed_row.cached_keys = lease.cache.cached_keys(lease.reservation, layout, *counts)
        packed_row.cached_keys.upload(model.device)
    rows = layout.packed_rows(np.concatenate(wanted_rows(batch, positions)))
    return Prepared(batch, positions, packed_row, rows, lease)


def wanted_rows(batch: Batch, positions: Sequence[IntArray]) -> list[IntArray]:
    """Per sequence, the tree rows of the positions."""
    return [path[chosen] for path, chosen in zip(batch.tree.paths, positions, strict=True)]


def packed_states(model: "RewardModel", prepared: Prepared) -> Computed:
    """Runs the forward pass. On a GPU it may still be running when this returns."""
    packed_row, rows, batch = prepared.packed_row, prepared.rows, prepared.batch
    assert packed_row is not None
    assert rows is not None
    model.use_attention(IMPLEMENTATION)
    if model.plan.skips_last_layer:
        states = last_states(model, packed_row, prepared.positions, rows)
    else:
        states = trunk_states(model, packed_row)
        states = states[upload(rows, states.device)]  # on the last layer's device
    model.attended_layers = packed_row.layers
    num_cached = prepared.lease.reservation.num_cached_tokens if prepared.lease is not None else [0] * len(batch)
    is_whole = packed_row.layout.is_computed is None and not any(num_cached)
    num_computed = batch.num_new_tokens if is_whole else packed_row.layout.num_computed_by()
    return Computed(states, num_computed, num_cached)


def trunk_states(model: "RewardModel", packed_row: PackedRow) -> Tensor:
    """(rows, hidden)"""
    out = model.trunk(
        input_ids=packed_row.input_ids,
        position_ids=packed_row.position_ids,
        use_cache=False,
        packed_row=packed_row,
    )
    if not packed_row.layers:
        raise RuntimeError(f"{type(model.trunk).__name__} does not use the attention interface")
    return out.last_hidden_state[0]  # type: ignore[no-any-return]


def last_states(model: "RewardModel", packed_row: PackedRow, positions: Sequence[IntArray], rows: IntArray) -> Tensor:
    """(n, hidden): the states at the wanted positions. Of other rows, the last layer computes only keys and values."""
    bounds = [0, *accumulate(map(len, positions))]
    own_rows = np.arange(len(rows))
    layout = packed_row.layout
    wanted = [
        Queries(layout.key_rows(path, packed_row.num_rows), chosen, own_rows[start:stop])
        for path, chosen, (start, stop) in zip(layout.tree.paths, positions, pairwise(bounds), strict=True)
    ]
    last_rows = LastLayerRows(wanted, padded_length(len(rows), model.row_multiple))
    all_rows = torch.from_numpy(zero_padded(rows, last_rows.num_rows))
    with restrict_to_rows(model.layers[-1], last_rows, all_rows, packed_row.num_rows):
        return trunk_states(model, packed_row)[: len(rows)]
