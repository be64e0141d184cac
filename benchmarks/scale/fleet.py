"""From what one request costs here to machines and money, on paper."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from recserve.benchmarks.scale.fit import cost_at
from recserve.errors import InvalidRequest

HOURS_PER_MONTH = 730
GB = 1e9


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is to be served, by machines of which kind, at which price.

    ``items`` 0: as many as were measured at most. ``server_us``: CPU time of one request around the engine
    (network, protocol), which ``bench load`` of a server shows and this benchmark does not.
    ``utilisation``: the share of the cores' time that may be busy. Prices in euros.
    """

    rate: float = 10_000.0
    items: int = 0
    users: int = 1_000_000
    server_us: float = 50.0
    utilisation: float = 0.6
    node_cores: int = 16
    core_hour: float = 0.03
    gb_hour: float = 0.004

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (not value and name in ("rate", "utilisation", "node_cores")):
                raise InvalidRequest(f"--{name.replace('_', '-')}", found=value, expected="above 0")
        if self.utilisation > 1:
            raise InvalidRequest("--utilisation", found=self.utilisation, expected="at most 1")


def plan(
    fleet: Fleet, rows: Sequence[Mapping[str, Any]], memory: Mapping[str, float], batch: int
) -> dict[str, Any]:
    """Returns cores, machines, memory and euros per month, and the ``assumptions``, a sentence each.

    ``rows``: those of the bundle by items.
    """
    sizes = [row["size"] for row in rows]
    items = fleet.items or sizes[-1]
    engine_us = cost_at(items, sizes, [row["cpu_us_per_request"] for row in rows])
    cores = fleet.rate * (engine_us + fleet.server_us) / 1e6 / fleet.utilisation
    nodes = math.ceil(cores / fleet.node_cores)
    node_gb = (
        memory["process_bytes"] + items * memory["item_bytes"] + fleet.users * memory["user_bytes"]
    ) / GB
    hourly = nodes * (fleet.node_cores * fleet.core_hour + node_gb * fleet.gb_hour)
    beyond = items > sizes[-1]
    how = f"in proportion from {sizes[-1]:,}" if beyond else "between measured sizes"
    return {
        "rate": fleet.rate,
        "items": items,
        "users": fleet.users,
        "engine_us": engine_us,
        "cores": cores,
        "nodes": nodes,
        "node_gb": node_gb,
        "euros_per_month": hourly * HOURS_PER_MONTH,
        "euros_per_million": hourly / 3600 / fleet.rate * 1e6,
        "assumptions": [
            f"A request costs {engine_us:.0f} µs of CPU in the engine at {items:,} items ({how}), "
            f"in batches of {batch}, on cores like those of this machine.",
            f"The server around it costs {fleet.server_us:g} µs more (not measured here).",
            f"Cores may be busy {fleet.utilisation:.0%} of the time; no machine is kept for the loss of one.",
            f"Each machine of {fleet.node_cores} cores holds the whole catalogue and all {fleet.users:,} "
            "users once (mapped files, shared by its processes).",
            f"A core costs {fleet.core_hour:g} € and a GB {fleet.gb_hour:g} € per hour, a month has "
            f"{HOURS_PER_MONTH} hours; no traffic, no storage. The prices are given, not looked up.",
        ],
    }
