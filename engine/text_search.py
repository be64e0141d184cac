"""Items by a text: what a request says in words is looked for among what the items say of themselves."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import Bundle
from recserve.engine.bundle.item_table import check_finite
from recserve.engine.bundle.text_encoder import TextEncoderEntry, text_of
from recserve.engine.filters.compiler import CompiledFilter
from recserve.engine.golden import check_golden, repeated
from recserve.engine.retrieval import prepare_index, to_csr
from recserve.engine.runtime import Runtime, infer
from recserve.errors import BundleInvalid, BundleReason, ConfigError, InvalidRequest
from recserve.kernels import ItemIndex
from recserve.texts import GraphEncoder
from recserve.words import WORD, hashed, pieces

MAX_CHARACTERS = 1000
# Items whose recorded vectors their texts must have again.
N_REPEATED = 4
# Pieces are rounded otherwise on another machine.
TOLERANCE = 1e-3

Scores = NDArray[np.float32]
Items = NDArray[np.int32]
Encode = Callable[[Sequence[str]], Scores]


@dataclass(frozen=True, slots=True, eq=False)
class TextRanking:
    """The order of the catalogue by likeness to one text; answers as a :class:`FixedRanking` does.

    ``vectors``: (n_items, d) of the items' texts; ``vector``: (d,). A score is their cosine.
    """

    index: ItemIndex
    vectors: Scores
    vector: Scores

    def best(
        self, k: int, exclude: Items, allowed: CompiledFilter | None = None, boosts: Scores | None = None
    ) -> tuple[Scores, Items]:
        """Returns the scores and items of at most ``k`` of the best, those without a text left out.

        None for a text without a word that the encoder knows: it is like nothing.
        """
        if not self.vector.any():
            return np.empty(0, np.float32), np.empty(0, np.int32)
        # The mask: the filter's bits are in the order of the other index.
        allow = allowed.allow.mask if allowed else None
        scores, items = self.index.search(
            self.vector[None], k, exclude=to_csr([exclude]), allow=allow, bias=boosts
        )
        found = items[0] >= 0
        return scores[0][found], items[0][found]

    def scores_of(self, items: Items) -> Scores:
        """Returns the scores of ``items`` (n,)."""
        scores: Scores = self.vectors[items] @ self.vector
        return scores


class TextSearch:
    """The text encoder of one bundle and the index of its items' texts; safe to call from several threads."""

    def __init__(
        self, bundle: Bundle, entry: TextEncoderEntry, runtime: Runtime, folder: Path | None = None
    ) -> None:
        """``folder``: as of :class:`Retriever`.

        Raises :class:`BundleInvalid` unless items have the recorded vectors again, :class:`ConfigError`
        where the tokenizer's package is not installed.
        """
        self._entry = entry
        self._encode = _encoder(bundle, entry, runtime)
        shape = (bundle.manifest.n_items, entry.width)
        self._vectors = bundle.array(entry.vectors, np.dtype(np.float32), shape)
        check_finite(entry.vectors, self._vectors)
        digest = bundle.manifest.files[entry.vectors].sha256
        self._index = prepare_index(folder and folder / f"{digest}.text", self._vectors, "inner")
        self._index.remove(np.flatnonzero(~self._vectors.any(axis=1)).astype(np.int32))
        # Of the items that came since, by text: each change of items brings all of them again.
        self._added: dict[str, Scores] = {}
        self._check_golden(bundle)

    @property
    def is_slow(self) -> bool:
        """Whether a graph reads the texts: 0.6 ms for a few words, 26 for 1000 characters, in company too."""
        return bool(self._entry.graph)

    def rankings(self, texts: Sequence[str]) -> list[TextRanking]:
        """Returns the order of the catalogue by each of ``texts`` (n ≥ 1), encoded in one batch."""
        return [TextRanking(self._index, self._vectors, vector) for vector in self._encode(texts)]

    def extended(self, bundle: Bundle) -> "TextSearch":
        """Returns a search of ``bundle``, this one's with further items; this one goes on."""
        new, n_before = copy(self), len(self._vectors)
        added = np.arange(n_before, len(bundle.item_embeddings), dtype=np.int32)
        vectors = self._encode_once(self._texts(bundle, added))
        new._vectors = np.concatenate([self._vectors, vectors])
        new._index = self._index.copy()
        new._index.upsert(added, vectors)
        new._index.remove(added[~vectors.any(axis=1)])
        return new

    def _encode_once(self, texts: Sequence[str]) -> Scores:
        """Returns the vectors of ``texts`` (n ≥ 1), and keeps them for the next time."""
        known = {text: self._added[text] for text in texts if text in self._added}
        if missing := [text for text in dict.fromkeys(texts) if text not in known]:
            known.update(zip(missing, self._encode(missing), strict=True))
        self._added = known
        return np.stack([known[text] for text in texts])

    def _texts(self, bundle: Bundle, items: Items) -> list[str]:
        return [text_of(item, self._entry.attributes) for item in bundle.catalogue.attributes(items)]

    def _check_golden(self, bundle: Bundle) -> None:
        items = np.flatnonzero(self._vectors.any(axis=1))[:N_REPEATED].astype(np.int32)
        if len(items):
            with repeated(self._entry.graph or self._entry.vectors):
                found = self._encode(self._texts(bundle, items))
            expected = self._vectors[items]
            check_golden(self._entry.vectors, found, expected, expected.shape, TOLERANCE)


def check_text(text: str, search: TextSearch | None) -> None:
    """Raises :class:`InvalidRequest` for a ``query_text`` that no item could be found by."""
    if not isinstance(text, str):
        raise InvalidRequest("query_text", found=type(text).__name__, expected="a string")
    if search is None:
        raise InvalidRequest(
            "query_text",
            found="given",
            expected="empty, since the bundle has no text encoder",
            cure="Export it with --text-encoder.",
        )
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequest(
            "query_text", found=f"{len(text)} characters long", expected=f"at most {MAX_CHARACTERS}"
        )
    if not WORD.search(text):
        raise InvalidRequest("query_text", found=text, expected="a text with a word")


def _encoder(bundle: Bundle, entry: TextEncoderEntry, runtime: Runtime) -> Encode:
    if not entry.graph:
        return lambda texts: hashed([pieces(text) for text in texts], entry.width)
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError(
            "package tokenizers",
            found="not installed",
            expected="installed, since the bundle has a text encoder with a graph",
            cure="Run: pip install 'recserve[text]'.",
        ) from error
    try:
        tokenizer = Tokenizer.from_str(bundle.read(entry.tokenizer).decode())
    # What it raises is an Exception itself, and of Rust's.
    except Exception as error:
        raise BundleInvalid(
            f"file {entry.tokenizer}",
            found="unreadable",
            expected="a tokenizer",
            reason=BundleReason.CONTENT_MALFORMED,
        ) from error
    session = runtime.open(entry.graph)
    [output, *_] = [node.name for node in session.get_outputs()]

    def run(arrays: Any) -> NDArray[Any]:
        return infer(session, output, arrays)

    inputs = [node.name for node in session.get_inputs()]
    unknown = set(inputs) - {"input_ids", "attention_mask", "token_type_ids"}
    if unknown:
        raise BundleInvalid(
            f"inputs of {entry.graph}",
            found=sorted(unknown),
            expected="pieces of texts",
            reason=BundleReason.GRAPH_SIGNATURE,
        )
    encoder = GraphEncoder(
        tokenizer,
        run,
        inputs,
        pooling=entry.pooling,
        max_length=entry.max_length,
        prefix=entry.prefix,
    )
    return encoder.encode
