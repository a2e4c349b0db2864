"""A loaded reward model: sequences in, scores out, by the fastest path that is exact for it.

Three paths give the same scores, those of transformers' own forward on the one unpadded sequence (the *oracle*):
- packed: the batch's prefix tree as one row (`attention`); causal decoders that use the attention interface;
- padded: length-sorted batches padded on the right; encoders, and what cannot be packed;
- single: one sequence a forward; where a score would depend on the row's length.
At start a self-test scores a small forked tree both ways, and a model that disagrees takes the next path. Knows nothing
of queues, threads and text.
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from app.engine.attention import IMPLEMENTATION, LastLayerRows, PackedRow, Queries, narrowed, padded_length
from app.engine.loading import Checkpoint, head_of
from app.engine.prefix_tree import IntArray, PrefixTree
from app.engine.sequence import Scored, Sequence
from app.engine.tokenization import Tokenization

Path = Literal["packed", "padded", "single"]
SMALL_FORWARD_FLOPS = 5e8
"""A forward with fewer, of a few milliseconds, runs on one thread. With more, every operation would end by waiting for a
core that the event loop, the tokenizer or a client on the same machine has just then."""


@dataclass(slots=True)
class Facts:
    """What the self-test found out, for /info."""

    path: Path
    reason: str
    batch_invariant: bool = False
    skips_last_layer: bool = False


class RewardModel:
    """One scalar reward model on one device. Not thread-safe: one thread owns it."""

    def __init__(
        self, name: str, checkpoint: Checkpoint, *, max_batch_tokens: int, max_length: int | None = None
    ) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.device = checkpoint.device
        self.max_batch_tokens = max_batch_tokens
        self.net: Any = checkpoint.net
        self.trunk: Any = checkpoint.net.base_model
        head_name, self.head = head_of(checkpoint.net)
        self.is_causal = head_name == "score"
        self.dtype: torch.dtype = checkpoint.net.dtype
        self.pad_token_id: int | None = checkpoint.net.config.get_text_config().pad_token_id
        self.own_attention: str = checkpoint.net.config._attn_implementation  # noqa: SLF001 - no public getter
        longest = min(checkpoint.max_length, max_length or checkpoint.max_length)
        self.tokenization = Tokenization(checkpoint.tokenizer, longest, checkpoint.vocab_size)
        self.row_multiple = 64
        self.small_forward_flops = SMALL_FORWARD_FLOPS
        self.facts = Facts("single", "not tested yet")

    def score(self, sequences: Many[Sequence], token_scores: Many[bool] | None = None) -> list[Scored]:
        """The scores of at least one sequence, in order; with `token_scores[i]` also those after every token of i.

        May return non-finite numbers; raises what torch raises.
        """
        wanted = token_scores if token_scores is not None else [False] * len(sequences)
        paths: dict[Path, Callable[[Many[Sequence], Many[bool]], list[Scored]]] = {
            "packed": self._score_packed,
            "padded": self._score_padded,
            "single": self._score_single,
        }
        with torch.inference_mode(), self._threads(sum(sequence.num_tokens for sequence in sequences)):
            return paths[self.facts.path](sequences, wanted)

    @contextmanager
    def _threads(self, num_tokens: int) -> Iterator[None]:
        """One thread for as long as the context lasts where a forward of that many tokens is small."""
        num_threads = torch.get_num_threads()
        if num_threads == 1 or num_tokens * self._flops_per_token >= self.small_forward_flops:
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(num_threads)

    @cached_property
    def _flops_per_token(self) -> int:
        """Of the products with the trunk's matrices; attention's own are left out."""
        tables = {id(module.weight) for module in self.trunk.modules() if isinstance(module, nn.Embedding)}
        return sum(2 * each.numel() for each in self.trunk.parameters() if each.ndim > 1 and id(each) not in tables)

    def oracle(self, sequence: Sequence) -> float:
        """transformers' own forward on the one unpadded sequence."""
        with torch.inference_mode(), self._attention(self.own_attention):
            input_ids = torch.from_numpy(sequence.token_ids)[None].to(self.device)
            logits = self.net(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits
            return float(logits[0, 0])

    @property
    def devices(self) -> list[str]:
        """Where its weights are: one device, or those that a split model is spread over."""
        device_map = getattr(self.net, "hf_device_map", {"": self.device})
        accelerator = self.device.type
        return list(dict.fromkeys(f"{accelerator}:{d}" if isinstance(d, int) else str(d) for d in device_map.values()))

    @property
    def weight_dtype(self) -> str:
        """The type of the trunk's matrices; they are multiplied in `dtype`."""
        return "int8" if self.checkpoint.placement.int8 else str(self.dtype).removeprefix("torch.")

    def scored_position(self, sequence: Sequence) -> int:
        """transformers' choice: the rightmost token that is not padding, the last without a pad token."""
        if self.pad_token_id is None or sequence.last_token_id != self.pad_token_id:
            return sequence.num_tokens - 1
        places = np.flatnonzero(sequence.token_ids != self.pad_token_id)
        return int(places[-1]) if len(places) else 0

    # -- the head ---------------------------------------------------------------------------------------------------

    def _head_scores(self, states: Tensor) -> list[float]:
        """The head on (n, hidden) states: row by row in float64, since a product with one output is not row-wise.

        On the CPU, where the numbers go anyway: not every device has float64.
        """
        weight, bias = self._head_parameters
        return ((states.cpu().double() * weight).sum(-1) + bias).tolist()

    @cached_property
    def _head_parameters(self) -> tuple[Tensor, Tensor | float]:
        """The head's weight, (hidden,), and bias, in float64 on the CPU."""
        bias = self.head.bias
        return self.head.weight[0].cpu().double(), 0.0 if bias is None else bias.cpu().double()

    def _collect(self, sequences: Many[Sequence], wanted: Many[bool], scores: list[float]) -> list[Scored]:
        """Deals out the scores of `_positions`, in that order."""
        scored, taken = [], 0
        for sequence, all_tokens in zip(sequences, wanted, strict=True):
            if all_tokens:
                own = scores[taken : taken + sequence.num_tokens]
                scored.append(Scored(own[self.scored_position(sequence)], own))
                taken += sequence.num_tokens
            else:
                scored.append(Scored(scores[taken]))
                taken += 1
        return scored

    def _positions(self, sequence: Sequence, all_tokens: bool) -> IntArray:
        return np.arange(sequence.num_tokens) if all_tokens else np.array([self.scored_position(sequence)])

    # -- packed -----------------------------------------------------------------------------------------------------

    def _score_packed(self, sequences: Many[Sequence], wanted: Many[bool]) -> list[Scored]:
        tree = PrefixTree.of([sequence.key for sequence in sequences])
        packed_row = PackedRow(tree, self.device, row_multiple=self.row_multiple, uses_flex=self.device.type == "cuda")
        positions = [self._positions(*pair) for pair in zip(sequences, wanted, strict=True)]
        rows = [path[chosen] for path, chosen in zip(tree.paths, positions, strict=True)]
        with self._attention(IMPLEMENTATION):
            if self.facts.skips_last_layer:
                states = self._last_states(packed_row, positions, rows)
            else:
                states = self._trunk_states(packed_row)
                states = states[torch.from_numpy(np.concatenate(rows)).to(states.device)]  # of the last layer
        return self._collect(sequences, wanted, self._head_scores(states))

    def _trunk_states(self, packed_row: PackedRow) -> Tensor:
        """(rows, hidden)"""
        out = self.trunk(
            input_ids=packed_row.input_ids,
            position_ids=packed_row.position_ids,
            use_cache=False,
            packed_row=packed_row,
        )
        return out.last_hidden_state[0]  # type: ignore[no-any-return]

    def _last_states(self, packed_row: PackedRow, positions: Many[IntArray], rows: Many[IntArray]) -> Tensor:
        """(n, hidden): the states at the wanted positions, all the last layer computes besides keys and values."""
        counts = np.cumsum([0, *map(len, positions)])
        own_rows = np.arange(counts[-1])
        wanted = [
            Queries(path, chosen, own_rows[counts[i] : counts[i + 1]])
            for i, (path, chosen) in enumerate(zip(packed_row.tree.paths, positions, strict=True))
        ]
        last_rows = LastLayerRows(wanted, padded_length(int(counts[-1]), self.row_multiple))
        all_rows = np.zeros(last_rows.num_rows, np.int64)
        all_rows[: counts[-1]] = np.concatenate(rows)
        with narrowed(self._last_layer, last_rows, torch.from_numpy(all_rows), packed_row.num_rows):
            return self._trunk_states(packed_row)[: counts[-1]]

    @cached_property
    def _last_layer(self) -> nn.Module:
        """The decoder's last layer: the end of the longest list of modules in the trunk."""
        lists = [module for module in self.trunk.modules() if isinstance(module, nn.ModuleList)]
        return max(lists, key=len)[-1]

    @contextmanager
    def _attention(self, implementation: str) -> Iterator[None]:
        """Has the model use one attention function for as long as the context lasts."""
        config = self.net.config
        configs = [config, config.get_text_config(), self.trunk.config]
        before = [each._attn_implementation for each in configs]  # noqa: SLF001
        for each in configs:
            each._attn_implementation = implementation  # noqa: SLF001
        try:
            yield
        finally:
            for each, own in zip(configs, before, strict=True):
                each._attn_implementation = own  # noqa: SLF001

    # -- padded and single ------------------------------------------------------------------------------------------

    def _score_padded(self, sequences: Many[Sequence], wanted: Many[bool]) -> list[Scored]:
        """Longest first, as many a forward as the budget holds with their padding."""
        order = sorted(range(len(sequences)), key=lambda i: -sequences[i].num_tokens)
        scored: dict[int, Scored] = {}
        while order:
            fit = max(self.max_batch_tokens // sequences[order[0]].num_tokens, 1)
            batch, order = order[:fit], order[fit:]
            results = self._forward([sequences[i] for i in batch], [wanted[i] for i in batch])
            scored.update(zip(batch, results, strict=True))
        return [scored[i] for i in range(len(sequences))]

    def _score_single(self, sequences: Many[Sequence], wanted: Many[bool]) -> list[Scored]:
        return [self._forward([s], [w])[0] for s, w in zip(sequences, wanted, strict=True)]

    def _forward(self, sequences: Many[Sequence], wanted: Many[bool]) -> list[Scored]:
        """One forward of sequences padded on the right; the mask says what is padding, whatever its id."""
        lengths = torch.tensor([sequence.num_tokens for sequence in sequences])
        rows = [torch.from_numpy(sequence.token_ids) for sequence in sequences]
        input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id or 0)
        mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        inputs = {"input_ids": input_ids.to(self.device), "attention_mask": mask.to(self.device)}
        if not self.is_causal:
            logits = self.net(**inputs).logits
            return [Scored(score) for score in logits[:, 0].tolist()]
        states = self.trunk(**inputs, use_cache=False).last_hidden_state  # (batch, length, hidden)
        picked = [
            states[i, torch.from_numpy(self._positions(s, w))]
            for i, (s, w) in enumerate(zip(sequences, wanted, strict=True))
        ]
        return self._collect(sequences, wanted, self._head_scores(torch.cat(picked)))
