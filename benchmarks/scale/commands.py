"""The verb ``bench scale``."""

from pathlib import Path
from typing import Annotated

import typer

LIST_HELP = "Sizes, commas between; the axes named are the ones measured."


def scale(
    bundle: Annotated[
        Path | None, typer.Argument(help="Measure this bundle too, with items added to its catalogue.")
    ] = None,
    items: Annotated[str, typer.Option(help=LIST_HELP)] = "",
    history: Annotated[str, typer.Option(help="The same, of the bundle alone.")] = "",
    batch: Annotated[str, typer.Option(help="The same.")] = "",
    callers: Annotated[str, typer.Option(help="The same: threads that ask at once.")] = "",
    dim: Annotated[str, typer.Option(help="The same, of the bare search alone.")] = "",
    k: Annotated[str, typer.Option("--k", "-k", help="The same: list lengths.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes, none above 100,000 items.")] = False,
    large: Annotated[bool, typer.Option("--large", help="Also 10 million items (16 GB of memory).")] = False,
    data: Annotated[str, typer.Option(help="Of the bare search: gaussian, als, als-shop, two-tower.")] = (
        "gaussian"
    ),
    seconds: Annotated[float, typer.Option(help="For all sizes of one axis together.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Of the data and of who asks.")] = 7,
    rate: Annotated[float, typer.Option(help="Of the fleet: requests per second.")] = 10_000.0,
    fleet_items: Annotated[int, typer.Option(help="Of the fleet. Default: the most measured.")] = 0,
    users: Annotated[int, typer.Option(help="Of the fleet.")] = 1_000_000,
    server_us: Annotated[float, typer.Option(help="CPU of a request around the engine, µs.")] = 50.0,
    utilisation: Annotated[float, typer.Option(help="Share of the cores' time that may be busy.")] = 0.6,
    node_cores: Annotated[int, typer.Option(help="Cores of a machine of the fleet.")] = 16,
    core_hour: Annotated[float, typer.Option(help="Price of a core, € per hour.")] = 0.03,
    gb_hour: Annotated[float, typer.Option(help="Price of a GB of memory, € per hour.")] = 0.004,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots, one file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the plots.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result as JSON to a file as well.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a line per size to a file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Time what more items, longer histories, batches and lists cost, and what a fleet would.

    Sizes vary one at a time and are measured in turns. The exponent of each curve is fitted; the fleet is
    arithmetic on what was measured here, its assumptions are printed.
    """
    from recserve.benchmarks.output import Output
    from recserve.benchmarks.scale.fleet import Fleet
    from recserve.benchmarks.scale.options import ScaleOptions, choose_axes
    from recserve.benchmarks.scale.report import show
    from recserve.benchmarks.scale.run import run
    from recserve.training.data import default_cache_dir

    output = Output(out, csv, html, png, json)
    given = {"items": items, "history": history, "batch": batch, "callers": callers, "dim": dim, "k": k}
    options = ScaleOptions(
        choose_axes(given, quick=quick, large=large), data=data, seconds=seconds, seed=seed
    )
    fleet = Fleet(rate, fleet_items, users, server_us, utilisation, node_cores, core_hour, gb_hour)
    result = run(options, default_cache_dir(), bundle, fleet)
    output.publish("scale", result, show)
