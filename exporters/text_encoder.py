"""Puts a text encoder into a bundle, and the vectors that it gives to the texts of the items."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import BundleWriter
from recserve.engine.bundle.item_encoder import TEXTS
from recserve.engine.bundle.text_encoder import TextEncoderEntry, text_of
from recserve.errors import DataError
from recserve.training.data import Dataset
from recserve.training.features.text import HashingEncoder

FOLDER = "text_encoder"
VECTORS = f"{FOLDER}/vectors.npy"
HASHING = "hashing"
# Words of two items fall into one bucket seldom enough.
HASHED_WIDTH = 512


def write_text_encoder(writer: BundleWriter, dataset: Dataset, encoder: str) -> TextEncoderEntry:
    """Writes ``encoder``, "hashing" or the folder of one that ``encoder import`` wrote.

    Raises :class:`DataError` for items without a title or description, or another folder.
    """
    attributes = [name for name in TEXTS if name in dataset.items.columns]
    texts = [text_of(item, attributes) for item in dataset.items.select(attributes).to_dicts()]
    if not any(texts):
        raise DataError(
            f"columns of the items of {dataset.name}",
            found=", ".join(dataset.items.columns),
            expected=f"{' or '.join(TEXTS)} among them, with texts",
            cure="Leave out --text-encoder, or give --items that have them.",
        )
    if encoder == HASHING:
        vectors = HashingEncoder(HASHED_WIDTH).encode(texts)
        return _entry(writer, vectors, attributes)
    # Its package is an extra of its own.
    from recserve.training.features.encoder import GRAPH, TOKENIZER, OnnxTextEncoder

    opened = OnnxTextEncoder(Path(encoder))
    for name in (GRAPH, TOKENIZER):
        writer.add_bytes(f"{FOLDER}/{name}", Path(encoder, name).read_bytes())
    settings = opened.settings
    return _entry(
        writer,
        opened.encode(texts),
        attributes,
        graph=f"{FOLDER}/{GRAPH}",
        tokenizer=f"{FOLDER}/{TOKENIZER}",
        pooling=settings.pooling,
        max_length=settings.max_length,
        prefix=settings.prefix,
    )


def _entry(
    writer: BundleWriter, vectors: NDArray[np.float32], attributes: list[str], **graph: str | int
) -> TextEncoderEntry:
    writer.add_array(VECTORS, vectors)
    return TextEncoderEntry(VECTORS, vectors.shape[1], attributes, **graph)  # type: ignore[arg-type]
