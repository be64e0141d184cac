"""A dataset ready to learn from: numbered users and items, their attributes, interactions, and lineage."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from recserve.errors import DataError, InvalidRequest
from recserve.training.data.attributes import all_ids, join_attributes
from recserve.training.data.cleaning import CleaningReport
from recserve.training.data.columns import (
    ACTION,
    ITEM_ID,
    ITEM_INDEX,
    TIMESTAMP,
    USER_ID,
    USER_INDEX,
    VALUE,
)
from recserve.training.data.histories import Histories
from recserve.training.data.mapped import read_mapped, write_mapped

FORMAT_VERSION = 2
INTERACTIONS_SCHEMA: dict[str, pl.DataType] = {
    USER_INDEX: pl.Int32(),
    ITEM_INDEX: pl.Int32(),
    TIMESTAMP: pl.Int64(),
    VALUE: pl.Float32(),
}
INTERACTIONS, TABLES = "interactions.arrow", ("users", "items")
DESCRIPTION = "dataset.json"
HASH_BATCH = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Interactions over numbered users and items.

    interactions: user_index int32, item_index int32, timestamp int64 (seconds), value float32 and, where
    the source has it, action str; sorted by user_index, then timestamp, then the order of the source.
    users, items: row = index, first column user_id or item_id (str, distinct), then attributes. From events,
    indices follow the byte order of the ids, so that they do not depend on the order of the rows. sha256 is
    of interactions and ids: the same data has the same hash, whatever file it came from.
    """

    name: str
    interactions: pl.DataFrame
    users: pl.DataFrame
    items: pl.DataFrame
    report: CleaningReport
    source: str
    licence: str
    sha256: str

    @classmethod
    def create(
        cls,
        name: str,
        interactions: pl.DataFrame,
        users: pl.DataFrame,
        items: pl.DataFrame,
        *,
        report: CleaningReport,
        source: str,
        licence: str = "",
    ) -> "Dataset":
        """Sorts the interactions (stable), checks types and ranges and hashes the content.

        Raises DataError where the tables do not fit together.
        """
        columns = [*INTERACTIONS_SCHEMA, *([ACTION] if ACTION in interactions.columns else [])]
        interactions = interactions.select(columns)
        _check_tables(interactions, users, items)
        if not _is_sorted(interactions):
            interactions = interactions.sort(USER_INDEX, TIMESTAMP, maintain_order=True)
        sha256 = _content_hash(interactions, users, items)
        return cls(name, interactions, users, items, report, source, licence, sha256)

    @classmethod
    def from_events(
        cls,
        name: str,
        events: pl.DataFrame,
        *,
        report: CleaningReport,
        source: str,
        licence: str = "",
        users: pl.DataFrame | None = None,
        items: pl.DataFrame | None = None,
        item_column: str | None = None,
        every_item: bool = False,
    ) -> "Dataset":
        """Numbers the users and items of clean events and joins their attributes.

        events: as ``cleaning.clean`` returns them; users, items: attribute tables, the id column of items
        being ``item_column`` (None: guessed). Users and items without an event are left out, which the
        report notes; with ``every_item`` the items that nobody had stay in the catalogue.
        """
        user_ids, item_ids = (events[name].unique().cast(pl.String).sort() for name in (USER_ID, ITEM_ID))
        if every_item and items is not None:
            item_ids = all_ids(item_ids, items, "item", item_column)
        user_table, user_notes = _attributes(user_ids, users, "user", None)
        item_table, item_notes = _attributes(item_ids, items, "item", item_column)
        interactions = events.with_columns(
            _index_of(events[USER_ID], user_ids).alias(USER_INDEX),
            _index_of(events[ITEM_ID], item_ids).alias(ITEM_INDEX),
        )
        return cls.create(
            name,
            interactions,
            user_table,
            item_table,
            report=report.with_notes(*user_notes, *item_notes),
            source=source,
            licence=licence,
        )

    @property
    def n_users(self) -> int:
        """Number of users."""
        return self.users.height

    @property
    def n_items(self) -> int:
        """Number of items."""
        return self.items.height

    def histories(self) -> Histories:
        """Returns every interaction of every user, oldest first; row = user_index."""
        return Histories.from_sorted(
            self.interactions[USER_INDEX].to_numpy(),
            self.interactions[ITEM_INDEX].to_numpy(),
            self.interactions[TIMESTAMP].to_numpy(),
            self.n_users,
            self.interactions[VALUE].to_numpy(),
        )

    def popularity(self) -> npt.NDArray[np.int64]:
        """Returns the number of interactions of each item, (n_items,) int64."""
        counts: npt.NDArray[np.int64] = np.bincount(
            self.interactions[ITEM_INDEX].to_numpy(), minlength=self.n_items
        )
        return counts

    def first_seen(self) -> npt.NDArray[np.int64]:
        """Returns when each item had its first interaction, seconds, 0 for none, (n_items,) int64."""
        first = np.zeros(self.n_items, np.int64)
        earliest = self.interactions.group_by(ITEM_INDEX).agg(pl.col(TIMESTAMP).min())
        first[earliest[ITEM_INDEX].to_numpy()] = earliest[TIMESTAMP].to_numpy()
        return first

    def save(self, folder: str | Path) -> None:
        """Writes a new folder of the tables and a description, all of it or nothing.

        Raises InvalidRequest where the folder exists.
        """
        folder = Path(folder)
        if folder.exists():
            cure = "Remove it, or choose another."
            raise InvalidRequest(
                f"dataset folder {folder}", found="there", expected="a new folder", cure=cure
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
        partial.mkdir()
        try:
            write_mapped(self.interactions, partial / INTERACTIONS)
            for name, table in zip(TABLES, (self.users, self.items), strict=True):
                table.write_parquet(partial / f"{name}.parquet")
            description = json.dumps(self._description(), ensure_ascii=False, indent=2) + "\n"
            (partial / DESCRIPTION).write_text(description, encoding="utf-8")
            _sync(partial.iterdir())
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _sync([folder.parent])

    @classmethod
    def load(cls, folder: str | Path) -> "Dataset":
        """Opens what ``save`` wrote, the interactions mapped.

        Raises DataError where a file is missing, damaged or changed.
        """
        folder = Path(folder)
        description = _read_description(folder)
        try:
            interactions = read_mapped(folder / INTERACTIONS)
            users, items = (pl.read_parquet(folder / f"{name}.parquet") for name in TABLES)
            report = CleaningReport.from_dict(description.pop("report"))
            expected_hash = description.pop("sha256")
            dataset = cls.create(
                interactions=interactions, users=users, items=items, report=report, **description
            )
        except (KeyError, TypeError, OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
            raise _damaged(folder, str(error).split("\n", 1)[0] or "not complete") from error
        if dataset.sha256 != expected_hash:
            raise _damaged(folder, "changed since it was written")
        return dataset

    def _description(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "source": self.source,
            "licence": self.licence,
            "sha256": self.sha256,
            "report": self.report.as_dict(),
        }


def _attributes(
    ids: pl.Series, table: pl.DataFrame | None, role: str, column: str | None
) -> tuple[pl.DataFrame, list[str]]:
    return (ids.to_frame(), []) if table is None else join_attributes(ids, table, role, column)


def _index_of(ids: pl.Series, sorted_ids: pl.Series) -> pl.Series:
    vocabulary = sorted_ids.cast(ids.dtype).to_frame("id").with_row_index("index")
    joined = ids.to_frame("id").join(vocabulary, on="id", how="left", maintain_order="left")
    return joined["index"].cast(pl.Int32)


def _is_sorted(interactions: pl.DataFrame) -> bool:
    """Returns whether users ascend and, of each, times: what is sorted needs no copy."""
    for start in range(0, interactions.height, HASH_BATCH):
        # One row more: the next part begins where this one ends.
        part = interactions.slice(start, HASH_BATCH + 1)
        users, times = (np.diff(part[name].to_numpy()) for name in (USER_INDEX, TIMESTAMP))
        if (users < 0).any() or ((users == 0) & (times < 0)).any():
            return False
    return True


def _check_tables(interactions: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame) -> None:
    for name, kind in INTERACTIONS_SCHEMA.items():
        if interactions.schema[name] != kind:
            raise DataError(f"column {name}", found=str(interactions.schema[name]), expected=str(kind))
        if interactions[name].null_count():
            raise DataError(f"column {name}", found="partly empty", expected="a value in every row")
    for index, table, id_name in ((USER_INDEX, users, USER_ID), (ITEM_INDEX, items, ITEM_ID)):
        if table.columns[:1] != [id_name] or table.schema[id_name] != pl.String:
            raise DataError(f"first column of {id_name[:4]}s", found=str(table.columns), expected=id_name)
        if table[id_name].n_unique() != table.height or table[id_name].null_count():
            raise DataError(id_name, found="repeated or empty", expected="distinct ids")
        lowest, highest = interactions[index].min(), interactions[index].max()
        if isinstance(lowest, int) and isinstance(highest, int) and not 0 <= lowest <= highest < table.height:
            raise DataError(index, found=f"{lowest} to {highest}", expected=f"0 to {table.height - 1}")


def _content_hash(interactions: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame) -> str:
    digest = hashlib.sha256()
    for name in INTERACTIONS_SCHEMA:
        digest.update(np.ascontiguousarray(interactions[name].to_numpy()).data)
    texts = [users[USER_ID], items[ITEM_ID]]
    if ACTION in interactions.columns:
        texts.append(interactions[ACTION].cast(pl.String).fill_null(""))
    for text in texts:
        # The lengths first: without them "ab","c" and "a","bc" would hash alike.
        digest.update(text.str.len_bytes().cast(pl.UInt32).to_numpy().data)
        for start in range(0, len(text), HASH_BATCH):
            digest.update(text.slice(start, HASH_BATCH).str.join("").item().encode())
    return digest.hexdigest()


def _read_description(folder: Path) -> dict[str, Any]:
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"dataset folder {folder}", found=f"without {DESCRIPTION}", expected="a saved dataset"
        ) from error
    except ValueError as error:
        raise _damaged(folder, f"damaged in {DESCRIPTION}") from error
    if not isinstance(description, dict) or description.pop("format_version", None) != FORMAT_VERSION:
        raise _damaged(folder, "of another format version")
    return description


def _damaged(folder: Path, found: str) -> DataError:
    return DataError(
        f"dataset folder {folder}",
        found=found,
        expected=f"a dataset of format version {FORMAT_VERSION}",
        cure="Make it again from its source.",
    )


def _sync(paths: Iterable[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
