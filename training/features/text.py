"""Text as vectors: the contract of an encoder, and the one that needs nothing but Python."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recserve.words import WORD, hashed, pieces, unit_rows

__all__ = ["DEFAULT_DIM", "WORD", "HashingEncoder", "TextEncoder", "unit_rows"]

DEFAULT_DIM = 256


class TextEncoder(Protocol):
    """Texts → vectors."""

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Returns one vector per text, (n, d) float32, of length 1, or 0 for a text without a word."""
        ...


class HashingEncoder:
    """Words and their character trigrams, hashed into ``dim`` buckets.

    It learns nothing, knows every language as far as words share letters, and gives the same vectors on every
    machine.
    """

    def __init__(self, dim: int = DEFAULT_DIM) -> None:
        self.dim = dim

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Returns one vector per text, (n, dim) float32, of length 1, or 0 for a text without a word."""
        return hashed([pieces(text) for text in texts], self.dim)
