"""Text as vectors: the contract of an encoder, and the one that needs nothing but Python."""

import re
import zlib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\w+")
NGRAM = 3
DEFAULT_DIM = 256


class TextEncoder(Protocol):
    """Texts → vectors."""

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Returns one vector per text, (n, d) float32, of length 1, or 0 for a text without a word."""
        ...


class HashingEncoder:
    """Words and their character trigrams, hashed with a sign into ``dim`` buckets.

    Weinberger et al. 2009 (doi:10.1145/1553374.1553516). It learns nothing, knows every language as far as
    words share letters, and gives the same vectors on every machine (CRC-32).
    """

    def __init__(self, dim: int = DEFAULT_DIM) -> None:
        self.dim = dim

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Returns one vector per text, (n, dim) float32, of length 1, or 0 for a text without a word."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            for piece in _pieces(text):
                code = zlib.crc32(piece.encode())
                vectors[row, (code >> 1) % self.dim] += 1.0 if code & 1 else -1.0
        return unit_rows(vectors)


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the rows of ``vectors`` (n, d) scaled to length 1; rows of zeros stay."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    norms[norms == 0] = 1
    unit: NDArray[np.float32] = vectors / norms
    return unit


def _pieces(text: str) -> list[str]:
    pieces = []
    for word in WORD.findall(text.lower()):
        marked = f"<{word}>"
        pieces.append(word)
        pieces += [marked[start : start + NGRAM] for start in range(len(marked) - NGRAM + 1)]
    return pieces
