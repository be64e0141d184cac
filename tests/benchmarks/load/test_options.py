"""What the command line says is read as it is written, and refused with the allowed form."""

import pytest

from recserve.benchmarks.load import options
from recserve.benchmarks.load.options import Client, Pace, Slo, Target
from recserve.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("embed:demo/bundle", Target("embed", path="demo/bundle")),
        ("embed:///srv/b", Target("embed", path="/srv/b")),
        ("grpc://127.0.0.1:50051", Target("grpc", "127.0.0.1", 50051)),
        ("grpc://[::1]:1", Target("grpc", "::1", 1)),
        ("oip://host:8001/shop", Target("oip", "host", 8001, "shop")),
        ("http://host:80/", Target("http", "host", 80)),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert options.read_target(text) == target


@pytest.mark.parametrize(
    "text",
    [
        "",
        "embed:",
        "host:1",
        "grpc://host",
        "grpc://h:1/x",
        "oip://h:1",
        "https://h:1",
        "grpc://h:x",
        "grpc://h:99999",
    ],
)
def test_no_targets(text: str) -> None:
    with pytest.raises(InvalidRequest, match="expected"):
        options.read_target(text)


def test_promises() -> None:
    assert options.read_slos(["p99:20ms", "p99.9:1s", "p50:500us"]) == (
        Slo(99, 20),
        Slo(99.9, 1000),
        Slo(50, 0.5),
    )


def test_a_sweep_ends_at_its_last_rate() -> None:
    assert options.read_sweep("100:200:50") == (100, 150, 200)
    assert options.read_sweep("0.1:0.3:0.1") == pytest.approx((0.1, 0.2, 0.3))


def test_a_mix_sums_to_one() -> None:
    assert options.read_mix("recommend:90,similar:10") == (("recommend", 0.9), ("similar", 0.1))


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (options.read_arrivals, "gamma"),
        (options.read_arrivals, "poisson:2"),
        (options.read_arrivals, "gamma:-1"),
        (options.read_mix, "recommend:0"),
        (options.read_mix, "recommend,recommend"),
        (options.read_mix, "buy"),
        (options.read_percentiles, "100"),
        (options.read_percentiles, "fast"),
        (options.read_sweep, "1:2"),
        (options.read_sweep, "2:1:1"),
        (lambda text: options.read_slos([text]), "p99:20"),
        (lambda text: options.read_slos([text]), "p100:1ms"),
        (lambda text: options.read_headers([text]), "no colon"),
        (lambda text: options.read_headers([text]), "x: a\r\nb: c"),
    ],
)
def test_refusals(read: object, text: str) -> None:
    assert callable(read)
    with pytest.raises(InvalidRequest, match="expected"):
        read(text)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rate": 1, "concurrency": 1},
        {"rate": 1, "duration": 0},
        {"rate": 1, "think": 1},
        {"rate": 1, "timeout": 0},
        {"rate": float("inf")},
    ],
)
def test_a_pace_is_one_of_two(fields: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest):
        Pace(**fields)  # type: ignore[arg-type]


def test_every_process_has_a_connection() -> None:
    with pytest.raises(InvalidRequest, match="--processes"):
        Client(processes=3, connections=2)
