"""Logprobs of several responses, concatenated into one flat array, so each rule is one operation over all tokens."""

from dataclasses import dataclass

import numpy as np

from app.rewards.types import Bools, Floats, Indices


@dataclass(frozen=True, slots=True)
class Logprobs:
    """The logprobs of the items that have them, in order. Each item has at least one token, and at least one counted token."""

    policy: Floats  # (tokens,) log pi, in nats; any value at tokens that are not counted
    reference: Floats  # (tokens,) log pi_0
    counted: Bools  # (tokens,)
    starts: Indices  # (rows,) each item's first token
    items: Indices  # (rows,) index of each row's item in the batch

    @property
    def num_counted(self) -> Indices:
        """Counted tokens of each row; (rows,)."""
        return np.add.reduceat(self.counted, self.starts, dtype=np.intp)

    @property
    def last_counted(self) -> Indices:
        """The position in the flat array of each row's last counted token; (rows,)."""
        return np.maximum.reduceat(np.where(self.counted, np.arange(len(self.counted)), -1), self.starts)

    @np.errstate(over="ignore", invalid="ignore")
    def sums(self, values: Floats) -> Floats:
        """Each row's sum of values of shape (tokens,); (rows,)."""
        return np.add.reduceat(values, self.starts)


@np.errstate(over="ignore", invalid="ignore")
def token_rewards(whitened: Floats, kl: Floats, logprobs: Logprobs, beta: float) -> Floats:
    """-beta * kl_t at each counted token, plus `whitened` at the row's last counted token, 0 elsewhere; (tokens,).

    `whitened` is (rows,), `kl` (tokens,). A row's token rewards sum to its reward, whitened - beta * KL. The score at
    the last token and a penalty at every token is the usual RLHF reward (Ziegler et al. 2019, arXiv 1909.08593).
    """
    rewards = np.where(logprobs.counted, -beta * kl, 0.0)
    rewards[logprobs.last_counted] += whitened
    return rewards
