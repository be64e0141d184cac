"""The data sets that have a name, and files of the user's own: one call loads either."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recserve.errors import InvalidRequest, nearest
from recserve.training.data.cleaning import CleaningReport, CleaningRules, clean, clean_parts
from recserve.training.data.columns import ColumnMap
from recserve.training.data.dataset import Dataset
from recserve.training.data.embeddings import join_embeddings
from recserve.training.data.k_core import k_core
from recserve.training.data.readers import SUFFIXES, read_table
from recserve.training.data.shards import read_shards
from recserve.training.data.sources import ml_100k, sequences, synthetic_shop
from recserve.training.data.sources.cache import default_cache_dir
from recserve.training.data.sources.synthetic_shop import ShopOptions

OnNote = Callable[[str], None]
NAMES = (ml_100k.NAME, synthetic_shop.NAME)


@dataclass(frozen=True, slots=True)
class KnownItems:
    """What is known of the items besides the events: a file of attributes and one of vectors."""

    attributes: str | Path | None
    embeddings: str | Path | None
    every_item: bool

    def read(self, item_column: str | None) -> pl.DataFrame | None:
        """Returns both files as one table, None without any."""
        if self.every_item and self.attributes is None and self.embeddings is None:
            raise InvalidRequest(
                "every_item", found="given alone", expected="a file that names items", cure="Give --items."
            )
        items = None if self.attributes is None else read_table(self.attributes)
        if self.embeddings is None:
            return items
        return join_embeddings(items, Path(self.embeddings), item_column)


def load_dataset(
    spec: str | Path,
    *,
    columns: ColumnMap | None = None,
    rules: CleaningRules | None = None,
    items_path: str | Path | None = None,
    item_embeddings_path: str | Path | None = None,
    every_item: bool = False,
    min_user_interactions: int = 1,
    min_item_interactions: int = 1,
    cache_dir: Path | None = None,
    on_note: OnNote = lambda note: None,
) -> Dataset:
    """Loads a data set by its name, or events from a file.

    ``spec``: ``ml-100k``, ``synthetic-shop``, ``synthetic-shop:n_items=100000,seed=7``, a path (a
    folder of Parquet files is read part by part), or ``sequences:PATH`` of a file with a line per user.
    ``columns``, ``rules``, ``items_path`` (a file of item attributes) and ``item_embeddings_path`` (see
    ``embeddings``) are for a file of events, ``every_item`` keeps what is in them and nobody had; the minima
    are those of the k-core. Notes for a person (licence, what was fetched, what the report notes)
    go to ``on_note``. Raises InvalidRequest for an unknown name or option, DataError for data that cannot
    be used.
    """
    name, _, options = str(spec).partition(":")
    minima = (min_user_interactions, min_item_interactions)
    known_items = KnownItems(items_path, item_embeddings_path, every_item)
    if name == sequences.NAME and options:
        _refuse_for_named(name, columns=columns, rules=rules)
        events, report = clean(sequences.read_sequences(Path(options)), ColumnMap())
        dataset = _from_events(Path(options), events, report, None, known_items, minima)
    elif name not in NAMES:
        dataset = _load_file(spec, columns or ColumnMap(), rules, known_items, minima)
    else:
        _refuse_for_named(
            name,
            columns=columns,
            rules=rules,
            items_path=items_path,
            item_embeddings_path=item_embeddings_path,
            every_item=every_item or None,
        )
        dataset = _load_named(name, options, minima, cache_dir, on_note)
    for note in dataset.report.notes:
        on_note(note)
    return dataset


def is_there(spec: str) -> bool:
    """Returns whether ``spec`` names a data set or a file that exists."""
    name, _, options = spec.partition(":")
    return name in NAMES or Path(options if name == sequences.NAME and options else spec).exists()


def _load_named(
    name: str, options: str, minima: tuple[int, int], cache_dir: Path | None, on_note: OnNote
) -> Dataset:
    if name == synthetic_shop.NAME:
        return synthetic_shop.load(ShopOptions.parse(options), minima=minima)
    if options:
        raise InvalidRequest(f"options of {name}", found=options, expected="none")
    return ml_100k.load(cache_dir or default_cache_dir(), minima=minima, on_note=on_note)


def _refuse_for_named(name: str, **given: object) -> None:
    for argument, value in given.items():
        if value is not None:
            raise InvalidRequest(
                f"dataset {name}", found=f"given {argument}", expected="a file of events where that is given"
            )


def _load_file(
    spec: str | Path,
    columns: ColumnMap,
    rules: CleaningRules | None,
    known_items: "KnownItems",
    minima: tuple[int, int],
) -> Dataset:
    path = Path(spec)
    looks_like_path = isinstance(spec, Path) or path.name != str(spec) or path.suffix in {*SUFFIXES, ".gz"}
    if not looks_like_path and not path.exists():
        raise InvalidRequest(
            "dataset",
            found=str(spec),
            expected=f"{', '.join(NAMES)}, {sequences.NAME}:PATH or the path of a file",
            cure=nearest(str(spec).partition(":")[0], (*NAMES, sequences.NAME)),
        )
    if path.is_dir():
        cleaned = clean_parts(read_shards(path, columns), columns, rules)
    else:
        cleaned = clean(read_table(path), columns, rules)
    return _from_events(path, *cleaned, columns.item, known_items, minima)


def _from_events(
    path: Path,
    events: pl.DataFrame,
    report: CleaningReport,
    item_column: str | None,
    known_items: "KnownItems",
    minima: tuple[int, int],
) -> Dataset:
    events = k_core(events, *minima)
    return Dataset.from_events(
        path.name,
        events,
        report=report.after_core(events.height),
        source=str(path),
        items=known_items.read(item_column),
        item_column=item_column,
        every_item=known_items.every_item,
    )
