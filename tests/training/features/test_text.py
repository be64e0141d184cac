"""The hashing encoder: the same everywhere, and near where words are."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recserve.training.features.text import HashingEncoder

ENCODER = HashingEncoder()


@given(st.lists(st.text(max_size=30), max_size=5))
def test_a_vector_is_of_length_1_or_of_no_word(texts: list[str]) -> None:
    vectors = ENCODER.encode(texts)
    assert vectors.shape == (len(texts), 256)
    assert vectors.dtype == np.float32
    for text, norm in zip(texts, np.linalg.norm(vectors, axis=1).tolist(), strict=True):
        # Two pieces of a text may fall on each other with opposite signs; a text of one word keeps some.
        assert abs(norm - 1) < 1e-5 or norm == 0
        assert norm == 0 or any(character.isalnum() or character == "_" for character in text)


def test_it_is_the_same_on_every_machine() -> None:
    (vector,) = HashingEncoder(dim=8).encode(["Song"])
    # "song", "<so", "son", "ong", "ng>" by CRC-32: bucket from the upper bits, sign from the lowest.
    np.testing.assert_allclose(vector * np.sqrt(3), [1, 1, 0, 0, 0, -1, 0, 0], atol=1e-6)


def test_words_that_share_letters_are_nearer() -> None:
    song, songs, stone, other = ENCODER.encode(["blue song", "BLUE songs!", "grey stone", "世界 音乐"])
    assert song @ songs > 0.5 > 0.2 > song @ stone
    assert np.linalg.norm(other) > 0
