"""Words as vectors by hashing: training and serving read an item's texts alike."""

import re
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\w+")
NGRAM = 3


def pieces(text: str) -> list[str]:
    """Returns the words of a text and their character trigrams."""
    found = []
    for word in WORD.findall(text.lower()):
        marked = f"<{word}>"
        found.append(word)
        found += [marked[start : start + NGRAM] for start in range(len(marked) - NGRAM + 1)]
    return found


def hashed(rows: Sequence[Iterable[str]], dim: int) -> NDArray[np.float32]:
    """Returns the pieces of each row, hashed with a sign into ``dim`` buckets: (n, dim) float32.

    Rows have length 1, or 0 without a piece. Weinberger et al. 2009 (doi:10.1145/1553374.1553516), by CRC-32:
    the same on every machine.
    """
    vectors = np.zeros((len(rows), dim), np.float32)
    for row, found in enumerate(rows):
        for piece in found:
            code = zlib.crc32(piece.encode("utf-8", "surrogatepass"))
            vectors[row, (code >> 1) % dim] += 1.0 if code & 1 else -1.0
    return unit_rows(vectors)


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the rows of ``vectors`` (n, d) scaled to length 1; rows of zeros stay."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    norms[norms == 0] = 1
    unit: NDArray[np.float32] = vectors / norms
    return unit
