"""The sequences of one forward pass, and the tree of their prefixes. Knows no torch and no model."""

from collections.abc import Sequence
from functools import cached_property

from app.engine.prefix_tree import PrefixTree, TreeSize
from app.engine.sequence import TokenSequence


class Batch:
    """Sequences that are scored together, oldest first. Every model of a device scores the same batch.

    With `token_scores[i]`, the score after every token of sequence i is computed too. `num_new_tokens` may be given if known.
    """

    def __init__(
        self,
        sequences: Sequence[TokenSequence],
        token_scores: Sequence[bool],
        num_new_tokens: Sequence[int] | None = None,
    ) -> None:
        self.sequences = sequences
        self.token_scores = token_scores
        self._num_new_tokens = num_new_tokens

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence], token_scores: Sequence[bool] | None = None) -> "Batch":
        """A batch of at least one sequence. Without `token_scores`, no token scores are computed."""
        return cls(sequences, token_scores if token_scores is not None else [False] * len(sequences))

    def __len__(self) -> int:
        return len(self.sequences)

    @cached_property
    def tree(self) -> PrefixTree:
        """The prefix tree, built once, at first use."""
        return PrefixTree.of([sequence.key for sequence in self.sequences])

    @cached_property
    def num_tokens(self) -> int:
        """Sum of the sequences' lengths, so a shared token counts once per sequence."""
        return sum(sequence.num_tokens for sequence in self.sequences)

    @property
    def num_new_tokens(self) -> Sequence[int]:
        """Per sequence, the tokens after the longest prefix shared with an older one. They sum to the tree's tokens."""
        if self._num_new_tokens is None:
            size = TreeSize()
            self._num_new_tokens = [size.add(sequence.key) for sequence in self.sequences]
        return self._num_new_tokens

    def part(self, indices: Sequence[int]) -> "Batch":
        """The batch of the sequences at `indices`, in that order. Returns itself if these are all, in order."""
        if [*indices] == [*range(len(self))]:
            return self
        return Batch([self.sequences[i] for i in indices], [self.token_scores[i] for i in indices])
