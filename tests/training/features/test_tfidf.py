"""TF-IDF against a plain computation, and the model that answers by it."""

from collections import Counter

import numpy as np
import polars as pl
import pytest

from recserve.errors import DataError
from recserve.training.features.tfidf import text_vectors, words_of
from recserve.training.models.tfidf import TfIdf, TfIdfConfig, create
from tests.small import histories

ITEMS = pl.DataFrame(
    {
        "item_id": [f"i{row}" for row in range(6)],
        "title": ["Red mug", "red plate", "blue mug", None, "RED red mug", "xylophone"],
        "tags": [["kitchen"], ["kitchen"], ["kitchen", "new"], ["new"], [], None],
        "price": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    }
)


def plain(items: list[Counter[str]]) -> np.ndarray:  # type: ignore[type-arg]
    with_word = Counter(word for words in items for word in words)
    kept = [word for word, n_items in with_word.items() if n_items > 1]
    weights = np.array(
        [[words[w] * (np.log((1 + len(items)) / (1 + with_word[w])) + 1) for w in kept] for words in items]
    )
    return weights / np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-9)


def test_words_are_those_of_titles_and_the_values_of_other_texts() -> None:
    words = words_of(ITEMS)
    assert words[0] == Counter(["red", "mug", "tags=kitchen"])
    assert words[4] == Counter({"red": 2, "mug": 1})
    assert words[3] == Counter(["tags=new"])


def test_weights_are_counts_times_rarity_and_vectors_keep_their_cosines() -> None:
    expected = plain(words_of(ITEMS))
    vectors = text_vectors(ITEMS, 8)
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-5)
    # "xylophone" is in one item alone: it relates it to nothing.
    assert not vectors[5].any()
    np.testing.assert_array_equal(vectors, text_vectors(ITEMS, 8))
    narrow = text_vectors(ITEMS, 2)
    np.testing.assert_allclose(np.linalg.norm(narrow[:5], axis=1), 1, atol=1e-6)


def test_a_history_ranks_what_is_described_alike() -> None:
    model = TfIdf(TfIdfConfig(embedding_size=8), text_vectors(ITEMS, 8))
    scores = model.queries(np.array([0], np.int32), histories([[0, 4]])) @ model.item_embeddings.numpy().T
    assert scores[0, 1] > scores[0, 3]
    assert scores[0, 2] > scores[0, 3]


def test_items_without_text_are_refused() -> None:
    assert not text_vectors(ITEMS.select("item_id", "price"), 4).any()
    with pytest.raises(DataError, match="Give --items"):
        create(TfIdfConfig(), 3, 3)
