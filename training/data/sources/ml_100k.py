"""MovieLens 100K: 100,000 ratings of 1,682 films by 943 users, 1997 to 1998.

The licence forbids redistribution, so the data is fetched when it is first asked for: from GroupLens, or,
where that address cannot be reached, out of the recbole wheel, which carries it as an example.
"""

import io
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recserve.errors import DataError
from recserve.training.data.cleaning import clean
from recserve.training.data.columns import ITEM_ID, TIMESTAMP, USER_ID, VALUE, ColumnMap
from recserve.training.data.dataset import Dataset
from recserve.training.data.k_core import k_core
from recserve.training.data.sources.cache import has_digest, keep

NAME = "ml-100k"
BASE_URL = "https://files.grouplens.org/datasets/movielens/"
LICENCE = (
    "MovieLens 100K: © GroupLens, University of Minnesota; research use, no redistribution, "
    "no commercial use without permission. Cite Harper & Konstan 2015 (doi:10.1145/2827872)."
)
TIMEOUT_SECONDS = 10
MAX_FETCH_SECONDS = 120
MAX_ARCHIVE_BYTES = 32 << 20
TITLE_AND_YEAR = r"^\s*(?P<title>.*?)\s*(?:\((?P<year>\d{4})\))?\s*(?:\(V\))?\s*$"

Minima = tuple[int, int]
Tables = tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]


@dataclass(frozen=True, slots=True)
class Archive:
    """One file that holds the data set: its name in the cache, its hash, how to fetch and how to read it."""

    file_name: str
    algorithm: str
    digest: str
    fetch: Callable[[Path], None]
    read: Callable[[zipfile.ZipFile], Tables]


def official_archive(base_url: str = BASE_URL, digest: str = "0e33842e24a9c977be4e0107933c0723") -> Archive:
    """Returns the archive as GroupLens publishes it."""
    url = f"{base_url.rstrip('/')}/ml-100k.zip"
    return Archive("ml-100k.zip", "md5", digest, lambda target: _download(url, target), read_official)


def wheel_archive() -> Archive:
    """Returns the recbole wheel, which pip downloads and nobody installs."""
    return Archive(
        "recbole-1.2.1-py3-none-any.whl",
        "sha256",
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        lambda target: _pip_download("recbole==1.2.1", target),
        read_wheel,
    )


def load(
    cache_dir: Path,
    *,
    minima: Minima = (1, 1),
    archives: tuple[Archive, ...] = (),
    on_note: Callable[[str], None] = lambda note: None,
) -> Dataset:
    """Loads the data set from ``cache_dir/ml-100k``, else from the first of ``archives`` that can be fetched.

    ``archives`` are the official one and the wheel unless given. Raises DataError, naming every failure,
    where none can be had.
    """
    folder = cache_dir / NAME
    archives = archives or (official_archive(), wheel_archive())
    archive = next((a for a in archives if has_digest(folder / a.file_name, a.algorithm, a.digest)), None)
    if archive is None:
        archive = _fetch_first(folder, archives, on_note)
        on_note(LICENCE)
    with zipfile.ZipFile(folder / archive.file_name) as content:
        ratings, users, items = archive.read(content)
    events, report = clean(ratings, ColumnMap(user=USER_ID, item=ITEM_ID, timestamp=TIMESTAMP, value=VALUE))
    events = k_core(events, *minima)
    return Dataset.from_events(
        NAME,
        events,
        report=report.after_core(events.height),
        source=archive.file_name,
        licence=LICENCE,
        users=users,
        items=items,
    )


def _fetch_first(folder: Path, archives: tuple[Archive, ...], on_note: Callable[[str], None]) -> Archive:
    failures: list[str] = []
    for archive in archives:
        try:
            keep(folder / archive.file_name, archive.algorithm, archive.digest, archive.fetch)
        except (OSError, DataError, subprocess.SubprocessError) as error:
            failures.append(f"{archive.file_name}: {str(error).strip() or type(error).__name__}")
            on_note(f"not fetched, {failures[-1]}")
        else:
            on_note(f"fetched {archive.file_name} into {folder}")
            return archive
    expected = f"one of {', '.join(archive.file_name for archive in archives)} in {folder} or reachable"
    cure = f"Put one of them there by hand. {' | '.join(failures)}"
    raise DataError(f"dataset {NAME}", found="not to be had", expected=expected, cure=cure)


