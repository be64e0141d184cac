"""Text classification: softmax regression over words and pairs of neighbouring words, weighted by rarity.

The baseline that needs no pretrained model (Wang & Manning 2012, aclanthology.org/P12-2018, without the naive
Bayes ratios): convex, so the same texts and labels give the same classifier.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from recserve.errors import DataError
from recserve.training.features.text import WORD

# The most frequent words and pairs, each of two texts or more.
MAX_TERMS, MIN_TEXTS_PER_TERM = 50_000, 2
# The weight of a text's row has length 1: that of the classes may be large.
REG = 1e-4
MAX_STEPS = 100

Probabilities = NDArray[np.float32]


class TextClassifier:
    """P(class | text), fitted on texts whose class is known."""

    def __init__(self, texts: Sequence[str], labels: Sequence[str]) -> None:
        """Raises :class:`DataError` unless there are two classes or more."""
        counts = Counter(labels)
        self.classes = sorted(counts)
        if len(self.classes) < 2:
            raise DataError("classes of the texts", found=len(self.classes), expected="2 or more")
        n_texts_with = Counter(term for text in texts for term in set(_terms(text)))
        ranked = sorted(n_texts_with, key=lambda term: (-n_texts_with[term], term))[:MAX_TERMS]
        known = [term for term in ranked if n_texts_with[term] >= MIN_TEXTS_PER_TERM]
        self._places = {term: place for place, term in enumerate(known)}
        rarity = [np.log((1 + len(texts)) / (1 + n_texts_with[term])) + 1 for term in known]
        self._rarity = np.array(rarity, np.float32)
        place = {label: index for index, label in enumerate(self.classes)}
        self._weights, self._bias = self._fit(texts, torch.tensor([place[label] for label in labels]))

    def probabilities(self, texts: Sequence[str]) -> Probabilities:
        """Returns the probability of each of ``classes``, (n_texts, n_classes) float32."""
        with torch.inference_mode():
            logits = self._logits(self._bags(texts), self._weights, self._bias)
            found: Probabilities = logits.softmax(1).numpy()
        return found

    def _fit(self, texts: Sequence[str], targets: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.zeros(max(1, len(self._places)), len(self.classes), requires_grad=True)
        bias = torch.zeros(len(self.classes), requires_grad=True)
        bags = self._bags(texts)
        optimizer = torch.optim.LBFGS([weights, bias], max_iter=MAX_STEPS, line_search_fn="strong_wolfe")

        def loss() -> float:
            optimizer.zero_grad()
            value = F.cross_entropy(self._logits(bags, weights, bias), targets) + REG * (weights**2).sum() / 2
            value.backward()  # type: ignore[no-untyped-call]
            return float(value.detach())

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        return weights.detach(), bias.detach()

    def _bags(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the known terms of all texts, where each begins, and weights, of length 1 a text."""
        places, weights = [], []
        for text in texts:
            counts = Counter(self._places[term] for term in _terms(text) if term in self._places)
            here = np.fromiter(counts, np.int64, len(counts))
            weight = np.fromiter(counts.values(), np.float32, len(counts)) * self._rarity[here]
            places.append(here)
            weights.append(weight / max(float(np.linalg.norm(weight)), 1e-12))
        ends = np.cumsum([0, *map(len, places)])
        return (
            torch.from_numpy(np.concatenate([*places, np.empty(0, np.int64)])),
            torch.from_numpy(ends[:-1]),
            torch.from_numpy(np.concatenate([*weights, np.empty(0, np.float32)])),
        )

    @staticmethod
    def _logits(bags: tuple[Tensor, Tensor, Tensor], weights: Tensor, bias: Tensor) -> Tensor:
        places, offsets, of_terms = bags
        return F.embedding_bag(places, weights, offsets, mode="sum", per_sample_weights=of_terms) + bias


def out_of_fold(
    texts: Sequence[str], labels: Sequence[str], *, n_folds: int = 5, seed: int = 0
) -> Probabilities:
    """Returns the probabilities (n_texts, n_classes) that a classifier gives each text, fitted on the others.

    The classes are those of all labels, sorted. Raises :class:`DataError` for fewer than two.
    """
    classes = sorted(set(labels))
    fold = np.random.default_rng(seed).permutation(len(texts)) % n_folds
    found = np.zeros((len(texts), len(classes)), np.float32)
    for number in range(n_folds):
        rest, here = (np.flatnonzero(rows).tolist() for rows in (fold != number, fold == number))
        classifier = TextClassifier([texts[row] for row in rest], [labels[row] for row in rest])
        columns = [classes.index(name) for name in classifier.classes]
        found[np.ix_(here, columns)] = classifier.probabilities([texts[row] for row in here])
    return found


def _terms(text: str) -> list[str]:
    words = WORD.findall(text.lower())
    return words + [f"{first} {second}" for first, second in pairwise(words)]
