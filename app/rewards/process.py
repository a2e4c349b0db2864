"""Process rewards: a reward at the end of each step of a response, next to the reward of the whole."""

from dataclasses import dataclass

import numpy as np

from app.rewards.types import Floats, Indices


@dataclass(frozen=True, slots=True)
class StepRewards:
    """The steps of several responses, end to end, in the units of a reward.

    Step k of a response ends at its token t_k and is worth r_k. With the weight w, its share of token t's reward is
    w * sum_k r_k [t = t_k], and of the response's reward w * sum_k r_k.
    """

    values: Floats  # (steps,) r_k
    tokens: Indices  # (steps,) t_k, as a position in the flat array of all tokens
    rows: Indices  # (steps,) which row of the logprobs each belongs to

    def by_row(self, num_rows: int, weight: float) -> Floats:
        """w * sum_k r_k of each row; (rows,)."""
        return summed(weight * self.values, self.rows, num_rows)

    def by_token(self, num_tokens: int, weight: float) -> Floats:
        """w * sum_k r_k [t = t_k]; (tokens,)."""
        return summed(weight * self.values, self.tokens, num_tokens)


def summed(values: Floats, places: Indices, size: int) -> Floats:
    """The sum of the values of each place; (size,)."""
    sums = np.zeros(size)
    np.add.at(sums, places, values)
    return sums
