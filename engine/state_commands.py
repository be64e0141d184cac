"""The verbs ``events`` and ``report``: the log of what users did, for operators."""

import datetime
import itertools
import json as json_module
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recserve import console

if TYPE_CHECKING:
    from recserve.engine.state.estimators import Estimate
    from recserve.engine.state.state import LoggedEvent

StateOption = Annotated[
    str, typer.Option("--state", help="The log: sqlite:///PATH, redis://…, postgresql://…")
]
KeyFileOption = Annotated[
    Path | None, typer.Option(help="Its master keys. Default: PATH.master of sqlite:///PATH.")
]
SHOWN = 20
# Fewer are too few to tell anything, and near to a person.
MIN_USERS = 10


def register(add: Callable[..., Any]) -> None:
    """Adds the verbs to the command line."""
    add(events)
    add(report)


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

    config = StateConfig(url=state, key_file=key_file)
    found = read_log(config, user_id=user, after=after)
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
    console.print_table(
        config.shown_url, ["number", "user (pseudonym)", "action", "item", "value", "time"], rows
    )


def report(
    state: StateOption,
    since: Annotated[
        datetime.datetime | None, typer.Option(help="Only events that came since (UTC), as 2026-11-01.")
    ] = None,
    min_users: Annotated[int, typer.Option(help="Users below which no rate is shown.")] = MIN_USERS,
    key_file: KeyFileOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the tables.")] = False,
) -> None:
    """Print what became of the slates, by arm and variant: CTR, conversion, CTR by rank, IPS and SNIPS.

    Impressions and actions are joined by user, slate id and item; rates come with 95 % intervals. IPS and
    SNIPS estimate the CTR without exploration. It may run while a server writes the log.
    """
    from recserve.engine.state import report as reports
    from recserve.engine.state.attribution import attribute
    from recserve.engine.state.config import StateConfig
    from recserve.engine.state.state import read_log

    start = since.replace(tzinfo=datetime.UTC).timestamp() if since else 0
    config = StateConfig(url=state, key_file=key_file)
    logged = read_log(config)
    impressions = attribute(one.event for one in logged if one.received >= start)
    rows = reports.report(impressions, min_users=min_users)
    if json:
        unattributed = {"n_unattributed": impressions.n_unattributed}
        console.print_json({"groups": [reports.as_json(row) for row in rows], **unattributed})
        return
    columns = ["arm", "variant", "users", "impressions", "CTR %", "conversion %", "IPS %", "SNIPS %"]
    cells = [
        [*row[:4], *(_percent(one) for one in (row.ctr, row.conversion, row.ips, row.snips))] for row in rows
    ]
    console.print_table(f"{config.shown_url}: clicks and purchases per impression", columns, cells)
    by_rank = [
        [row.arm, row.variant, one.rank, one.n_impressions, _percent(one.ctr)]
        for row in rows
        for one in row.ranks[:SHOWN]
    ]
    console.print_table("CTR by rank", ["arm", "variant", "rank", "impressions", "CTR %"], by_rank)
    if impressions.n_unattributed:
        console.note(f"{impressions.n_unattributed} actions name a slate that no impression is known of")


def _percent(estimate: "Estimate | None") -> str:
    if estimate is None:
        return "–"
    if estimate.interval is None:
        return f"{100 * estimate.value:.2f}"
    return f"{100 * estimate.value:.2f} ±{50 * (estimate.interval[1] - estimate.interval[0]):.2f}"


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
        "arm": event.arm,
        "variant": event.variant,
        "propensity": event.propensity,
        "explored": event.explored,
        "context": dict(event.context),
        "consent": [
            name
            for name, bit in (("serve", SERVE), ("learn", LEARN), ("export", EXPORT))
            if (event.purposes or 0) & bit
        ],
    }


def _date(timestamp: int) -> str:
    return datetime.datetime.fromtimestamp(timestamp, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
