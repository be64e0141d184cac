"""The benchmark of swaps runs, and its checks can fail."""

import json
from pathlib import Path

import numpy as np
import pytest

from recserve.benchmarks import swaps
from recserve.errors import CheckFailed
from recserve.proto import recommender_pb2 as pb


@pytest.mark.slow
def test_a_short_run_loses_nothing(bundle_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [
        str(bundle_folder),
        "--swaps",
        "2",
        "--rounds",
        "1",
        "--interval",
        "8",
        "--steady",
        "0.5",
        "--rate",
        "50",
        "--no-trial",
        "--json",
    ]
    assert swaps.main(arguments) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["swaps"] >= 2
    assert (result["failed"], result["mixed"]) == (0, 0)
    assert result["requests"] > 0


@pytest.mark.parametrize(
    "window",
    [
        swaps.Window(np.array([0.1]), failed=1),
        swaps.Window(np.array([0.1]), mixed=1),
        swaps.Window(np.array([])),
    ],
)
def test_a_lost_or_mixed_reply_fails_the_run(window: swaps.Window) -> None:
    with pytest.raises(CheckFailed):
        swaps._check(window)


def test_a_slate_of_two_versions_is_told_from_one_of_its_own() -> None:
    slate = pb.Slate(bundle_version="v1", items=[pb.SlateItem(item_id="v1:a")])
    assert swaps._of_one_version(slate.SerializeToString()) == {}
    slate.items.add(item_id="v2:b")
    with pytest.raises(ValueError, match="versions"):
        swaps._of_one_version(slate.SerializeToString())
