"""The verbs ``encoder import`` and ``encoder embed``: texts of items as vectors for ``train``."""

from pathlib import Path
from typing import Annotated

import typer

from recserve import console
from recserve.errors import DataError, InvalidRequest


def import_folder(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A Hugging Face folder (tokenizer.json and model.onnx, or BERT's model.safetensors), or the "
            "model of an installed package: minilm (English), use-multilingual (16 languages)."
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
) -> None:
    """Make a text encoder of a model's folder; it is tried out before anything is written."""
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


def embed(
    encoder: Annotated[Path, typer.Argument(help="A folder that `encoder import` wrote.")],
    items: Annotated[Path, typer.Option(help="File of item attributes.")],
    out: Annotated[Path, typer.Option(help="The vectors, as Parquet, for train --item-embeddings.")],
    columns: Annotated[
        str, typer.Option(help="Which columns are read, joined by commas; those that are not there are left.")
    ] = "title,description",
) -> None:
    """Write a vector of each item's text."""
    import polars as pl

    from recserve.training.data import read_table
    from recserve.training.data.attributes import id_column
    from recserve.training.data.columns import EMBEDDING, ITEM_ID
    from recserve.training.features.encoder import OnnxTextEncoder

    if out.suffix != ".parquet":
        raise InvalidRequest("--out", found=out, expected="a file named .parquet")
    table = read_table(items)
    read = [name for name in columns.split(",") if name in table.columns]
    if not read:
        raise DataError(f"columns of {items}", found=", ".join(table.columns), expected=f"one of {columns}")
    texts = table.select(pl.concat_str(pl.col(read).fill_null(""), separator=" ")).to_series().to_list()
    vectors = OnnxTextEncoder(encoder).encode(texts)
    ids = table[id_column(table, "item")].cast(pl.String).alias(ITEM_ID)
    pl.DataFrame([ids, pl.Series(EMBEDDING, vectors).arr.to_list()]).write_parquet(out)
    console.note(f"{len(vectors)} vectors of width {vectors.shape[1]} in {out}")


# The verb's name is a word of the language.
import_folder.__name__ = "import"
