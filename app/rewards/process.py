"""Process rewards: a reward at the end of each step of a response, in addition to the reward of the whole response."""

from dataclasses import dataclass

import numpy as np

from app.rewards.types import Floats, Indices


@dataclass(frozen=True, slots=True)
class StepRewards:
    """The steps of several responses, concatenated.

    Step k of a response ends at its token t_k and has the reward r_k. With the weight w, the steps add w * sum_k r_k [t = t_k]
    to the reward of token t, and w * sum_k r_k to the reward of the response.
    """

    values: Floats  # (steps,) r_k
    tokens: Indices  # (steps,) t_k, as an index into the flat array of all tokens
    rows: Indices  # (steps,) the logprobs row that each step belongs to

    def by_row(self, num_rows: int, weight: float) -> Floats:
        """w * sum_k r_k of each row; (rows,)."""
        return summed(weight * self.values, self.rows, num_rows)

    def by_token(self, num_tokens: int, weight: float) -> Floats:
        """w * sum_k r_k [t = t_k]; (tokens,)."""
        return summed(weight * self.values, self.tokens, num_tokens)


def summed(values: Floats, indices: Indices, size: int) -> Floats:
    """The sum of the values at each index; (size,)."""
    sums = np.zeros(size)
    np.add.at(sums, indices, values)
    return sums
