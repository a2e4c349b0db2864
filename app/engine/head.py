"""A reward model's head: the positions whose hidden states it reads, and how those become the score. Knows no files.

    states --layers--> outputs --map--> one score per state --reduction--> the score

A plain classifier is the simplest case: one linear layer, read at one position. A guard's head is a few rows of the output
embedding with a log-odds map; a process reward model reads one state per step. Everything here runs on the CPU in float64,
and a row's result does not depend on the other rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from app.engine.head_names import ActivationName, PositionKind, Reduction
from app.engine.prefix_tree import IntArray
from app.engine.sequence import TokenSequence

ROWS_PER_PRODUCT = 64
"""A hidden layer's matrix product always has this many rows, so that its bits do not depend on the number of states."""

TINY = 1e-12

ACTIVATIONS: dict[ActivationName, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


class NoPositionError(Exception):
    """The sequence has no token that the head reads; the message names the token."""


@dataclass(frozen=True, slots=True)
class Position:
    """Which tokens' states the head reads.

    last          the last token
    last_non_pad  the rightmost token that is not in `token_ids` (transformers' rule; pad tokens further left count as text)
    before_first  the token before the first one in `token_ids`; the last token if there is none or it comes first
    at            every token in `token_ids`, such as the ends of steps
    before        the token before every token in `token_ids`: the state that predicts it
    index         the tokens at `indices`, negative ones counted from the end
    all           every token
    last_of       the last token in `token_ids`

    Two options restrict `at`, `before` and `last_of`: to tokens that directly follow the ids in `after`, such as the
    template's generation prompt, and with `in_response` to tokens of the response.
    """

    kind: PositionKind = "last"
    token_ids: tuple[int, ...] = ()
    indices: tuple[int, ...] = ()
    name: str = ""
    """What errors call the tokens in `token_ids`."""
    after: tuple[int, ...] = ()
    in_response: bool = False
    """A sequence whose response has no known start, such as one of token ids, counts as a response."""

    @property
    def is_per_step(self) -> bool:
        """Whether there is one position, and so one score, per step: the head is a process reward model's."""
        return self.kind in {"at", "before"}

    @property
    def sample_ids(self) -> tuple[int, ...]:
        """Token ids that give any text a position when they are appended; empty if every text has one."""
        return (*self.after, *self.token_ids[:1])

    @property
    def remedy(self) -> str:
        """What to do about a sequence without a position."""
        if self.kind == "last_of":
            return 'send a text that has it, or declare {"text": {"add_eos": true}} in reward.json'
        return "send a text that has it"

    def of(self, sequence: TokenSequence) -> IntArray:
        """The positions, ascending, at least one. Raises NoPositionError if the sequence has none."""
        last = sequence.num_tokens - 1
        match self.kind:
            case "last":
                return np.array([last])
            case "last_non_pad" if (
                sequence.last_token_id not in self.token_ids
            ):  # the usual case, without decoding the key
                return np.array([last])
            case "all":
                return np.arange(last + 1)
            case "index":
                return self._from_indices(last + 1)
        return self._from_tokens(self._matches(sequence))

    def _matches(self, sequence: TokenSequence) -> NDArray[np.bool_]:
        """(tokens,): which tokens are in `token_ids` and meet the conditions `after` and `in_response`."""
        ids = sequence.token_ids
        matches = np.isin(ids, self.token_ids)
        for distance, token_id in enumerate(reversed(self.after), start=1):
            matches[:distance] = False
            matches[distance:] &= ids[:-distance] == token_id
        if self.in_response:
            matches[: sequence.num_prompt_tokens] = False
        return matches

    def _from_tokens(self, matches: NDArray[np.bool_]) -> IntArray:
        """The positions of the kinds that depend on tokens in `token_ids`."""
        found = np.flatnonzero(matches)
        if self.kind == "last_non_pad":
            text = np.flatnonzero(~matches)
            return text[-1:] if len(text) else np.array([0])
        if self.kind == "before_first":
            return np.array([found[0] - 1 if len(found) and found[0] > 0 else len(matches) - 1])
        chosen = found[found > 0] - 1 if self.kind == "before" else found
        if not len(chosen):
            raise NoPositionError(f"has no {self.name or f'token {list(self.token_ids)}'}")
        if self.kind == "last_of":
            return chosen[-1:]
        return chosen

    def _from_indices(self, num_tokens: int) -> IntArray:
        indices = np.array(self.indices)
        chosen = np.unique(np.where(indices < 0, indices + num_tokens, indices))
        if chosen[0] < 0 or chosen[-1] >= num_tokens:
            raise NoPositionError(f"has {num_tokens} tokens, so no positions {list(self.indices)}")  # counted from 0
        return chosen


@dataclass(frozen=True, slots=True)
class ScoreMap:
    """Maps a state's k outputs x to its score s, in this order:

    1. x / divisor                        Granite's `logits_scaling`
    2. softcap * tanh(x / softcap)        Gemma's `final_logit_softcapping`
    3. one number: x[output]; or log_odds: logsumexp(x[a]) - logsumexp(x[b]), whose sigmoid is the probability of the
       set a against the set b; or softmax: softmax(x)[softmax]; or weights: sum_i weights[i] x[i]
    4. 1 / (1 + exp(-x)) if `sigmoid`
    5. sign * (x - shift) / scale
    """

    divisor: float = 1.0
    softcap: float | None = None
    output: int = 0
    log_odds: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    softmax: int | None = None
    weights: tuple[float, ...] | None = None
    sigmoid: bool = False
    shift: float = 0.0
    scale: float = 1.0
    sign: int = 1

    def __call__(self, outputs: Sequence[float]) -> float:
        x = [value / self.divisor for value in outputs]
        if self.softcap is not None:
            x = [self.softcap * math.tanh(value / self.softcap) for value in x]
        score = self._to_scalar(x)
        if self.sigmoid:
            score = sigmoid(score)
        return self.sign * (score - self.shift) / self.scale

    def _to_scalar(self, x: list[float]) -> float:
        if self.log_odds is not None:
            chosen, others = self.log_odds
            return logsumexp([x[i] for i in chosen]) - logsumexp([x[i] for i in others])
        if self.softmax is not None:
            return math.exp(x[self.softmax] - logsumexp(x))
        if self.weights is not None:
            return math.fsum(weight * value for weight, value in zip(self.weights, x, strict=True))
        return x[self.output]

    @property
    def is_identity(self) -> bool:
        return self == ScoreMap()

    @property
    def is_probability(self) -> bool:
        """Whether the score is a probability before shift, scale and sign."""
        return self.sigmoid or self.softmax is not None

    @property
    def gives_probability(self) -> bool:
        """Whether the final score is a probability, so that no sigmoid must be applied."""
        return self.is_probability and (self.shift, self.scale, self.sign) == (0, 1, 1)


def logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    if not math.isfinite(top):
        return top if top > 0 or math.isnan(top) else -math.inf
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def logit_of_mean(scores: Sequence[float]) -> float:
    """logit(mean_i sigmoid(s_i)) = log sum_i p_i - log sum_i (1 - p_i): finite even if the probabilities round to 0 or 1."""
    return logsumexp([log_sigmoid(s) for s in scores]) - logsumexp([log_sigmoid(-s) for s in scores])


def logit_of_product(scores: Sequence[float]) -> float:
    """logit(prod_i sigmoid(s_i)) = L - log(1 - e^L) with L = sum_i log sigmoid(s_i)."""
    log_product = math.fsum(log_sigmoid(s) for s in scores)
    if log_product > -TINY:  # then 1 - prod p_i is sum (1 - p_i), to first order
        return log_product - logsumexp([log_sigmoid(-s) for s in scores])
    return log_product - math.log(-math.expm1(log_product))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else (e := math.exp(x)) / (1 + e)


@dataclass(frozen=True, slots=True)
class Layer:
    """y = W x + b"""

    weight: Tensor  # (out, in)
    bias: Tensor | None = None  # (out,)

    def double(self) -> "Layer":
        bias = None if self.bias is None else self.bias.detach().cpu().double()
        return Layer(self.weight.detach().cpu().double(), bias)


@dataclass(frozen=True, slots=True)
class Head:
    """`layers` with the activation between them. Without layers, the model's own forward returns the outputs."""

    layers: tuple[Layer, ...] = ()
    activation: ActivationName = "relu"
    position: Position = field(default_factory=Position)
    map: ScoreMap = field(default_factory=ScoreMap)
    reduction: Reduction = "last"

    def find_fault(self, sequence: TokenSequence) -> str | None:
        """Why the head cannot read the sequence, such as "has no token 5"; None if it can."""
        if self.position.kind not in {"at", "before", "index", "last_of"}:  # every sequence has the others
            return None
        try:
            self.position.of(sequence)
        except NoPositionError as error:
            return str(error)
        return None

    def score_states(self, states: Tensor) -> list[float]:
        """The score of each of the (n, hidden) states, or (n, k) outputs if the head has no layers."""
        x = states.detach().cpu().double()
        for layer in self.layers[:-1]:
            x = ACTIVATIONS[self.activation](product_by_blocks(x, layer))
        if self.layers:
            x = product_by_rows(x, self.layers[-1])  # (n, k)
        if self.map.is_identity:
            return x[:, 0].tolist()
        return [self.map(outputs) for outputs in x.tolist()]

    def reduce(self, scores: Sequence[float], reduction: Reduction | None = None) -> float:
        """Reduces the scores at a sequence's positions to one, by the given reduction or else the head's own.

        For the steps of a process reward model, mean and product are taken of the probabilities p = sigmoid(s) and returned
        as a score: logit(mean p), logit(product p). If the scores are probabilities already, or the positions are no steps,
        they are taken of the scores.
        """
        reduction = reduction or self.reduction
        if len(scores) == 1 or reduction == "last":
            return scores[-1]
        if reduction in {"min", "max"}:
            return min(scores) if reduction == "min" else max(scores)
        if not all(map(math.isfinite, scores)):
            return math.nan
        if (self.position.is_per_step or self.map.log_odds is not None) and not self.map.is_probability:
            return logit_of_mean(scores) if reduction == "mean" else logit_of_product(scores)
        return math.fsum(scores) / len(scores) if reduction == "mean" else math.prod(scores)


def product_by_rows(x: Tensor, layer: Layer) -> Tensor:
    """(n, k): one multiply and sum per output; the bits of a matrix product with few outputs would depend on the other rows."""
    columns = [(x * row).sum(-1) for row in layer.weight]
    y = torch.stack(columns, dim=-1)
    return y if layer.bias is None else y + layer.bias


def product_by_blocks(x: Tensor, layer: Layer) -> Tensor:
    """(n, out): matrix products of a fixed number of rows."""
    blocks = []
    for block in torch.split(x, ROWS_PER_PRODUCT):
        padded = functional.pad(block, (0, 0, 0, ROWS_PER_PRODUCT - len(block)))
        blocks.append((padded @ layer.weight.T)[: len(block)])
    y = torch.cat(blocks)
    return y if layer.bias is None else y + layer.bias
