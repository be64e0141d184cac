"""From what is known of an item to its embedding: how an item that nobody had gets a place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.errors import BundleInvalid, BundleReason
from recserve.words import hashed, pieces

# Of what items are described by, these are read word by word; of all others a value is one word.
TEXTS = ("title", "description")
MAX_WIDTH = 1 << 14

_wrong_field = partial(BundleInvalid, reason=BundleReason.MANIFEST_FIELD)


@dataclass(frozen=True, slots=True)
class ItemEncoderEntry:
    """A linear map from hashed attributes to embeddings, fitted on the bundle's own items.

    ``file``: (``width`` + 1, embedding_size) float32, a row per bucket, the last for every item;
    ``attributes``: those that are read; ``length``: of the vectors that come out; ``quality``: of items that
    the fit did not see, the mean cosine with their own embedding, and that of the mean item's.
    """

    file: str
    width: int
    attributes: list[str]
    length: float
    quality: dict[str, float] = field(default_factory=dict)

    def check(self, files: Mapping[str, object]) -> None:
        """Raises :class:`BundleInvalid` naming the first wrong field; ``files``: those of the manifest."""
        if self.file not in files:
            raise _wrong_field("file of the item encoder", found=self.file, expected="one listed in files")
        if not 1 <= self.width <= MAX_WIDTH:
            raise _wrong_field("width of the item encoder", found=self.width, expected=f"1 to {MAX_WIDTH}")
        if not self.length > 0:
            raise _wrong_field("length of the item encoder", found=self.length, expected="above 0")


def described(
    items: Sequence[Mapping[str, Any]], attributes: Sequence[str], width: int
) -> NDArray[np.float32]:
    """Returns what is known of each item, (n, width) float32; a row of zeros where nothing is read."""
    return hashed([_words(item, attributes) for item in items], width)


def _words(item: Mapping[str, Any], attributes: Sequence[str]) -> list[str]:
    words: list[str] = []
    for name in attributes:
        value = item.get(name)
        if name in TEXTS and isinstance(value, str):
            words += pieces(value)
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, str | bool):
                words.append(f"{name}={one}")
    return words


@dataclass(frozen=True, slots=True)
class ItemEncoder:
    """The entry of a bundle with its weights."""

    entry: ItemEncoderEntry
    weights: NDArray[np.float32]

    def encode(self, item: Mapping[str, Any]) -> NDArray[np.float32] | None:
        """Returns the embedding (embedding_size,) of an item, None where nothing of what is read is known."""
        [known] = described([item], self.entry.attributes, self.entry.width)
        if not known.any():
            return None
        vector = known @ self.weights[:-1] + self.weights[-1]
        norm = float(np.linalg.norm(vector))
        return vector * np.float32(self.entry.length / norm) if norm > 0 else None
