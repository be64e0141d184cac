"""Readers: every format gives the same table, and a file that is not what its name says is refused."""

import gzip
import io
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import DataError, InvalidRequest
from recserve.training.data import read_table

ROWS = {"user_id": ["u1", "u2"], "item_id": ["ä,1", 'b"2'], "timestamp": ["10", "20"]}
TABLE = pl.DataFrame(ROWS)
CSV = 'user_id,item_id,timestamp\nu1,"ä,1",10\nu2,"b""2",20\n'.encode()
JSONL = (
    '{"user_id":"u1","item_id":"ä,1","timestamp":10}\n\n{"user_id":"u2","item_id":"b\\"2","timestamp":20}\n'
).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("events.csv", CSV),
        ("events.CSV", CSV.replace(b"\n", b"\r\n")),
        ("events.csv", b"\xef\xbb\xbf" + CSV),
        ("events.csv.gz", gzip.compress(CSV, mtime=0)),
        ("events.csv", 'user_id;item_id;timestamp\nu1;"ä,1";10\nu2;"b""2";20'.encode()),
        ("events.tsv", 'user_id\titem_id\ttimestamp\nu1\tä,1\t10\nu2\t"b""2"\t20\n'.encode()),
        ("events.txt", 'user_id|item_id|timestamp\nu1|"ä,1"|10\nu2|"b""2"|20\n'.encode()),
        ("events.dat", 'user_id::item_id::timestamp\nu1::ä,1::10\nu2::b"2::20\n'.encode()),
        ("events.jsonl", JSONL),
        ("events.jsonl.gz", gzip.compress(JSONL, mtime=0)),
        (
            "shop.inter",
            'user_id:token\titem_id:token\ttimestamp:float\nu1\tä,1\t10\nu2\tb"2\t20\n'.encode(),
        ),
    ],
)
def test_every_text_format_gives_the_same_strings(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_table(tmp_path / name).equals(TABLE)


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    table = TABLE.with_columns(pl.col("timestamp").cast(pl.Int64))
    table.write_parquet(tmp_path / "events.parquet")
    assert read_table(tmp_path / "events.parquet").equals(table)


def test_the_format_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "events").write_bytes(CSV)
    assert read_table(tmp_path / "events", format="csv").equals(TABLE)
    with pytest.raises(InvalidRequest, match=r"format is cvs; expected one of csv, .* Did you mean 'csv'\?"):
        read_table(tmp_path / "events", format="cvs")


