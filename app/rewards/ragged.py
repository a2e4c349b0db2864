"""Logprobs of several responses, end to end in one flat array, so that each rule is one operation over all tokens."""

from dataclasses import dataclass

import numpy as np

from app.rewards.types import Bools, Floats, Indices


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of the items that have logprobs, in order. Every one of them has at least one token, and counts at least one."""

    policy: Floats  # (tokens,) log pi, in nats; anything where not counted
    reference: Floats  # (tokens,) log pi_0
    counted: Bools  # (tokens,)
    starts: Indices  # (rows,) each item's first token
    items: Indices  # (rows,) which item of the batch each row is

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
    """-beta * kl_t at each counted token, `whitened` on top of the row's last one, 0 elsewhere; (tokens,).

    `whitened` is (rows,), `kl` (tokens,). A row's token rewards sum to its reward, whitened - beta * KL. The score at
    the last token and the penalty at each is the usual form of RLHF's reward (Ziegler et al. 2019, arXiv 1909.08593).
    """
    rewards = np.where(logprobs.counted, -beta * kl, 0.0)
    rewards[logprobs.last_counted] += whitened
    return rewards
