"""The test that a model passes at start before it may score: each path is compared with the reference forward.

The first path that agrees is taken. The test is a small forked tree of random tokens: shared prefixes that end inside and
on block bounds, a sequence that is a prefix of another, two that are equal. Compared are the states of all tokens, and on
the packed path the tokens that each one attends to are counted besides (`mask_test`): in bfloat16 states alone would hide a
small fault of the mask.

Some features begin at a length: a sliding window, a chunk of attention. `features` finds them in the config. A packed path
must attend with the windows that the config asks for, layer by layer, and it is tested on a sequence longer than each of
them where a forward of that length is affordable. What depends on the longest position of the whole row is on a list.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from app.engine.attention.backend import LayerShape
from app.engine.attention.cpu import BLOCK, STEP, BlockAttention, Queries
from app.engine.attention.pool import KeyValueCache
from app.engine.batch import Batch
from app.engine.devices import is_out_of_memory
from app.engine.features import begins_at, expected_windows, rope_types
from app.engine.first_layers import first_layers, states_for_bits
from app.engine.inputs import Input, PromptResponse, Text, TokenIds
from app.engine.mask_test import mask_fault
from app.engine.prefix_cache import PAGE_TOKENS, least_prefix_tokens
from app.engine.reward_model import BACKENDS, ExecutionPlan, RewardModel
from app.engine.row_layout import RowLayout
from app.engine.sequence import TokenSequence
from app.errors import ModelRefusedError, one_line

logger = logging.getLogger(__name__)

PACKED = "packed attention equals the reference forward"
ROW_LENGTH_ROPE = frozenset({"dynamic", "longrope"})
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Largest difference of a state from the reference forward's, relative to its norm."""
MAX_COUNTED_TOKENS = 16_384
"""Of a sequence whose visible tokens are counted: the counts of a longer one take gigabytes."""
AFFORDABLE_FLOPS = {"cpu": 3e11, "cuda": 1e15}
"""Of one forward beyond the length at which a feature begins: some seconds."""


def select_plan(model: RewardModel) -> Tensor:
    """Sets `model.plan` to the fastest path that gives the reference forward's states.

    Returns the states of `batch_of_states` as the model computes them on that path. Raises ModelRefusedError if not even
    one sequence at a time gives the reference forward's.
    """
    batch = batch_of_states(model)
    sequences = batch.sequences
    try:
        references = {sequence.key: model.reference_states(sequence) for sequence in distinct(sequences)}
        expected = torch.cat([references[sequence.key] for sequence in sequences])
    except Exception as error:
        raise ModelRefusedError(
            f"{model.checkpoint.source} cannot score a test sequence ({one_line(error)})"
        ) from error
    if not torch.isfinite(expected).all():
        raise ModelRefusedError(
            f"{model.checkpoint.source} gives non-finite scores in {model.dtype}; try dtype float32"
        )
    failures = []
    for plan in candidates(model):
        model.plan = plan
        model.row_multiple = ROW_MULTIPLES[0] if may_be_batch_invariant(model) else ROW_MULTIPLES[-1]
        states, fault = states_and_fault(model, batch, expected)
        if states is None or fault is not None:
            failures.append(f"{plan.name}: {fault}")
            logger.warning("%s: %s cannot be used: %s", model.name, plan.name, fault)
            continue
        plan.reason = "; ".join([plan.reason, *failures])
        tested = model.row_multiple
        set_row_multiple(model, [sequence for sequence in sequences if sequence.num_tokens <= FORK_TOKENS])
        return states if model.row_multiple == tested else model.compute(batch).states
    raise ModelRefusedError(f"{model.checkpoint.source} scores differently on every path ({'; '.join(failures)})")


def distinct(sequences: Sequence[TokenSequence]) -> Iterable[TokenSequence]:
    return {sequence.key: sequence for sequence in sequences}.values()


def states_and_fault(model: RewardModel, batch: Batch, expected: Tensor) -> tuple[Tensor | None, str | None]:
    """The batch's states on the model's plan, and why the plan is not right for the model; no fault where it is."""
    try:
        states = model.compute(batch).states
        off = worst_error(states, expected)
    except Exception as error:  # noqa: BLE001 - whatever a foreign model raises, the path is not for it
        return None, one_line(error)
    if not off <= TOLERANCE[model.dtype]:
        return states, f"off by {off:.2g}"
    return states, packing_fault(model, batch)


