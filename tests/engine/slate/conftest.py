"""An engine that the laws of slates ask many times."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from recserve.engine import Engine


@pytest.fixture(scope="module")
def shop(bundle_folder: Path) -> Iterator[Engine]:
    """One engine for a module: its tests observe nothing."""
    with Engine.load(bundle_folder) as engine:
        yield engine
