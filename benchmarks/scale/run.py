"""One run of ``bench scale``: curves of a bare search, of a bundle where one is given, fits and a fleet."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recserve import console
from recserve.benchmarks.environment import check_compiled, describe
from recserve.benchmarks.load.options import EMBED, Target
from recserve.benchmarks.load.run import read_ids
from recserve.benchmarks.scale import memory
from recserve.benchmarks.scale.fit import fit_power_law
from recserve.benchmarks.scale.fleet import Fleet, plan
from recserve.benchmarks.scale.grown import grow_bundle
from recserve.benchmarks.scale.measure import time_bundles, time_search
from recserve.benchmarks.scale.options import ScaleOptions
from recserve.engine import Engine, EngineConfig
from recserve.engine.bundle.reader import read_manifest

SCHEMA = 1
PACKAGES = ("numpy", "numba", "onnxruntime-gpu", "onnxruntime")


def run(options: ScaleOptions, cache: Path, bundle: Path | None, fleet: Fleet) -> dict[str, Any]:
    """Measures and returns the result, ready for JSON. ``cache``: where learned catalogues are kept."""
    check_compiled()
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "bench": "scale",
        "environment": describe(PACKAGES),
        "options": options.as_dict(),
        "bundle": bundle and str(bundle),
        "rows": [],
    }
    with console.progress("cost curves") as update:

        def on_axis(name: str) -> None:
            update(1, name)

        result["rows"] += time_search(options, cache, on_axis)
        if bundle is not None:
            result |= _measure_bundle(options, bundle, fleet, result["rows"], on_axis)
    result["fits"] = fits(result["rows"])
    return result


def _measure_bundle(
    options: ScaleOptions,
    bundle: Path,
    fleet: Fleet,
    rows: list[dict[str, Any]],
    on_axis: Callable[[str], None],
) -> dict[str, Any]:
    own = read_manifest(bundle).n_items
    ids = read_ids(Target(EMBED, path=str(bundle)), None, 0)
    with tempfile.TemporaryDirectory(prefix="recserve-scale-") as folder, contextlib.ExitStack() as stack:
        folders = [bundle]
        for n_items in options.axes.get("items", ()):
            if n_items > own:
                on_axis(f"bundle with {n_items:,} items")
                folders.append(Path(folder) / str(n_items))
                grow_bundle(bundle, folders[-1], n_items, options.seed)
        on_axis("memory of the bundles")
        measured = memory.measure(folders)
        config = EngineConfig(provider="cpu")
        engines = [stack.enter_context(Engine.load(one, config)) for one in folders]
        timed = time_bundles(engines, ids, options, on_axis)
    rows += timed
    found: dict[str, Any] = {"memory": measured}
    if len(folders) > 1:
        of_parts = memory.per_item_and_user(measured, bundle, len(ids.users))
        by_items = [row for row in timed if row["axis"] == "items"]
        found |= {
            "bytes": of_parts,
            "fleet": plan(fleet, by_items, of_parts, options.base.batch),
        }
    return found


def fits(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the exponent of the time of a call by each axis."""
    found = []
    for what, axis in dict.fromkeys((row["what"], row["axis"]) for row in rows):
        own = [row for row in rows if (row["what"], row["axis"]) == (what, axis)]
        law = fit_power_law([row["size"] for row in own], [row["median_ms"] for row in own])
        if law is not None:
            found.append({"what": what, "axis": axis, "points": len(own), **dataclasses.asdict(law)})
    return found