def packing_fault(model: RewardModel, batch: Batch) -> str | None:
    """What attention sees on the packed path that it should not, or the reverse; None where all is right."""
    if model.plan.path == "packed":
        counted = [i for i, sequence in enumerate(batch.sequences) if sequence.num_tokens <= MAX_COUNTED_TOKENS]
        trees = [batch.part(chosen).tree for chosen in (counted, counted[:1])]  # two lengths for the same compiled code
        faults = (fault_of_mask(model, RowLayout(tree)) for tree in trees)
        return window_fault(model) or next((fault for fault in faults if fault is not None), None)
    return None


def fault_of_mask(model: RewardModel, layout: RowLayout) -> str | None:
    return mask_fault(model.attended_layers, layout, BACKENDS[model.plan.backend], model.row_multiple)


def window_fault(model: RewardModel) -> str | None:
    """Where the packed path would not limit attention as the config does; None for texts that no limit reaches."""
    config = model.net.config.get_text_config()
    longest = model.tokenization.max_length
    given = [reached(layer.options.window, longest) for layer in model.attended_layers]
    wanted = [reached(window, longest) for window in expected_windows(config, len(given))]
    if wanted == given:
        return None
    return f"it attends with windows of {describe(given)} tokens where its config asks for {describe(wanted)}"


def reached(window: int | None, longest: int) -> int | None:
    """The window, if a text can be longer than it."""
    return window if window is not None and window < longest else None


def describe(windows: list[int | None]) -> str:
    return ", ".join(sorted({"any number of" if window is None else str(window) for window in windows}))


def candidates(model: RewardModel) -> Iterator[ExecutionPlan]:
    """The plans to try, fastest first."""
    if model.head.position.kind == "last_of":
        yield ExecutionPlan(
            "single", "its class takes no batch of texts with different numbers of end-of-sequence tokens"
        )
        return
    if not model.is_causal:
        yield ExecutionPlan("padded", "an encoder: every token attends to all others")
    elif ROW_LENGTH_ROPE & set(rope_types(model.net.config.get_text_config())):
        yield ExecutionPlan("single", "its rotary encoding depends on the length of the row")
        return
    else:
        if is_gpu(model.device):
            yield ExecutionPlan("packed", PACKED, backend="flex")
        yield ExecutionPlan("packed", PACKED, skips_last_layer=True)
        yield ExecutionPlan("packed", PACKED)
        yield ExecutionPlan("padded", "padded batches equal the reference forward")
    yield ExecutionPlan("single", "one sequence per forward")


def is_gpu(device: torch.device) -> bool:
    """Whether flex_attention is tried: where it is compiled into a kernel that skips what is masked."""
    return device.type == "cuda"


FORK_TOKENS = 640
"""Of a path on CUDA: long enough that the tree's mask has blocks of 128 x 128 that are full, partial and empty."""


def forked_tree(model: RewardModel) -> list[TokenSequence]:
    """Sequences of random ordinary tokens, of the model's longest at most."""
    rng = np.random.default_rng(0)
    special = {*model.tokenization.tokenizer.all_special_ids, model.pad_token_id}
    ordinary = [i for i in range(min(model.checkpoint.vocab_size, 4096)) if i not in special] or [0]

    def some(n: int) -> list[int]:
        return [int(i) for i in rng.choice(ordinary, n)]

    trunk = some(134)
    lists = [trunk, trunk[:70] + some(62), trunk[:64] + some(20), trunk[:40], trunk[:40], some(5), some(1), some(67)]
    if is_gpu(model.device):
        lists.append(trunk + some(FORK_TOKENS - len(trunk)))
    longest = model.tokenization.max_length
    affordable = AFFORDABLE_FLOPS["cpu" if model.device.type == "cpu" else "cuda"]
    for length in begins_at(model.net.config.get_text_config()):
        num_tokens = min(length + 70, longest)
        if length < longest and num_tokens * model.flops_per_token <= affordable:
            lists += [trunk[:40] + some(num_tokens - 40)] if num_tokens > len(trunk) else []
    return [TokenSequence.of(token_ids[:longest]) for token_ids in lists]


