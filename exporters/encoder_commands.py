"""The verbs of ``encoder``: texts of items as vectors for ``train``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recserve import console
from recserve.errors import DataError, InvalidRequest

if TYPE_CHECKING:
    import polars as pl

COLUMNS = "title,description"
WORD_SUFFIXES = (".txt", ".vec")


def import_folder(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A Hugging Face folder (tokenizer.json and model.onnx, or BERT's model.safetensors), or the "
            "model of an installed package: minilm (English), use-multilingual (16 languages), or a file of "
            "word vectors as GloVe, word2vec and fastText publish (.txt, .vec)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The encoder's folder; must not exist.")],
    pooling: Annotated[
        str | None,
        typer.Option(
            help="mean, cls, or none (the graph does it). Default: what the folder says, else mean."
        ),
    ] = None,
    prefix: Annotated[str, typer.Option(help="What stands before every text, such as 'passage: '.")] = "",
    max_words: Annotated[
        int, typer.Option(help="Most words of a file of word vectors, the most frequent ones.")
    ] = 400_000,
) -> None:
    """Make a text encoder of a model's folder; it is tried out before anything is written."""
    if folder.suffix in WORD_SUFFIXES:
        if pooling or prefix:
            raise InvalidRequest(
                "--pooling" if pooling else "--prefix", found="given", expected="not given for word vectors"
            )
        _import_words(folder, out, max_words)
        return
    from recserve.exporters.packaged_encoders import model_folder
    from recserve.training.features.encoder import import_encoder

    make_graph = None
    with model_folder(folder) as (source, of_package):
        if (source / "model.safetensors").is_file():
            from recserve.exporters.bert import export_bert

            make_graph = export_bert
        settings = import_encoder(
            source, out, pooling=pooling or of_package, prefix=prefix, make_graph=make_graph
        )
    console.note(f"encoder in {out}: pooling {settings.pooling}, at most {settings.max_length} pieces")


def _import_words(path: Path, out: Path, max_words: int) -> None:
    from recserve.exporters.word_encoder import write_word_encoder
    from recserve.training.features.encoder import check_is_new
    from recserve.training.word_vectors import read_words

    check_is_new(out)
    words, n_beyond = read_words(path, max_words)
    write_word_encoder(words, out)
    beyond = f"; left out: {n_beyond:,} beyond --max-words" if n_beyond else ""
    console.note(f"encoder in {out}: {len(words.words):,} words of width {words.vectors.shape[1]}{beyond}")


def train_words(
    items: Annotated[Path, typer.Option(help="File of item attributes.")],
    out: Annotated[Path, typer.Option(help="The encoder's folder; must not exist.")],
    columns: Annotated[
        str, typer.Option(help="Which columns are read, joined by commas; those that are not there are left.")
    ] = COLUMNS,
    method: Annotated[str, typer.Option(help="word2vec or glove.")] = "word2vec",
    dim: Annotated[int, typer.Option(help="Width of the vectors.")] = 64,
    window: Annotated[int, typer.Option(help="Words before and after one that are its neighbours.")] = 5,
    min_count: Annotated[int, typer.Option(help="Times that a word must stand in the texts.")] = 2,
    epochs: Annotated[int, typer.Option(help="Passes over the texts.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Learn vectors of words from the items' own texts and make a text encoder of them."""
    from recserve.exporters.word_encoder import write_word_encoder
    from recserve.training.features.encoder import check_is_new
    from recserve.training.word_vectors import learn_words

    check_is_new(out)
    _, texts = _texts_of(items, columns)
    with console.progress("training", epochs) as update:
        words = learn_words(
            texts,
            method,
            dim,
            window=window,
            min_count=min_count,
            epochs=epochs,
            seed=seed,
            on_epoch=lambda loss: update(1, f"training  loss {loss:.3f}"),
        )
    write_word_encoder(words, out)
    console.note(f"encoder in {out}: {len(words.words):,} words of width {dim} from {len(texts):,} texts")


def embed(
    encoder: Annotated[Path, typer.Argument(help="A folder that `encoder import` or `train` wrote.")],
    items: Annotated[Path, typer.Option(help="File of item attributes.")],
    out: Annotated[Path, typer.Option(help="The vectors, as Parquet, for train --item-embeddings.")],
    columns: Annotated[
        str, typer.Option(help="Which columns are read, joined by commas; those that are not there are left.")
    ] = COLUMNS,
) -> None:
    """Write a vector of each item's text."""
    import polars as pl

    from recserve.training.data.attributes import id_column
    from recserve.training.data.columns import EMBEDDING, ITEM_ID
    from recserve.training.features.encoder import OnnxTextEncoder

    if out.suffix != ".parquet":
        raise InvalidRequest("--out", found=out, expected="a file named .parquet")
    table, texts = _texts_of(items, columns)
    vectors = OnnxTextEncoder(encoder).encode(texts)
    ids = table[id_column(table, "item")].cast(pl.String).alias(ITEM_ID)
    pl.DataFrame([ids, pl.Series(EMBEDDING, vectors).arr.to_list()]).write_parquet(out)
    console.note(f"{len(vectors)} vectors of width {vectors.shape[1]} in {out}")


def _texts_of(items: Path, columns: str) -> "tuple[pl.DataFrame, list[str]]":
    """Returns the table in the file and the text of each row, its ``columns`` joined."""
    import polars as pl

    from recserve.training.data import read_table

    table = read_table(items)
    read = [name for name in columns.split(",") if name in table.columns]
    if not read:
        raise DataError(f"columns of {items}", found=", ".join(table.columns), expected=f"one of {columns}")
    texts = table.select(pl.concat_str(pl.col(read).fill_null(""), separator=" "))
    return table, texts.to_series().to_list()


# The verbs' names: the one is a word of the language, the other that of another verb.
import_folder.__name__, train_words.__name__ = "import", "train"
