"""The self-test at start: compares each execution path with the reference forward, and chooses the first that agrees.

The test batch is a small forked tree of random tokens: shared prefixes that end inside blocks and at their bounds, a sequence
that is a prefix of another, two equal ones. The states of all tokens are compared. On the packed path, the tokens that each
token attends to are counted too (`mask_test`), because bfloat16 states would hide a small error of the mask.

Some features have an effect only from some length on: a sliding window, chunked attention. `features` finds them in the config.
The packed path must use the config's windows in every layer, and is tested on a sequence longer than each window if a forward
pass of that length is affordable. Rotary encodings that depend on the row's length (ROW_LENGTH_ROPE) are never packed.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from app.engine.batch import Batch
from app.engine.features import begins_at, expected_windows, rope_types
from app.engine.inputs import Input, PromptResponse, Text, TokenIds
from app.engine.invariance_test import first_row_multiple, set_row_multiple
from app.engine.mask_test import mask_fault
from app.engine.packed import BACKENDS
from app.engine.reward_model import ExecutionPlan, RewardModel
from app.engine.row_layout import RowLayout
from app.engine.sequence import TokenSequence
from app.errors import ModelRefusedError, one_line

logger = logging.getLogger(__name__)

PACKED = "packed attention equals the reference forward"
ROW_LENGTH_ROPE = frozenset({"dynamic", "longrope"})
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""The largest allowed difference of a state from the reference forward's, relative to its norm."""
MAX_COUNTED_TOKENS = 16_384
"""The longest sequence whose visible tokens are counted: for longer ones the counts take gigabytes."""
AFFORDABLE_FLOPS = {"cpu": 3e11, "cuda": 1e15}
"""The largest forward pass that tests a feature of long texts: some seconds."""


def select_plan(model: RewardModel) -> Tensor:
    """Sets `model.plan` to the fastest path whose states equal those of the reference forward.

    Returns the states of `batch_of_states` on that path. Raises ModelRefusedError if no path gives the reference's states.
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
        model.row_multiple = first_row_multiple(model)
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
    """The batch's states on the model's plan, and what is wrong with them; None if they are right."""
    try:
        states = model.compute(batch).states
        off = worst_error(states, expected)
    except Exception as error:  # noqa: BLE001 - a model may raise anything on a path that it does not support
        return None, one_line(error)
    if not off <= TOLERANCE[model.dtype]:
        return states, f"off by {off:.2g}"
    return states, packing_fault(model, batch)


def packing_fault(model: RewardModel, batch: Batch) -> str | None:
    """What is wrong with attention on the packed path; None if every token attends to the right ones."""
    if model.plan.path == "packed":
        counted = [i for i, sequence in enumerate(batch.sequences) if sequence.num_tokens <= MAX_COUNTED_TOKENS]
        trees = [batch.part(chosen).tree for chosen in (counted, counted[:1])]  # two lengths for the same compiled code
        faults = (fault_of_mask(model, RowLayout(tree)) for tree in trees)
        return window_fault(model) or next((fault for fault in faults if fault is not None), None)
    return None


def fault_of_mask(model: RewardModel, layout: RowLayout) -> str | None:
    return mask_fault(model.attended_layers, layout, BACKENDS[model.plan.backend], model.row_multiple)


def window_fault(model: RewardModel) -> str | None:
    """How the packed path's windows differ from the config's; None if no text is long enough for a difference."""
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
    """Whether flex_attention is tried: only on CUDA is it compiled to a kernel that skips masked blocks."""
    return device.type == "cuda"


FORK_TOKENS = 640
"""The longest path on CUDA: long enough that the mask has full, partial and empty blocks of 128 x 128."""


def forked_tree(model: RewardModel) -> list[TokenSequence]:
    """Sequences of random ordinary tokens, none longer than the model's maximum length."""
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
    """The forked tree as a batch that wants the states of all tokens, or only scores if the model's own forward applies the
    head. It has only sequences that the head can read, unless it can read none.
    """
    has_states = bool(model.head.layers)
    sequences = scorable(model, forked_tree(model))
    if has_states and not sequences:
        sequences = forked_tree(model)
    return Batch.of(sequences, [has_states] * len(sequences))


def scorable(model: RewardModel, sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    """The sequences that the head can read. The head's token is appended to those that lack it."""
    step, longest = list(model.head.position.sample_ids), model.tokenization.max_length
    extended = [
        TokenSequence.of([*sequence.token_ids[: longest - len(step)].tolist(), *step])
        if model.find_fault(sequence)
        else sequence
        for sequence in sequences
    ]
    return [sequence for sequence in extended if not model.find_fault(sequence)]


def sample_input(model: RewardModel) -> Input:
    """A short input that the model can score: a text, a prompt and a response, or the token ids of one and a step token."""
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
    """max over rows of |s - s'| / max(1e-6, |s'|), with Euclidean norms; infinite if a state is not finite."""
    wanted = expected.double().cpu()
    errors = (states.double().cpu() - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp_min(1e-6)
    return float(errors.nan_to_num(nan=math.inf).max())
