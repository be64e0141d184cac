"""What a bundle says of its text encoder: how a request's text becomes a vector like those of its items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from recserve.errors import BundleInvalid, BundleReason
from recserve.texts import POOLINGS

MAX_WIDTH = 1 << 14
MAX_PIECES = 1 << 13

_wrong_field = partial(BundleInvalid, reason=BundleReason.MANIFEST_FIELD)


@dataclass(frozen=True, slots=True)
class TextEncoderEntry:
    """Vectors of the items' texts, and what makes such a vector of any other text.

    ``vectors``: (n_items, ``width``) float32, of length 1, or 0 for an item without a text; ``attributes``:
    those that are its text. ``graph`` and ``tokenizer``: files, with ``pooling``, ``max_length`` and
    ``prefix`` as of :class:`recserve.texts.GraphEncoder`; no graph: words are hashed.
    """

    vectors: str
    width: int
    attributes: list[str]
    graph: str = ""
    tokenizer: str = ""
    pooling: str = "mean"
    max_length: int = 256
    prefix: str = ""

    def check(self, files: Mapping[str, object]) -> None:
        """Raises :class:`BundleInvalid` naming the first wrong field; ``files``: those of the manifest."""
        named = {"vectors": self.vectors}
        if self.graph or self.tokenizer:
            named |= {"graph": self.graph, "tokenizer": self.tokenizer}
        for field, name in named.items():
            if name not in files:
                found = name or "not named"
                raise _wrong_field(
                    f"{field} of the text encoder", found=found, expected="one listed in files"
                )
        for field, value, most in (
            ("width", self.width, MAX_WIDTH),
            ("max_length", self.max_length, MAX_PIECES),
        ):
            if not 2 <= value <= most:
                raise _wrong_field(f"{field} of the text encoder", found=value, expected=f"2 to {most}")
        if self.pooling not in POOLINGS:
            expected = f"one of {', '.join(POOLINGS)}"
            raise _wrong_field("pooling of the text encoder", found=self.pooling, expected=expected)


def text_of(item: Mapping[str, Any], attributes: Sequence[str]) -> str:
    """Returns the text of an item: its ``attributes`` that are texts, joined by a space."""
    return " ".join(value for name in attributes if isinstance(value := item.get(name), str) and value)
