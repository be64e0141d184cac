"""Vectors of words: learned from texts by the models that learn items from histories, or read from a file."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from recserve.errors import DataError, InvalidRequest
from recserve.training.data import Histories
from recserve.training.features.text import WORD, unit_rows
from recserve.training.models.glove import GloVe, GloVeConfig
from recserve.training.models.item2vec import Item2Vec, Item2VecConfig

METHODS = ("word2vec", "glove")
SPECIAL = PADDING, UNKNOWN = "[PAD]", "[UNK]"
# Of the first line of word2vec's files.
HEADER_FIELDS = 2
# The most frequent words of texts: what is beyond occurs too seldom to be learned.
MAX_LEARNED_WORDS = 100_000
# Few texts are learned from in small steps: enough of them an epoch, whatever there is.
STEPS_PER_EPOCH, BATCH_SIZES = 100, (64, 8192)
# The a of Arora et al. 2017 (openreview.net/forum?id=SyK00v5xx), p being a word's share of all words.
SMOOTH_WEIGHT = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class WordVectors:
    """words: most frequent first; vectors: (n, d) float32; shares: (n,) float64, of all words of texts."""

    words: list[str]
    vectors: NDArray[np.float32]
    shares: NDArray[np.float64]

    def of_texts(self) -> NDArray[np.float32]:
        """Returns (n, d) float32 whose mean over the words of a text is the text's vector.

        A word weighs a / (a + p), and what all texts share is taken out: the direction of their mean.
        """
        weights = SMOOTH_WEIGHT / (SMOOTH_WEIGHT + self.shares)
        weighted = self.vectors * weights[:, None].astype(np.float32)
        common = unit_rows((self.shares @ weighted).astype(np.float32)[None])[0]
        return weighted - np.outer(weighted @ common, common)


def learn_words(
    texts: list[str],
    method: str = "word2vec",
    size: int = 64,
    *,
    window: int = 5,
    min_count: int = 2,
    epochs: int = 30,
    seed: int = 0,
    on_epoch: Callable[[float], None] = lambda loss: None,
) -> WordVectors:
    """Learns ``size`` numbers of each word that stands ``min_count`` times in ``texts`` or more.

    Raises :class:`DataError` where no two such words stand in one text.
    """
    if method not in METHODS:
        raise InvalidRequest("method", found=method, expected=" or ".join(METHODS))
    for name, value in (("min_count", min_count), ("epochs", epochs)):
        if value < 1:
            raise InvalidRequest(name, found=value, expected="1 or more")
    tokenizer = _tokenizer({})
    tokenizer.train_from_iterator(
        texts,
        trainers.WordLevelTrainer(
            vocab_size=MAX_LEARNED_WORDS + len(SPECIAL),
            min_frequency=min_count,
            special_tokens=list(SPECIAL),
            show_progress=False,
        ),
    )
    vocabulary = tokenizer.get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)[len(SPECIAL) :]
    histories = _histories(tokenizer, texts)
    if histories.lengths.max(initial=0) < 2:
        raise DataError(
            "texts",
            found=f"without two words that stand {min_count} times or more",
            expected="some",
            cure="Use more texts, other columns, or a smaller --min-count.",
        )
    torch.manual_seed(seed)
    batch_size = int(np.clip(len(histories.item_index) * window // STEPS_PER_EPOCH, *BATCH_SIZES))
    shape = {"embedding_size": size, "window": window, "batch_size": batch_size}
    model: Item2Vec | GloVe
    if method == "glove":
        model = GloVe(GloVeConfig(**shape), len(texts), len(words))
    else:
        model = Item2Vec(Item2VecConfig(**shape), len(texts), len(words))
    for epoch in range(1, epochs + 1):
        on_epoch(model.fit_epoch(histories, epoch=epoch, seed=seed))
    counts = np.bincount(histories.item_index, minlength=len(words))
    return WordVectors(words, model.item_embeddings.numpy(), counts / counts.sum())


def read_words(path: Path, max_words: int = 400_000) -> tuple[WordVectors, int]:
    """Reads lines of a word and its numbers, as GloVe, word2vec and fastText publish; returns what is beyond.

    A first line of two whole numbers (words, width) is read as such. The most frequent words come first, as
    in all such files: their shares are those of Zipf's law, since none are given. Raises :class:`DataError`
    with the number of a line that has another width, no numbers, or a word that came before,
    and for a file that ends before its first line says.
    """
    n_announced, size, n_beyond = None, 0, 0
    rows: dict[str, NDArray[np.float32]] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            fields = line.rstrip().split(b" ")
            if number == 1 and len(fields) == HEADER_FIELDS and all(field.isdigit() for field in fields):
                n_announced, size = (int(field) for field in fields)
            elif len(rows) == max_words:
                n_beyond += 1
            else:
                size = size or max(1, len(fields) - 1)
                word, row = _entry(fields, size, f"line {number} of {path}")
                if word in rows:
                    raise DataError(
                        f"line {number} of {path}", found=f"the word {word} again", expected="another"
                    )
                rows[word] = row
    n_found = len(rows) + n_beyond
    if not rows or n_announced not in (None, n_found):
        raise DataError(f"file {path}", found=f"of {n_found} words", expected=f"{n_announced or 1} or more")
    shares = 1 / np.arange(1, len(rows) + 1)
    return WordVectors(list(rows), np.stack(list(rows.values())), shares / shares.sum()), n_beyond


def word_tokenizer(words: list[str]) -> Tokenizer:
    """Returns what cuts texts into ``words``, whose ids begin after those of padding and the unknown."""
    vocabulary = {word: place for place, word in enumerate((*SPECIAL, *words))}
    return _tokenizer(vocabulary, lowercase=not any(word != word.lower() for word in words))


def _tokenizer(vocabulary: dict[str, int], *, lowercase: bool = True) -> Tokenizer:
    """Chinese characters are words, and what else letters, digits and marks make without a gap."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.BertNormalizer(strip_accents=False, handle_chinese_chars=True, lowercase=lowercase),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD.pattern), "removed", invert=True)
    return tokenizer


def _histories(tokenizer: Tokenizer, texts: list[str]) -> Histories:
    """Returns the known words of each text; what is not known leaves no gap."""
    ids = [np.array(one.ids, np.int32) - len(SPECIAL) for one in tokenizer.encode_batch(texts)]
    known = [row[row >= 0] for row in ids]
    row = np.repeat(np.arange(len(texts)), [len(one) for one in known])
    flat = np.concatenate([*known, np.empty(0, np.int32)])
    return Histories.from_sorted(row, flat, np.zeros(len(flat), np.int64), len(texts))


def _entry(fields: list[bytes], size: int, line: str) -> tuple[str, NDArray[np.float32]]:
    """Returns the word and the numbers of a line cut at its blanks; a word may have some."""
    numbers = [_number(field) for field in fields[1:]]
    n_numbers = sum(number is not None for number in numbers)
    if n_numbers != size or None in numbers[len(numbers) - size :]:
        raise DataError(line, found=f"a word and {n_numbers} numbers", expected=f"a word and {size} numbers")
    try:
        word = b" ".join(fields[: len(fields) - size]).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(line, found="a word that is not UTF-8", expected="UTF-8") from error
    return word, np.array(numbers[len(numbers) - size :], np.float32)


def _number(field: bytes) -> float | None:
    """Returns the finite number that ``field`` is, if it is one."""
    try:
        number = float(field)
    except ValueError:
        return None
    return number if isfinite(number) else None