def batch_of_states(model: RewardModel) -> Batch:
    """The forked tree with the states of all tokens wanted; where the net gives none, but scores, those of its sequences.

    The head can read all of its sequences, unless it can read none.
    """
    has_states = bool(model.head.layers)
    sequences = scorable(model, forked_tree(model))
    if has_states and not sequences:
        sequences = forked_tree(model)
    return Batch.of(sequences, [has_states] * len(sequences))


def scorable(model: RewardModel, sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    """The sequences that the head can read; one that lacks the token that it reads ends in it."""
    step, longest = list(model.head.position.sample_ids), model.tokenization.max_length
    extended = [
        TokenSequence.of([*sequence.token_ids[: longest - len(step)].tolist(), *step])
        if model.find_fault(sequence)
        else sequence
        for sequence in sequences
    ]
    return [sequence for sequence in extended if not model.find_fault(sequence)]


def sample_input(model: RewardModel) -> Input:
    """A short input that the model can score: a text, a response to a prompt, or the tokens of one and a step token."""
    text, response = Input(Text("ready")), Input(PromptResponse("ready", "ready"))
    sequences: list[TokenSequence] = []
    for form in (text, response):
        (sequence,) = model.tokenization.encode([form], "right")
        if isinstance(sequence, TokenSequence):
            if model.find_fault(sequence) is None:
                return form
            sequences.append(sequence)
    if not sequences:
        return text
    return Input(TokenIds([*sequences[0].token_ids.tolist(), *model.head.position.sample_ids]))


def worst_error(states: Tensor, expected: Tensor) -> float:
    """max over rows of |s - s'| / max(1e-6, |s'|), in norms; infinite where a state is not finite."""
    wanted = expected.double().cpu()
    errors = (states.double().cpu() - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp_min(1e-6)
    return float(errors.nan_to_num(nan=math.inf).max())


ROW_MULTIPLES = (16, 64)
"""That rows are padded to: 16 (a vector's length) where matrix products sum every row alike, else 64, more than the few rows
for which libraries have other kernels."""


def set_row_multiple(model: RewardModel, sequences: list[TokenSequence]) -> None:
    """Pads rows to the smallest multiple that makes scores batch-invariant, else to the largest."""
    for model.row_multiple in ROW_MULTIPLES:
        model.plan.batch_invariant = is_batch_invariant(model, sequences)
        if model.plan.batch_invariant:
            return


def may_be_batch_invariant(model: RewardModel) -> bool:
    """Batch invariance is only promised for float32 on the CPU's packed path."""
    return model.plan.path == "packed" and model.device.type == "cpu" and model.dtype == torch.float32


def is_batch_invariant(model: RewardModel, sequences: list[TokenSequence]) -> bool:
    """Whether states are the same to the bit alone on one thread, and in the whole batch and in a part of it on all threads."""
    if not may_be_batch_invariant(model):
        return False
    num_layers = first_layers(model)
    with model.threads.fixed_at(torch.get_num_threads()):
        together = states_of(model, sequences, num_layers)
        reversed_part = states_of(model, sequences[4::-1], num_layers)[::-1]
    with model.threads.fixed_at(1):
        alone = [state for sequence in sequences for state in states_of(model, [sequence], num_layers)]
    is_same = all(map(torch.equal, together, alone)) and all(map(torch.equal, reversed_part, alone[:5]))
    return is_same and all(is_same_in_parts(model, layer) for layer in dict.fromkeys(model.attended_layers))


def is_same_in_parts(model: RewardModel, layer: LayerShape) -> bool:
    """Whether a layer's queries have the same bits whichever part of their block is computed, on one thread and on all."""
    generator, path = torch.Generator().manual_seed(0), np.arange(2 * BLOCK)
    key_heads = layer.num_key_value_heads
    query, key, value = (
        torch.randn(1, heads, len(path), dim, generator=generator, dtype=layer.dtype)
        for heads, dim in (
            (layer.num_heads, layer.head_dim),
            (key_heads, layer.head_dim),
            (key_heads, layer.value_dim),
        )
    )

    def attended(first: int, stop: int, num_threads: int) -> Tensor:
        wanted = Queries(path, path[first:stop], path[first:stop])
        threads = model.threads
        with torch.inference_mode(), threads.fixed_at(num_threads), threads.set_for_forward(is_small=False):
            return BlockAttention(lambda: [wanted]).attend(query, key, value, layer.options)[0, first:stop]

    whole = attended(BLOCK, len(path), 1)
    return all(
        torch.equal(attended(first, stop, num_threads), whole[first - BLOCK : stop - BLOCK])
        for first in range(BLOCK, len(path), STEP)
        for stop in range(first + STEP, len(path) + 1, STEP)
        for num_threads in (1, torch.get_num_threads())
    )


def add_cache(
    model: RewardModel,
    num_bytes: int,
    *,
    test_states: Tensor | None = None,
    min_prefix_tokens: int | None = None,
    is_required: bool = False,
) -> None:
    """Gives a packed model a prefix cache of at most `num_bytes`, unless cached prefixes would change its states.

    The least length of its prefixes follows from the model's FLOPs per token unless it is given. Its memory is allocated
    now. `test_states` are those that `select_plan` returned, computed anew where they are not given. `model.cache_reason` says
    why a model has none. Raises ModelRefusedError where the memory cannot be had and the cache `is_required`.
    """
    if model.plan.path != "packed":
        model.cache_reason = f"the {model.plan.path} path computes whole sequences"
        return
    sequences = scorable(model, forked_tree(model))
    if not sequences:
        model.cache_reason = "no test sequence has the positions that its head reads"
        return
    batch = Batch.of(sequences)
    expected = model.compute(batch).states if test_states is None else read_states(model, sequences, test_states)
    cache = KeyValueCache(num_bytes, sum(layer.bytes_per_token for layer in model.attended_layers))
    if not cache.max_bytes:
        model.cache_reason = f"{num_bytes} bytes hold no {PAGE_TOKENS} tokens"
        return
    model.cache = cache
    try:
        model.cache_reason = fault_of_cache(model, cache, batch, expected)
    except Exception as error:
        model.cache = None
        if not is_out_of_memory(error):
            raise
        model.cache_reason = (
            f"{num_bytes / 1e6:.0f} MB for the prefix cache of the {model.name} model cannot be allocated on "
            f"{model.device}; set REWARD_PREFIX_CACHE_MB lower, or to 0 for none"
        )
        if is_required:
            raise ModelRefusedError(model.cache_reason) from error
        logger.warning("%s", model.cache_reason)
    if model.cache_reason is not None:
        model.cache = None
    # Not before the test, whose sequences are short.
    cache.prefixes.min_prefix_tokens = min_prefix_tokens or least_prefix_tokens(model.flops_per_token)


def read_states(model: RewardModel, sequences: Sequence[TokenSequence], states: Tensor) -> Tensor:
    """Those that the head reads among the states of all tokens of the sequences."""
    starts = np.cumsum([0, *(sequence.num_tokens for sequence in sequences)])
    rows = [start + model.head.position.of(each) for start, each in zip(starts, sequences, strict=False)]
    return states[torch.from_numpy(np.concatenate(rows)).to(states.device)]


def fault_of_cache(model: RewardModel, cache: KeyValueCache, batch: Batch, expected: Tensor) -> str | None:
    """Why the model cannot use the cache, which is empty before and after; None where it can."""
    for part in (batch.part([0, min(5, len(batch) - 1)]), batch):  # the second batch finds what the first one left
        computed = model.compute(part)
    cache.prefixes.clear()
    off = worst_error(computed.states, expected)
    if not any(computed.num_cached_tokens) or not off <= (0 if model.plan.batch_invariant else TOLERANCE[model.dtype]):
        return f"with cached prefixes states are off by {off:.2g}"
    is_cached = np.zeros(batch.tree.num_tokens, np.bool_)
    is_cached[batch.tree.paths[0][:-1]] = True  # the trunk, on which most other paths lie
    layout = RowLayout.of(batch.tree, is_cached, [path[-1:] for path in batch.tree.paths])
    fault = fault_of_mask(model, layout)
    return None if fault is None else f"with cached prefixes {fault}"


def states_of(model: RewardModel, sequences: list[TokenSequence], num_layers: int) -> list[Tensor]:
    """(tokens, hidden) of each sequence, as `states_for_bits`."""
    states = states_for_bits(model, Batch.of(sequences, [True] * len(sequences)), num_layers)
    return list(torch.split(states, [sequence.num_tokens for sequence in sequences]))
