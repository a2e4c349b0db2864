"""Forward passes of sequences padded on the right, for models that cannot be packed. Prefixes are not shared."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from app.engine.batch import Batch
from app.engine.devices import upload
from app.engine.forward import Computed
from app.engine.sequence import TokenSequence

if TYPE_CHECKING:
    from app.engine.reward_model import RewardModel


def padded_states(model: "RewardModel", batch: Batch) -> Computed:
    """Forward passes of the longest sequences first, each with as many as fit the token budget, padding included."""
    order = sorted(range(len(batch)), key=lambda i: -batch.sequences[i].num_tokens)
    states: dict[int, Tensor] = {}
    while order:
        fit = max(model.max_batch_tokens // batch.sequences[order[0]].num_tokens, 1)
        chosen, order = order[:fit], order[fit:]
        states.update(zip(chosen, padded_forward(model, batch.part(chosen)), strict=True))
    return nothing_shared(batch, [states[i] for i in range(len(batch))])


def single_states(model: "RewardModel", batch: Batch) -> Computed:
    """One forward pass per sequence."""
    return nothing_shared(batch, [padded_forward(model, batch.part([i]))[0] for i in range(len(batch))])


def nothing_shared(batch: Batch, states: Sequence[Tensor]) -> Computed:
    return Computed(torch.cat(list(states)), [each.num_tokens for each in batch.sequences], [0] * len(batch))


def padded_forward(model: "RewardModel", batch: Batch) -> list[Tensor]:
    """Each sequence's states, (n, hidden) or (1, k), from one forward pass of the whole batch, padded on the right."""
    model.use_attention(model.own_attention)
    lengths = torch.tensor([sequence.num_tokens for sequence in batch.sequences])
    rows = [torch.from_numpy(sequence.token_ids) for sequence in batch.sequences]
    input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=model.pad_token_id or 0)
    mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    inputs = {"input_ids": input_ids, "attention_mask": mask, **token_types(batch.sequences, input_ids)}
    inputs = {name: upload(values, model.device) for name, values in inputs.items()}
    if not model.head.layers:
        return list(model.net(**inputs).logits.split(1))  # (1, k) each
    states = model.trunk(**inputs, use_cache=False).last_hidden_state  # (batch, length, hidden)
    return [states[i, torch.from_numpy(chosen)] for i, chosen in enumerate(model.all_positions(batch))]


def token_types(sequences: Sequence[TokenSequence], input_ids: Tensor) -> dict[str, Tensor]:
    """`token_type_ids` for the padded `input_ids`, (sequences, length), if any sequence is a pair; else an empty dict."""
    if all(sequence.token_types is None for sequence in sequences):
        return {}
    types = torch.zeros_like(input_ids, device="cpu")
    for row, sequence in zip(types, sequences, strict=True):
        if sequence.token_types is not None:
            row[: sequence.num_tokens] = torch.tensor(list(sequence.token_types))
    return {"token_type_ids": types}
