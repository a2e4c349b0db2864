"""The model of a training on rated groups: a decoder with a LoRA adapter on its upper layers and an output per rating.

The layers below are frozen, so their states are computed once and kept. Rows are packed (`packed`), which needs a decoder whose
layers are called as Llama's are; `check_packed` refuses any other.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from app.checkpoints.building import head_of
from app.engine.devices import is_out_of_memory
from app.errors import ModelRefusedError, one_line
from app.training.base import Base
from app.training.rated.packed import PackedBatch, Row, batch_of, batches_by_length, padded

TOLERANCE = 1e-4
"""What rounding may change in the states, relative to their norm, between packed rows and the model's own forward pass."""


class RatedModel:
    """`net` is peft's, around a classifier whose head is called `score` and has an output per rating.

    With `bfloat16`, products are computed in bfloat16, frozen weights are rounded to it, and so are the kept states.
    """

    def __init__(
        self, net: Any, num_frozen: int, *, device: torch.device, bfloat16: bool, max_batch_tokens: int
    ) -> None:
        self.net = net.to(device)
        self.num_frozen = num_frozen
        self.device = device
        self.bfloat16 = bfloat16
        self.max_batch_tokens = max_batch_tokens
        self.trunk = net.get_base_model().base_model
        self.head: nn.Linear = net.get_base_model().score.modules_to_save["default"]
        self.adapters = [weight for name, weight in net.named_parameters() if weight.requires_grad and "lora_" in name]
        if bfloat16:
            round_frozen_weights(self.trunk)

    def scores(self, features: Tensor) -> Tensor:
        """(responses, ratings) of features (responses, width)."""
        scores = features @ self.head.weight.T
        return scores if self.head.bias is None else scores + self.head.bias

    @torch.no_grad()
    def frozen_states(self, rows: Sequence[Row]) -> list[Tensor]:
        """Each row's states (tokens, width) behind the frozen layers, in CPU memory."""
        states: list[Tensor] = [torch.empty(0)] * len(rows)
        kept = torch.bfloat16 if self.bfloat16 else torch.float32
        batches = batches_by_length(rows, self.max_batch_tokens)
        for indices in tqdm(batches, desc="frozen layers", mininterval=10, disable=None):
            chosen = [rows[index] for index in indices]
            batch = batch_of(chosen, self.device)
            with self.products():
                found = run_layers(self.trunk, self.trunk.embed_tokens(batch.ids), batch, 0, self.num_frozen)
            for index, row, state in zip(indices, chosen, found, strict=True):
                states[index] = state[: row.num_tokens].to("cpu", kept).clone()
        return states

    def features(self, rows: Sequence[Row], states: Sequence[Tensor]) -> Tensor:
        """(responses, width) in float32: what the head reads, the normalised state of each response's last token."""
        batch = batch_of(rows, self.device)
        stacked = torch.stack([padded(state, batch.num_tokens, 0.0) for state in states]).to(self.device).float()
        with self.products():
            found = run_layers(self.trunk, stacked, batch, self.num_frozen, len(self.trunk.layers))
        normalised: Tensor = self.trunk.norm(found[batch.ends].float())
        return normalised

    @torch.no_grad()
    def features_of(self, rows: Sequence[Row], states: Sequence[Tensor]) -> list[Tensor]:
        """(responses, width) per row, in batches and without gradients."""
        self.net.eval()
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        for indices in batches_by_length(rows, self.max_batch_tokens):
            chosen = [rows[index] for index in indices]
            features = self.features(chosen, [states[index] for index in indices])
            for index, part in zip(indices, torch.split(features, [len(row.ends) for row in chosen]), strict=True):
                found[index] = part
        return found

    def products(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)


def run_layers(trunk: Any, states: Tensor, batch: PackedBatch, first: int, last: int) -> Tensor:
    """`states` (rows, tokens, width) after the layers from `first` to before `last`."""
    rotary = trunk.rotary_emb(states, batch.positions)
    for layer in trunk.layers[first:last]:
        states = layer(states, attention_mask=batch.mask, position_ids=batch.positions, position_embeddings=rotary)
    return states


def round_frozen_weights(trunk: nn.Module) -> None:
    """Rounds the frozen linear layers to bfloat16, as autocast would again in every step."""
    for module in trunk.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            module.to(torch.bfloat16)


def give_heads(base: Base, num_ratings: int, seed: int) -> None:
    """Gives the base's head an output per rating.

    A language model's are new, each N(0, 1 / (hidden size + 1)) by the seed; a reward model's all begin as its own head.
    Raises ModelRefusedError for a classifier whose head is not one linear layer called `score`, such as an encoder's.
    """
    name, head = head_of(base.net)
    if name != "score":
        raise ModelRefusedError(
            f"{type(base.net).__name__} has its head at {name}; rated groups train a decoder with a head at score. Train it on pairs"
        )
    outputs = nn.Linear(head.in_features, num_ratings, bias=head.bias is not None)
    with torch.no_grad():
        for parameter, original in zip(outputs.parameters(), head.parameters(), strict=True):
            parameter.copy_(original.expand(num_ratings, *original.shape[1:]))
        if base.has_new_head:
            deviation = (head.in_features + 1) ** -0.5
            outputs.weight.normal_(0, deviation, generator=torch.Generator().manual_seed(seed))
    base.net.add_module(name, outputs)
    base.net.config.num_labels = num_ratings


@torch.no_grad()
def check_packed(directory: Path, net: Any, rows: Sequence[Row]) -> None:
    """Raises ModelRefusedError where packed rows do not give the states of the model's own forward pass.

    Compares the shortest row and the one with the longest sequence, in one batch, so that a sliding window or a change of
    rotary scaling that the data reach is found. `net` is in float32.
    """
    trunk = net.base_model
    rows = [min(rows, key=lambda row: row.num_tokens), max(rows, key=lambda row: max(map(len, row.sequences)))]
    batch = batch_of(rows, net.device)
    try:
        states = run_layers(trunk, trunk.embed_tokens(batch.ids), batch, 0, len(trunk.layers))
        found = trunk.norm(states[batch.ends])
    except (AttributeError, TypeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        difference = one_line(error)
    else:
        sequences = [ids.to(net.device)[None] for row in rows for ids in row.sequences]
        alone = [trunk(input_ids=ids, use_cache=False).last_hidden_state[0, -1] for ids in sequences]
        expected = torch.stack(alone)
        if (found - expected).norm() <= TOLERANCE * expected.norm():
            return
        difference = "the states differ"
    raise ModelRefusedError(
        f"{directory} is a {type(net).__name__}, whose layers cannot be run on packed rows ({difference}); train it on pairs, or "
        "give a base such as Llama, Mistral or Qwen"
    )
