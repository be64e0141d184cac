"""Vectors of words, learned or read: from texts to an encoder's folder that embeds items."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recserve.errors import DataError, InvalidRequest

pytest.importorskip("tokenizers", reason="the extra [text] is not installed")

from recserve.exporters import word_encoder
from recserve.training.features.encoder import OnnxTextEncoder
from recserve.training.word_vectors import WordVectors, learn_words, read_words, word_tokenizer

CLI = Callable[..., tuple[int, str, str]]


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def titles() -> list[str]:
    """Of a mug and a cup the same is said, and never both at once; of lamps other things."""
    rng = np.random.default_rng(1)
    said = [["tea", "coffee", "handle", "saucer", "porcelain"], ["light", "bulb", "shade", "desk", "switch"]]
    titles = []
    for number in range(300):
        thing, words = (("Mug", "cup")[number % 2], said[0]) if number % 3 else ("Lamp", said[1])
        titles.append(" ".join([thing, *rng.permutation(words)[:3], f"model{number}"]))
    return titles


@pytest.mark.parametrize("method", ["word2vec", "glove"])
def test_words_of_which_the_same_is_said_are_alike(method: str, titles: list[str]) -> None:
    words = learn_words(titles, method, 8, epochs=20)
    # What one title alone has, its model, is left out.
    known = "mug cup lamp tea coffee handle saucer porcelain light bulb shade desk switch"
    assert sorted(words.words) == sorted(known.split(" "))
    assert words.shares.sum() == pytest.approx(1)
    assert (np.diff(words.shares) <= 0).all()
    vectors = dict(zip(words.words, words.vectors, strict=True))
    assert vectors["mug"] @ vectors["cup"] > vectors["mug"] @ vectors["lamp"] + 0.3
    first, again = (learn_words(titles[:30], method, 4, epochs=1).vectors for _ in range(2))
    assert np.array_equal(first, again)


def test_items_texts_become_an_encoder_and_vectors(run_cli: CLI, titles: list[str], tmp_path: Path) -> None:
    items, folder, out = tmp_path / "items.csv", tmp_path / "words", tmp_path / "vectors.parquet"
    asked = [*titles, "a nice MUG", "cup, nice", "the lamp", "nothing known"]
    pl.DataFrame({"item": [f"i{n}" for n in range(len(asked))], "title": asked}).write_csv(items)
    options = ["--items", items, "--out", folder, "--dim", "8", "--epochs", "20"]
    code, _, said = run_cli("encoder", "train", *options)
    assert code == 0, said
    # One of those that stand twice is "nice".
    assert "14 words of width 8 from 304 texts" in said
    code, _, said = run_cli("encoder", "embed", folder, "--items", items, "--out", out)
    assert code == 0, said
    mug, cup, lamp, unknown = np.stack(pl.read_parquet(out)["embedding"].to_list())[-4:]
    assert mug @ cup > mug @ lamp + 0.3
    assert not unknown.any()
    code, _, said = run_cli("encoder", "train", *options)
    assert code == 2
    assert "there already" in said


def test_a_text_is_the_mean_of_its_weighted_words(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shares = np.array([0.7, 0.2, 0.1])
    words = WordVectors(["the", "red", "杯"], rng.normal(size=(3, 4)).astype(np.float32), shares)
    word_encoder.write_word_encoder(words, tmp_path / "encoder")
    found = OnnxTextEncoder(tmp_path / "encoder").encode(["The red杯", "red", "blue", "ｒｅｄ mug"])
    weighted = words.vectors * (1e-3 / (1e-3 + shares))[:, None]
    common = shares @ weighted
    expected = weighted - np.outer(weighted @ common, common) / (common @ common)
    for row, vector in zip(found, (expected.mean(0), expected[1]), strict=False):
        np.testing.assert_allclose(row, vector / np.linalg.norm(vector), atol=1e-4)
    assert not found[2].any()
    np.testing.assert_allclose(found[3], found[1], atol=1e-6)


def test_words_with_capitals_are_told_from_those_without() -> None:
    assert word_tokenizer(["polish", "Polish"]).encode("Polish polish").ids == [3, 2]
    assert word_tokenizer(["polish"]).encode("Polish").ids == [2]


def test_published_files_are_read(run_cli: CLI, tmp_path: Path) -> None:
    glove, vec = tmp_path / "glove.txt", tmp_path / "words.vec"
    glove.write_text("the 1 0 0\nred 0 1 0.5\n. . . 0 0 1\n杯 -1e-1 0 2\n", "utf-8")
    vec.write_text("2 3\nthe 1 0 0 \nred 0 1 0.5 \n", "utf-8")
    words, n_beyond = read_words(glove)
    assert words.words == ["the", "red", ". . .", "杯"]
    assert words.vectors[3].tolist() == pytest.approx([-0.1, 0, 2])
    assert words.shares[0] / words.shares[3] == pytest.approx(4)
    assert n_beyond == 0
    assert read_words(vec)[0].words == ["the", "red"]
    code, _, said = run_cli("encoder", "import", glove, "--out", tmp_path / "encoder", "--max-words", "2")
    assert code == 0, said
    assert "2 words of width 3; left out: 2 beyond --max-words" in said
    assert OnnxTextEncoder(tmp_path / "encoder").encode(["red"]).shape == (1, 3)
    code, _, said = run_cli("encoder", "import", glove, "--out", tmp_path / "new", "--prefix", "query: ")
    assert code == 2
    assert "--prefix is given; expected not given for word vectors" in said


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"the 1 0\nred 0\n", "line 2 of FILE is a word and 1 numbers; expected a word and 2 numbers"),
        (b"the 1 0\nred 0 1 2\n", "line 2 of FILE is a word and 3 numbers"),
        (b"the 1 0\nred 0 nan\n", "line 2 of FILE is a word and 1 numbers"),
        (b"the 1 0\nred 0 much\n", "line 2 of FILE is a word and 1 numbers"),
        (b"the 1 0\n\nred 0 1\n", "line 2 of FILE is a word and 0 numbers"),
        (b"the 1 0\nthe 0 1\n", "line 2 of FILE is the word the again"),
        (b"the 1 0\n\xff 0 1\n", "line 2 of FILE is a word that is not UTF-8"),
        (b"3 2\nthe 1 0\nred 0 1\n", "file FILE is of 2 words; expected 3"),
        (b"the\n", "line 1 of FILE is a word and 0 numbers; expected a word and 1 numbers"),
        (b"", "file FILE is of 0 words; expected 1 or more"),
    ],
)
def test_a_broken_file_is_refused_by_its_line(text: bytes, error: str, tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_bytes(text)
    with pytest.raises(DataError, match=re.escape(error.replace("FILE", str(path)))):
        read_words(path)


def test_texts_that_teach_nothing_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for texts in (["red mug", "blue plate"], ["red", "red"], []):
        with pytest.raises(DataError, match="without two words that stand 2 times or more"):
            learn_words(texts)
    for given in ({"method": "lsa"}, {"min_count": 0}, {"epochs": 0}, {"size": 0}, {"window": 0}):
        name = next(iter(given))
        with pytest.raises(InvalidRequest, match="embedding_size" if name == "size" else name):
            learn_words(["red mug", "red mug"], **given)  # type: ignore[arg-type]
    monkeypatch.setattr(word_encoder, "MAX_NUMBERS", 3)
    words = WordVectors(["red", "mug"], np.ones((2, 2), np.float32), np.array([0.5, 0.5]))
    with pytest.raises(InvalidRequest, match="words is 2 of width 2; expected 1 or fewer"):
        word_encoder.write_word_encoder(words, tmp_path / "new")
