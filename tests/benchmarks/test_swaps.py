"""The benchmark of swaps runs, and its checks can fail."""

import json
from pathlib import Path

import pytest

from recserve.benchmarks import swaps
from recserve.errors import CheckFailed


@pytest.mark.slow
def test_a_short_run_loses_nothing(bundle_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [
        str(bundle_folder),
        "--swaps",
        "4",
        "--rounds",
        "2",
        "--interval",
        "0.25",
        "--no-trial",
        "--json",
    ]
    assert swaps.main(arguments) == 0
    result = json.loads(capfd.readouterr().out)
    assert (result["swaps"], result["failed"], result["mixed"]) == (4, 0, 0)
    assert result["requests"] > 0


@pytest.mark.parametrize(
    "load",
    [
        swaps.Load(latencies=[0.1], failed=["UNAVAILABLE"]),
        swaps.Load(latencies=[0.1], mixed=1),
        swaps.Load(),
    ],
)
def test_a_lost_or_mixed_reply_fails_the_run(load: swaps.Load) -> None:
    with pytest.raises(CheckFailed):
        swaps._check(load)


def test_percentiles() -> None:
    load = swaps.Load(latencies=[i / 1000 for i in range(1000, 0, -1)])
    assert (load.p99(), load.p50()) == (0.991, 0.5005)
