"""Reads a table from a file of any supported format, judging the content and not only its name.

Delimited text and JSON lines are read as strings: cleaning judges types, so that one bad value is a
count in a report and not a crash. Parquet keeps its types.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import polars as pl

from recserve.errors import DataError, InvalidRequest, nearest

FORMATS = {
    "csv": "delimited text",
    "tsv": "delimited text",
    "parquet": "Parquet",
    "jsonl": "JSON lines",
    "recbole": "a RecBole atomic file",
}
SUFFIXES = {
    **dict.fromkeys((".csv", ".txt", ".dat", ".data"), "csv"),
    **dict.fromkeys((".tsv", ".tab"), "tsv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".inter", ".item", ".user"), "recbole"),
}
RECBOLE_TYPES = ("token", "token_seq", "float", "float_seq")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
GZIP_MAGIC = b"\x1f\x8b"
MAGICS = ((b"PAR1", "Parquet"), (b"PK\x03\x04", "a zip archive"), (GZIP_MAGIC, "gzip data"))
# MovieLens separates with two characters and the parser wants one byte: the ASCII unit separator
# takes their place, which text that people write does not contain.
UNIT_SEPARATOR = "\x1f"


def read_table(path: str | Path, format: str | None = None) -> pl.DataFrame:
    """Reads one file; ``format`` is one of FORMATS, or None: as the suffix says (``.gz`` may follow it).

    Text without a header (a first line in which a field is a number) gets the names column_1, column_2, …
    Raises DataError for a file that is missing, empty or not what its name says; InvalidRequest for an
    unknown format.
    """
    path = Path(path)
    if path.is_dir():
        raise _refusal(path, "a directory", "a file", "Name one file in it.")
    if not path.exists():
        raise _refusal(path, "missing", "a file", "Check the path.")
    expected = _expected_format(path, format)
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            content = head if head.startswith(b"PAR1") else head + file.read()
    except OSError as error:
        raise _refusal(path, error.strerror or "not readable", "a readable file", "") from error
    if content.startswith(GZIP_MAGIC) and expected != "parquet":
        content = _decompress(path, content)
    _check_content(path, content, expected)
    if expected == "parquet":
        table = _read_parquet(path)
    else:
        content = content.removeprefix(BYTE_ORDER_MARK)
        _check_utf_8(path, content)
        readers = {
            "csv": _read_delimited,
            "tsv": _read_tabbed,
            "jsonl": _read_jsonl,
            "recbole": _read_recbole,
        }
        table = readers[expected](path, content)
    if table.is_empty():
        raise _refusal(path, "without any row", "a table with rows", "")
    return table


def _expected_format(path: Path, format: str | None) -> str:
    if format is not None:
        if format not in FORMATS:
            expected = f"one of {', '.join(FORMATS)}"
            raise InvalidRequest("format", found=format, expected=expected, cure=nearest(format, FORMATS))
        return format
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in SUFFIXES:
        found = f"of unknown kind {suffix}" if suffix else "a name without suffix"
        raise _refusal(path, found, f"one of {', '.join(SUFFIXES)} (and .gz)", "Or name its format.")
    return SUFFIXES[suffix]


def _decompress(path: Path, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise _refusal(
            path, f"damaged gzip data ({error})", "a complete gzip file", "Fetch it again."
        ) from error


def _check_content(path: Path, content: bytes, expected: str) -> None:
    found = content_kind(content)
    if found == FORMATS[expected]:
        return
    cures = {
        "Parquet": "Name it .parquet.",
        "JSON lines": "Name it .jsonl.",
        "a RecBole atomic file": "Name it .inter, .item or .user.",
        "delimited text": "Name it .csv or .tsv.",
        "a JSON array": "Write one object a line.",
        "a zip archive": "Extract it, or save the sheet as CSV.",
        "gzip data": "Decompress it: Parquet compresses itself.",
        "not UTF-8 text": "Save it as UTF-8 text.",
        "empty": "Write events into it, one a line.",
    }
    raise _refusal(path, found, FORMATS[expected], cures.get(found, "Save the table itself, not a page."))


def content_kind(content: bytes) -> str:
    """Returns what the first bytes say the content is: a value of FORMATS, or another kind of file."""
    for magic, kind in MAGICS:
        if content.startswith(magic):
            return kind
    head = content[:4096].removeprefix(BYTE_ORDER_MARK)
    text = head.decode("utf-8", errors="replace").lstrip()
    if not text:
        return "empty"
    if any(character < " " and character not in "\t\r\n\f" for character in text) or text[0] == "\ufffd":
        return "not UTF-8 text"
    if text[0] in "{[<":
        return {"{": "JSON lines", "[": "a JSON array", "<": "a web page or XML"}[text[0]]
    header = text.splitlines()[0].split("\t")
    if all(field.rpartition(":")[2] in RECBOLE_TYPES and ":" in field for field in header):
        return "a RecBole atomic file"
    return "delimited text"


def _check_utf_8(path: Path, content: bytes) -> None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"not UTF-8 text from line {line} on"
        raise _refusal(path, found, "UTF-8 text", "Convert it, for example with iconv.") from error


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        found = f"damaged Parquet data ({_first_line(error)})"
        raise _refusal(path, found, "a complete Parquet file", "Write it again.") from error


def _read_delimited(path: Path, content: bytes) -> pl.DataFrame:
    first_line = content.split(b"\n", 1)[0].decode()
    if "::" in first_line:
        content = content.replace(b"::", UNIT_SEPARATOR.encode())
        return _parse_delimited(path, content, UNIT_SEPARATOR, quoted=False)
    # A comma wins; without one, the first of the other usual delimiters that the first line has.
    delimiter = next((mark for mark in ",\t;|" if mark in first_line), ",")
    return _parse_delimited(path, content, delimiter, quoted=True)


def _read_tabbed(path: Path, content: bytes) -> pl.DataFrame:
    return _parse_delimited(path, content, "\t", quoted=True)


def _parse_delimited(path: Path, content: bytes, delimiter: str, *, quoted: bool) -> pl.DataFrame:
    first_row = _first_row(path, content, delimiter, quoted)
    has_header = not any(_is_number(field) for field in first_row)
    if has_header and len(set(first_row)) < len(first_row):
        repeated = next(name for name in first_row if first_row.count(name) > 1)
        raise _refusal(path, f"a table with two columns named {repeated!r}", "different column names", "")
    try:
        return pl.read_csv(
            content,
            has_header=has_header,
            new_columns=None if has_header else [f"column_{i}" for i in range(1, len(first_row) + 1)],
            separator=delimiter,
            quote_char='"' if quoted else None,
            infer_schema=False,
        )
    except pl.exceptions.PolarsError as error:
        found = _first_bad_row(content, delimiter, quoted, len(first_row)) or _first_line(error)
        cure = "Quote fields that hold the delimiter or a line break, and close every quote."
        raise _refusal(path, found, f"{len(first_row)} fields in every line", cure) from error


def _rows(content: bytes, delimiter: str, quoted: bool) -> Iterator[list[str]]:
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline="")
    return csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)


def _first_row(path: Path, content: bytes, delimiter: str, quoted: bool) -> list[str]:
    try:
        return next(row for row in _rows(content, delimiter, quoted) if row)
    except (csv.Error, StopIteration) as error:
        found = f"a table whose first row breaks ({error})"
        raise _refusal(path, found, "a row of column names", "Close every quote.") from error


def _first_bad_row(content: bytes, delimiter: str, quoted: bool, width: int) -> str:
    number = 0
    try:
        for number, row in enumerate(_rows(content, delimiter, quoted), start=1):
            if len(row) > width:
                return f"a table with {len(row)} fields in row {number}"
    except csv.Error as error:
        return f"a table that breaks after row {number} ({error})"
    return ""


def _read_recbole(path: Path, content: bytes) -> pl.DataFrame:
    typed_names = _first_row(path, content, "\t", quoted=False)
    names, types = zip(*(name.rsplit(":", 1) for name in typed_names), strict=True)
    table = _parse_delimited(path, content, "\t", quoted=False)
    table.columns = list(names)
    sequences = [
        pl.col(name).str.split(" ").cast(pl.List(pl.Float64) if kind == "float_seq" else pl.List(pl.String))
        for name, kind in zip(names, types, strict=True)
        if kind.endswith("_seq")
    ]
    try:
        return table.with_columns(sequences)
    except pl.exceptions.PolarsError as error:
        raise _refusal(path, f"a table with a bad float_seq ({_first_line(error)})", "numbers", "") from error


def _read_jsonl(path: Path, content: bytes) -> pl.DataFrame:
    try:
        inferred = pl.read_ndjson(content, infer_schema_length=None).schema
        # Scalars are read again as strings, exactly as written: 64-bit ids must not pass through a float.
        strings = {name: pl.String() for name, kind in inferred.items() if not kind.is_nested()}
        return pl.read_ndjson(content, schema={**inferred, **strings})
    except pl.exceptions.PolarsError as error:
        found = _first_bad_object(content) or _first_line(error)
        raise _refusal(path, found, "one JSON object in every line", "") from error


def _first_bad_object(content: bytes) -> str:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            return f"broken JSON in line {number} ({error})"
        if not isinstance(value, dict):
            return f"JSON without an object in line {number}"
    return ""


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]


def _refusal(path: Path, found: str, expected: str, cure: str) -> DataError:
    return DataError(f"data file {path}", found=found, expected=expected, cure=cure)
