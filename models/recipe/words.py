"""The baseline that a model must beat: a linear score of a response's words, fitted to the same pairs."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.recipe.groups import Group
from models.recipe.preferences import Pair

WORD = re.compile(r"\w+|[^\w\s]")
MIN_COUNT = 2
L2, STEPS = 1e-4, 60


class BagOfWords:
    """Words and pairs of adjacent words, weighted by TF-IDF with unit norm; blind to the prompt."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = Counter(term for text in texts for term in set(terms_of(text)))
        kept = sorted(term for term, count in counts.items() if count >= MIN_COUNT)
        self.index = {term: position for position, term in enumerate(kept)}
        self.idf = torch.tensor([len(texts) / counts[term] for term in kept]).log() + 1

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(texts, terms), sparse: dense ones of all pairs would take tens of gigabytes."""
        rows, columns, values = [], [], []
        for row, text in enumerate(texts):
            counts = {term: count for term, count in Counter(terms_of(text)).items() if term in self.index}
            places = [self.index[term] for term in counts]
            weighted = torch.tensor(list(counts.values()), dtype=torch.float32) * self.idf[places]
            rows += [row] * len(places)
            columns += places
            values.append(functional.normalize(weighted, dim=0))
        return torch.sparse_coo_tensor(
            torch.tensor([rows, columns]), torch.cat(values), (len(texts), len(self.index)), check_invariants=True
        )


def terms_of(text: str) -> list[str]:
    words = WORD.findall(text.lower())
    return words + [f"{first} {second}" for first, second in itertools.pairwise(words)]


def fit_words(trained: Sequence[Pair], judged: Sequence[Group]) -> list[list[float]]:
    """The scores of each group's responses, by weights that rank the trained pairs: logistic loss with an L2 penalty."""
    bag = BagOfWords([text for pair in trained for text in pair.texts])
    better, worse = (bag(texts) for texts in zip(*(pair.texts for pair in trained), strict=True))
    differences = (better - worse).coalesce()
    weights = torch.zeros(len(bag.index), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (
            -functional.logsigmoid(torch.sparse.mm(differences, weights[:, None])).mean() + L2 * weights.pow(2).sum()
        )
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return [(bag([response.text for response in group.responses]) @ weights).tolist() for group in judged]