def _download(url: str, target: Path) -> None:
    deadline = time.monotonic() + MAX_FETCH_SECONDS
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, target.open("wb") as file:
        while chunk := response.read1(1 << 16):
            file.write(chunk)
            # The timeout of the socket alone lets a slow server hold us for ever.
            if time.monotonic() > deadline or file.tell() > MAX_ARCHIVE_BYTES:
                raise OSError(f"{url} is too slow or too large")


def _pip_download(requirement: str, target: Path) -> None:
    folder = target.with_name(target.name + ".pip")
    # A wheel is only unpacked; an sdist would run its build.
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    patience = ["--disable-pip-version-check", "--quiet", "--retries=1", f"--timeout={TIMEOUT_SECONDS}"]
    command = [sys.executable, "-m", "pip", *patience, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MAX_FETCH_SECONDS, check=False)
        if done.returncode:
            last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise OSError(f"pip download {requirement} failed: {last_line}")
        for wheel in folder.glob("*.whl"):
            wheel.replace(target)
    finally:
        for left in folder.glob("*"):
            left.unlink()
        if folder.is_dir():
            folder.rmdir()


def read_official(archive: zipfile.ZipFile) -> Tables:
    """Reads u.data, u.user, u.item and u.genre; returns (ratings, users, items)."""
    ratings = _member(archive, "u.data", "\t", [USER_ID, ITEM_ID, VALUE, TIMESTAMP])
    users = _member(archive, "u.user", "|", [USER_ID, "age", "gender", "occupation", "zip_code"])
    genres = _member(archive, "u.genre", "|", ["genre", "number"])["genre"].drop_nulls().to_list()
    items = _member(archive, "u.item", "|", [ITEM_ID, "title", "released", "video", "url", *genres])
    flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in genres]
    items = items.select(ITEM_ID, "title", pl.concat_list(flags).list.drop_nulls().alias("genres"))
    return ratings, users.drop("zip_code"), _canonical_items(items.with_columns(year=None))


def read_wheel(archive: zipfile.ZipFile) -> Tables:
    """Reads the RecBole atomic files out of the wheel; returns (ratings, users, items)."""
    ratings = _member(archive, "ml-100k.inter", "\t", [USER_ID, ITEM_ID, VALUE, TIMESTAMP], header=True)
    users = _member(
        archive, "ml-100k.user", "\t", [USER_ID, "age", "gender", "occupation", "zip_code"], header=True
    )
    items = _member(archive, "ml-100k.item", "\t", [ITEM_ID, "title", "year", "genres"], header=True)
    items = items.with_columns(
        # The wheel misspells the one film that the source calls "unknown".
        pl.col("title").replace("unkonwn", "unknown"),
        pl.col("genres").str.split(" "),
    )
    return ratings, users.drop("zip_code"), _canonical_items(items)


def _canonical_items(items: pl.DataFrame) -> pl.DataFrame:
    """item_id, title without year, year int32, genres sorted; a column year that is a number wins."""
    parts = items["title"].str.extract_groups(TITLE_AND_YEAR).struct.unnest()
    known = items["year"].cast(pl.Int32, strict=False)
    return pl.DataFrame(
        {
            ITEM_ID: items[ITEM_ID],
            "title": parts["title"],
            "year": known.fill_null(parts["year"].cast(pl.Int32)),
            "genres": items["genres"].list.sort(),
        }
    )


def _member(
    archive: zipfile.ZipFile, file_name: str, separator: str, names: list[str], *, header: bool = False
) -> pl.DataFrame:
    member = next((name for name in archive.namelist() if name.rpartition("/")[2] == file_name), None)
    if member is None:
        raise DataError(str(archive.filename), found=f"without {file_name}", expected=f"the {NAME} archive")
    content = archive.read(member)
    # GroupLens writes Latin-1 and the wheel UTF-8, both without quoting.
    text = content.decode("utf-8" if header else "latin-1")
    return pl.read_csv(
        io.BytesIO(text.encode()),
        separator=separator,
        quote_char=None,
        has_header=False,
        skip_rows=int(header),
        new_columns=names,
        infer_schema=False,
    )
