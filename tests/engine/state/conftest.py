"""Logs in temporary folders, and events to put in them."""

from pathlib import Path
from typing import Any

import pytest

from recserve.engine.state.config import StateConfig
from recserve.engine.state.events import Event

pytest.importorskip("apsw")
pytest.importorskip("cryptography")


@pytest.fixture
def config(tmp_path: Path) -> StateConfig:
    """The settings of a durable log."""
    return StateConfig(url=f"sqlite:///{tmp_path}/events")


def event(number: int, *, user: str = "u", **fields: Any) -> Event:
    """Event ``number`` of a user; the same number, the same event."""
    return Event(
        **{
            "user_id": user,
            "item_id": f"i{number}",
            "event_id": f"e{number}",
            "timestamp": 1_750_000_000 + number,
            **fields,
        }
    )
