"""The verb ``events``: the log of what users did, for operators."""

import datetime
import itertools
import json as json_module
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recserve import console

if TYPE_CHECKING:
    from recserve.engine.state.state import LoggedEvent

StateOption = Annotated[str, typer.Option("--state", help="sqlite:///PATH of the log.")]
KeyFileOption = Annotated[Path | None, typer.Option(help="Its master keys. Default: PATH.master.")]
SHOWN = 20


def register(add: Callable[..., Any]) -> None:
    """Adds the verb to the command line."""
    add(events)


def events(
    state: StateOption,
    user: Annotated[str, typer.Option(help="Only events of this user.")] = "",
    after: Annotated[int, typer.Option(help="Only events with larger numbers.")] = 0,
    limit: Annotated[int, typer.Option("-n", "--limit", help="Most events; 0: all with --json.")] = 0,
    key_file: KeyFileOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Print the log of events, also while a server writes it; users are pseudonyms."""
    from recserve.engine.state.config import StateConfig
    from recserve.engine.state.state import read_log

    found = read_log(StateConfig(url=state, key_file=key_file), user_id=user, after=after)
    if json:
        for event in itertools.islice(found, limit or None):
            line = json_module.dumps(as_json(event), ensure_ascii=False)
            console.stdout.file.write(f"{line}\n")
        console.stdout.file.flush()
        return
    rows = [
        [
            event.seq,
            event.event.user_id[:12],
            event.event.action,
            event.event.item_id,
            "" if event.event.value is None else f"{event.event.value:g}",
            _date(event.event.timestamp),
        ]
        for event in itertools.islice(found, limit or SHOWN)
    ]
    console.print_table(f"{state}", ["number", "user (pseudonym)", "action", "item", "value", "time"], rows)


def as_json(logged: "LoggedEvent") -> dict[str, Any]:
    """Returns an event of the log as JSON values."""
    from recserve.engine.state.events import EXPORT, LEARN, SERVE

    event = logged.event
    return {
        "seq": logged.seq,
        "received": logged.received,
        "user": event.user_id,
        "item_id": event.item_id,
        "action": event.action,
        "value": event.value,
        "timestamp": event.timestamp,
        "event_id": event.event_id,
        "slate_id": event.slate_id,
        "rank": event.rank,
        "context": dict(event.context),
        "consent": [
            name
            for name, bit in (("serve", SERVE), ("learn", LEARN), ("export", EXPORT))
            if (event.purposes or 0) & bit
        ],
    }


def _date(timestamp: int) -> str:
    return datetime.datetime.fromtimestamp(timestamp, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
