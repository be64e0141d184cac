"""The example of docs/ranking.md: its commands make a bundle that tells how likely a loan is not repaid."""

import re
import shlex
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recserve.engine import Engine, EngineConfig, Request, cli

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "ranking.md").read_text(encoding="utf-8")
N_APPLICANTS, N_PRODUCTS, N_LOANS = 120, 12, 3000


@pytest.fixture
def loans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Loans of which every third product and every second applicant have a higher risk."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(5)
    applicant, product = rng.integers(0, N_APPLICANTS, N_LOANS), rng.integers(0, N_PRODUCTS, N_LOANS)
    risk = 0.1 + 0.3 * (product % 3 == 0) + 0.3 * (applicant % 2 == 0)
    pl.DataFrame(
        {
            "applicant": [f"applicant-{number}" for number in applicant],
            "product": [f"loan-{number}" for number in product],
            "granted": 1_700_000_000 + 3600 * np.arange(N_LOANS),
            "repaid": (rng.random(N_LOANS) >= risk).astype(np.int64),
        }
    ).write_csv("loans.csv")
    months = [12 * (1 + number % 3) for number in range(N_PRODUCTS)]
    names = [f"loan-{number}" for number in range(N_PRODUCTS)]
    pl.DataFrame({"item_id": names, "months": months}).write_csv("products.csv")
    return tmp_path


def test_the_example_tells_good_risks_from_bad_ones(loans: Path) -> None:
    section = PAGE.partition("## Example: credit risk")[2]
    commands = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert commands is not None
    for line in commands[1].replace("\\\n", " ").splitlines():
        name, *arguments = shlex.split(line)
        assert name == "recserve"
        if arguments[0] != "serve":
            with pytest.raises(SystemExit) as end:
                cli.main(arguments)
            assert end.value.code == 0
    offered = ["loan-0", "loan-1"]
    with Engine.load(loans / "bundles" / "risk", EngineConfig(provider="cpu")) as engine:
        risks = {}
        for number in range(20):
            for hour in ("3", "15"):
                request = Request(user_id=f"applicant-{number}", predict="click", context={"hour": hour})
                found = engine.rank(request, offered).items
                risks[number, hour] = {item.item_id: 1 - item.predictions["click"] for item in found}
    # A decision does not depend on when it was asked.
    assert all(risks[number, "3"] == risks[number, "15"] for number in range(20))
    mean = {
        (product, parity): np.mean([risks[number, "3"][product] for number in range(parity, 20, 2)])
        for product in offered
        for parity in (0, 1)
    }
    assert mean["loan-0", 0] > mean["loan-1", 0] > mean["loan-1", 1]
    assert mean["loan-0", 1] > mean["loan-1", 1]
    # Calibrated: near what the loans were made with.
    assert mean["loan-0", 0] == pytest.approx(0.7, abs=0.15)
    assert mean["loan-1", 1] == pytest.approx(0.1, abs=0.15)