def test_a_first_line_with_a_number_is_no_header(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n1::661::3::978302109\n")
    table = read_table(tmp_path / "ratings.dat")
    assert table.columns == ["column_1", "column_2", "column_3", "column_4"]
    assert table.row(0) == ("1", "1193", "5", "978300760")


def test_recbole_sequences_become_lists(tmp_path: Path) -> None:
    content = "item_id:token\tgenres:token_seq\tweights:float_seq\n1\tAction War\t0.5 1\n"
    (tmp_path / "films.item").write_text(content)
    assert read_table(tmp_path / "films.item").row(0) == ("1", ["Action", "War"], [0.5, 1.0])


def test_json_keeps_large_numbers_and_mixed_types(tmp_path: Path) -> None:
    lines = ['{"user": 9007199254740993, "tags": ["a"]}', '{"user": "x", "tags": []}', '{"user": 1.5}']
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    table = read_table(tmp_path / "events.jsonl")
    assert table["user"].to_list() == ["9007199254740993", "x", "1.5"]
    assert table["tags"].to_list() == [["a"], [], None]


def test_a_short_line_leaves_the_rest_empty(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user,item\nu1\n")
    assert read_table(tmp_path / "events.csv").row(0) == ("u1", None)


def parquet_bytes() -> bytes:
    buffer = io.BytesIO()
    TABLE.write_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", b"", "is empty; expected delimited text"),
        ("a.csv", b" \n\n", "is empty; expected delimited text"),
        ("a.csv", b"user,item\n", "is without any row; expected a table with rows"),
        ("a.csv", parquet_bytes(), "is Parquet; expected delimited text. Name it .parquet."),
        ("a.csv", JSONL, "is JSON lines; expected delimited text. Name it .jsonl."),
        ("a.csv", b"<html></html>", "is a web page or XML; expected delimited text."),
        ("a.csv", b"PK\x03\x04rest", "is a zip archive; expected delimited text. Extract it"),
        ("a.csv", bytes(range(256)), "is not UTF-8 text; expected delimited text. Save it as UTF-8"),
        ("a.csv", "user,item\nu1,ä\n".encode("utf-16"), "is not UTF-8 text; expected delimited text."),
        ("a.csv", "user,item\nu1,ä\n".encode("latin-1"), "is not UTF-8 text from line 2 on; expected UTF-8"),
        ("a.csv", b"user:token\titem:token\n1\t2\n", "is a RecBole atomic file; expected delimited text."),
        ("a.csv", b"user,user\n1,2\n", "is a table with two columns named 'user'; expected different"),
        ("a.csv", b"user,item\nu1,i1\nu1,i1,3\n", "is a table with 3 fields in row 3; expected 2 fields"),
        ("a.csv", b'user,item\nu1,"i1\nu2,i2\n', "is a table that breaks after row 1 .* close every quote"),
        (
            "a.csv.gz",
            gzip.compress(CSV, mtime=0)[:-9],
            "is damaged gzip data .*; expected a complete gzip file",
        ),
        ("a.parquet", CSV, "is delimited text; expected Parquet. Name it .csv or .tsv."),
        (
            "a.parquet",
            gzip.compress(parquet_bytes(), mtime=0),
            "is gzip data; expected Parquet. Decompress it",
        ),
        ("a.parquet", parquet_bytes()[:-20], "is damaged Parquet data .*; expected a complete Parquet file"),
        ("a.parquet", b"PAR1junk", "is damaged Parquet data"),
        ("a.inter", CSV, "is delimited text; expected a RecBole atomic file."),
        ("a.item", b"id:token\tw:float_seq\n1\tx y\n", "is a table with a bad float_seq"),
        ("a.json", b"[1, 2]", "is a JSON array; expected JSON lines. Write one object a line."),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "is broken JSON in line 2 .*; expected one JSON object"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "is JSON without an object in line 2; expected one JSON object"),
        ("a.jsonl", CSV, "is delimited text; expected JSON lines."),
        ("a.xlsx", b"PK\x03\x04rest", "is of unknown kind .xlsx; expected one of .csv, "),
        ("a.csv", b'"user,item\nu1,i1\n', r"is a table whose first row breaks .*Close every quote"),
        ("noname", CSV, "is a name without suffix; expected one of .csv, .* Or name its format."),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=sentence) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"data file {path} is ")
    assert "\n" not in str(caught.value)


@settings(derandomize=True, deadline=None, database=None, max_examples=150)
@given(
    junk=st.one_of(
        st.binary(max_size=64),
        st.text('ab,;:"\t\r\n{}[]01', max_size=40).map(str.encode),
        st.binary(max_size=32).map(lambda tail: b"PAR1" + tail),
        st.binary(max_size=32).map(lambda tail: gzip.compress(b"user,item\n", mtime=0) + tail),
        st.text('ab:1"', max_size=12).map(lambda line: f"user:token\titem:token\n{line}\t{line}".encode()),
    ),
    suffix=st.sampled_from([".csv", ".tsv", ".dat", ".parquet", ".jsonl", ".inter", ".csv.gz"]),
)
def test_any_bytes_give_a_table_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"junk{suffix}"
    path.write_bytes(junk)
    try:
        table = read_table(path)
    except DataError as error:
        assert str(error).startswith("data file ")  # noqa: PT017
    else:
        assert table.height > 0


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv is missing; expected a file\. Check the path\."):
        read_table(tmp_path / "gone.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv is a directory; expected a file\."):
        read_table(tmp_path / "folder.csv")
