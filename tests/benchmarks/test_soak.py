"""The memory test finds what grows, whatever else moves, and holds what it promises against a real server."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.benchmarks import soak


@given(st.floats(-50, 50), st.integers(0, 2**20))
def test_the_slope_is_that_of_the_line_under_the_noise(bytes_per_request: float, seed: int) -> None:
    rng = random.Random(seed)
    samples = [(n, int(1e8 + bytes_per_request * n + rng.gauss(0, 2000))) for n in range(0, 50_000, 1000)]
    # A collection that is late, and one that is early.
    samples[7], samples[31] = (7000, 10**9), (31_000, 0)
    assert soak.slope(samples) == pytest.approx(bytes_per_request, abs=0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_unexpected": 1}, "1 requests ended otherwise"),
        ({"bytes_per_request": 21.0}, "21.0 bytes stay"),
        ({"planted_leak_bytes_per_request": 3.0}, "leak was not found"),
        ({"more_threads": 9}, "9 more_threads"),
    ],
)
def test_a_broken_promise_is_told(change: dict[str, float], words: str) -> None:
    good = {"n_unexpected": 0, "bytes_per_request": 3.0, "planted_leak_bytes_per_request": 100.0}
    good |= {"more_files": 0, "more_threads": 1}
    assert soak.broken_promises(good) == []
    [line] = soak.broken_promises({**good, **change})
    assert words in line


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["grpcio", "native"])
def test_a_server_stays_what_it_is(
    bundle_folder: Path, transport: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(bundle_folder), "--transport", transport, "--json"]
    code = soak.main(arguments)
    found = json.loads(capsys.readouterr().out)
    assert code == 0, found
    assert sum(found[f"n_{kind}"] for kind in soak.MIX) == 100_000
