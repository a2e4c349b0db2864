"""A loaded reward model: a batch in, scores out, by the fastest path that is exact for it.

Three paths give the same scores, those of a plain forward of the one unpadded sequence (the *reference forward*):
- packed: the batch's prefix tree as one row (`attention`), for causal decoders that use the attention interface;
- padded: length-sorted batches padded on the right, for encoders and for decoders that cannot be packed;
- single: one sequence per forward, where a score would depend on the row's length.
At start a self-test compares each path with the reference forward; a model that disagrees takes the next path. Knows
nothing of queues, threads and text.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from app.engine.batch import Batch
from app.engine.checkpoint import Checkpoint
from app.engine.forward import Computed, Prepared, releasing
from app.engine.forward_memory import ForwardMemory, matrices_of
from app.engine.head import NoPositionError
from app.engine.num_threads import ForwardThreads
from app.engine.packed import BackendName, packed_states, prepare_packed
from app.engine.padded import padded_states, single_states, token_types
from app.engine.prefix_tree import IntArray
from app.engine.sequence import Scored, Steps, TokenSequence
from app.engine.tokenization import Tokenization
from app.engine.transformers_internals import attention_implementation

if TYPE_CHECKING:
    from app.engine.attention.backend import LayerShape
    from app.engine.attention.pool import KeyValueCache

logger = logging.getLogger(__name__)

Path = Literal["packed", "padded", "single"]
SMALL_FORWARD_FLOPS = 5e8
"""A forward pass with fewer FLOPs (a few milliseconds) runs on one thread. On several, every operation would wait for a core
that the event loop, the tokenizer or a client on the same machine is using."""


@dataclass(slots=True)
class ExecutionPlan:
    """How a model is run, chosen by the self-test; `GET /info` shows it."""

    path: Path
    reason: str
    batch_invariant: bool = False
    skips_last_layer: bool = False  # the last layer computes only the rows that the head reads
    backend: BackendName = "blocks"

    @property
    def name(self) -> str:
        """The path, and the attention backend if it is not the CPU's."""
        return self.path if self.backend == "blocks" else f"{self.path} with flex_attention"


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
        self.head = checkpoint.head
        self.is_causal = checkpoint.is_causal
        self.dtype: torch.dtype = checkpoint.net.dtype
        self.pad_token_id: int | None = checkpoint.net.config.get_text_config().pad_token_id
        self.own_attention: str = attention_implementation(checkpoint.net)
        self._attention = self.own_attention
        longest = min(checkpoint.max_length, max_length or checkpoint.max_length)
        self.tokenization = Tokenization(
            checkpoint.tokenizer,
            longest,
            checkpoint.vocab_size,
            checkpoint.text_rules,
            is_encoder=not checkpoint.is_causal,
            finds_response=checkpoint.head.position.in_response,
        )
        self.row_multiple = 64
        self.small_forward_flops = SMALL_FORWARD_FLOPS
        self.threads = ForwardThreads()
        self.plan = ExecutionPlan("single", "not tested yet")
        self.attended_layers: list[LayerShape] = []
        """The layers' attention in the last packed forward pass."""
        self.memory: ForwardMemory | None = None
        self.cache: KeyValueCache | None = None
        self.cache_reason: str | None = "off"
        """Why there is no prefix cache; None if there is one."""

    def score(self, batch: Batch) -> list[Scored]:
        """The scores of the batch's sequences, in order.

        They may be non-finite. Raises what torch raises.
        """
        prepared = self.prepare(batch)
        return self.finish(prepared, self.launch(prepared))

    def compute(self, batch: Batch) -> Computed:
        """Runs the batch on the plan's path, and adds its keys and values to the prefix cache."""
        prepared = self.prepare(batch)
        return self._settle(prepared, self.launch(prepared))

    # A forward pass has three steps, so that the host prepares a batch while a GPU computes the one before. Batches are
    # launched and finished in the order in which they were prepared.

    def prepare(self, batch: Batch) -> Prepared:
        """The host's part: tree, mask, cache lookup, asynchronous copies to a GPU. Call `launch` or `abandon` next."""
        positions = self.all_positions(batch)
        if self.plan.path != "packed":
            return Prepared(batch, positions)
        with torch.inference_mode():
            return prepare_packed(self, batch, positions, self._cache_for(batch))

    def launch(self, prepared: Prepared) -> Computed:
        """The forward pass. On a GPU it may still run when this returns. If torch raises, the cache reservation is released."""
        batch = prepared.batch
        is_small = self._is_small(batch.num_tokens)
        with releasing(prepared.lease), torch.inference_mode(), self.threads.set_for_forward(is_small=is_small):
            match self.plan.path:
                case "packed":
                    return packed_states(self, prepared)
                case "padded":
                    return padded_states(self, batch)
                case "single":
                    return single_states(self, batch)

    def _is_small(self, num_tokens: int) -> bool:
        return num_tokens * self.flops_per_token < self.small_forward_flops

    def finish(self, prepared: Prepared, computed: Computed) -> list[Scored]:
        """Waits for the forward pass, publishes what it added to the prefix cache, and returns the scores."""
        computed = self._settle(prepared, computed)
        return self._collect(prepared, self.head.score_states(computed.states), computed)

    def abandon(self, prepared: Prepared) -> None:
        """Releases the cache reservation of a batch that will not be launched or finished."""
        if prepared.lease is not None:
            prepared.lease.cache.release(prepared.lease.reservation)

    def is_current(self, prepared: Prepared) -> bool:
        """Whether preparing the batch again would find no more in the prefix cache."""
        lease, cache = prepared.lease, self._cache_for(prepared.batch)
        if lease is None or cache is None:
            return lease is None and cache is None
        return lease.cache is cache and cache.is_current(lease.reservation, prepared.batch)

    def _cache_for(self, batch: Batch) -> "KeyValueCache | None":
        """The prefix cache; None if every sequence of the batch is too short for it."""
        cache = self.cache  # read once: during a reload, another thread sets it to None
        return cache if cache is not None and cache.may_use(batch) else None

    def _settle(self, prepared: Prepared, computed: Computed) -> Computed:
        with releasing(prepared.lease), torch.inference_mode():
            if (lease := prepared.lease) is not None:
                assert prepared.packed_row is not None
                assert prepared.packed_row.cached_keys is not None
                lease.cache.publish(prepared.batch, lease.reservation, prepared.packed_row.cached_keys)
        return computed

    def num_cached_tokens(self, sequence: TokenSequence, *, token_scores: bool) -> int:
        """How many first tokens of the sequence a forward pass could read from the prefix cache now."""
        cache = self.cache
        if cache is None or token_scores or not cache.prefixes.may_use(sequence.key):
            return 0
        num_cached = cache.prefixes.num_cached_tokens(sequence.key)
        if not num_cached:
            return 0
        try:
            return min(num_cached, int(self.head.position.of(sequence)[0]))
        except NoPositionError:
            return 0

    def find_fault(self, sequence: TokenSequence) -> str | None:
        """Why the head cannot read the sequence, or its forward pass does not fit in memory; None if it can be scored."""
        if self.memory is not None and (fault := self.memory.find_fault(sequence.num_tokens)) is not None:
            return fault
        if (fault := self.head.find_fault(sequence)) is None:
            return None
        return f"{fault}; the {self.name} model reads its score there, so {self.head.position.remedy}"

    def shrink_cache(self) -> bool:
        """Empties the prefix cache and halves its size, to free memory. Returns False if there is nothing to free."""
        if self.cache is None or not self.cache.max_bytes:
            return False
        self.cache.halve()
        logger.warning("%s: prefix cache emptied and reduced to %.0f MB", self.name, self.cache.max_bytes / 1e6)
        return True

    @cached_property
    def flops_per_token(self) -> int:
        """FLOPs of the products with the trunk's matrices, without attention."""
        return sum(2 * each.numel() for each in matrices_of(self.trunk))

    def reference_score(self, sequence: TokenSequence) -> float:
        """The score by a plain forward pass of the unpadded sequence, with transformers' own classifier or trunk and head."""
        if self.checkpoint.own_forward_gives_score:
            return self.head.map(self._plain_forward(self.net, sequence).logits.cpu().tolist()[0])
        states = self.reference_states(sequence)[torch.from_numpy(self.head.position.of(sequence))]
        return self.head.reduce(self.head.score_states(states))

    def reference_states(self, sequence: TokenSequence) -> Tensor:
        """(tokens, hidden) by a plain forward pass of the unpadded sequence; (1, k) if the model's own applies the head."""
        if not self.head.layers:
            logits: Tensor = self._plain_forward(self.net, sequence).logits
            return logits
        states: Tensor = self._plain_forward(self.trunk, sequence).last_hidden_state[0]
        return states

    def _plain_forward(self, net: Any, sequence: TokenSequence) -> Any:
        self.use_attention(self.own_attention)
        input_ids = torch.from_numpy(sequence.token_ids)[None]
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        inputs |= token_types([sequence], input_ids)
        with torch.inference_mode(), self.threads.set_for_forward(is_small=self._is_small(sequence.num_tokens)):
            return net(**{name: values.to(self.device) for name, values in inputs.items()})

    @property
    def devices(self) -> list[str]:
        """The devices of its weights: one, or several for a split model."""
        device_map = getattr(self.net, "hf_device_map", {"": self.device})
        accelerator = self.device.type
        return list(dict.fromkeys(f"{accelerator}:{d}" if isinstance(d, int) else str(d) for d in device_map.values()))

    @property
    def weight_dtype(self) -> str:
        """The dtype in which the trunk's matrices are stored; products are computed in `dtype`."""
        return self.checkpoint.weight_dtype

    # -- the head ---------------------------------------------------------------------------------------------------

    def _collect(self, prepared: Prepared, scores: list[float], computed: Computed) -> list[Scored]:
        """Assigns the scores of the batch's positions, in order, to its sequences."""
        scored, taken = [], 0
        is_per_step, gives_probability = self.head.position.is_per_step, self.head.map.gives_probability
        for sequence, all_tokens, given, num_computed, num_cached in zip(
            prepared.batch.sequences,
            prepared.batch.token_scores,
            prepared.positions,
            computed.num_computed_tokens,
            computed.num_cached_tokens,
            strict=True,
        ):
            own = scores[taken : taken + len(given)]
            taken += len(given)
            positions = self.head.position.of(sequence) if all_tokens else given
            read = [own[i] for i in positions] if all_tokens else own
            steps = Steps(read, positions.tolist()) if is_per_step else None
            token_scores = own if all_tokens else None
            scored.append(
                Scored(
                    self.head.reduce(read),
                    token_scores,
                    num_computed,
                    num_cached,
                    steps,
                    gives_probability,
                )
            )
        return scored

    def all_positions(self, batch: Batch) -> list[IntArray]:
        """Per sequence, the positions whose states the head reads; all positions if token scores are wanted."""
        return [
            np.arange(sequence.num_tokens) if all_tokens else self.head.position.of(sequence)
            for sequence, all_tokens in zip(batch.sequences, batch.token_scores, strict=True)
        ]

    @cached_property
    def layers(self) -> list[nn.Module]:
        """The layers of the trunk in order: its longest list of modules."""
        lists = [module for module in self.trunk.modules() if isinstance(module, nn.ModuleList)]
        return list(max(lists, key=len, default=[]))

    def use_attention(self, implementation: str) -> None:
        """Sets the model's attention function unless it is set already."""
        if implementation != self._attention:
            self.net.set_attn_implementation(implementation)
            self._attention = implementation
