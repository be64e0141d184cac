"""The verbs that measure, ``bench …``. What they need is imported when they run."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from recserve import console
from recserve.benchmarks.load.commands import load
from recserve.benchmarks.peers.commands import peers
from recserve.benchmarks.programs import train, variants
from recserve.benchmarks.quality.commands import quality
from recserve.benchmarks.scale.commands import scale
from recserve.errors import CheckFailed, InvalidRequest

NEEDS = ("torch", "onnx", "polars")
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
MAX_PROCESSES = 100


def register(add: Callable[..., Any]) -> None:
    """Adds this folder's verbs to the command line."""
    add(load, group="bench", needs=("hpack", "hdrh"), extra="load")
    add(compare, group="bench")
    add(report, group="bench", needs=("matplotlib",), extra="bench")
    add(kernels, group="bench", needs=NEEDS, extra="bench")
    add(start, group="bench")
    add(scale, group="bench", needs=("onnx", "polars", "hdrh"), extra="bench")
    add(quality, group="bench", needs=NEEDS, extra="train")
    add(train, group="bench", needs=NEEDS, extra="train")
    add(variants, group="bench")
    add(peers, group="bench", needs=("onnx", "polars", "hdrh", "hpack"), extra="bench")


def kernels(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter cases: under a minute.")] = False,
    full: Annotated[bool, typer.Option("--full", help="All sizes, data and threads: an hour.")] = False,
    large: Annotated[bool, typer.Option("--large", help="Also 10 million items (12 GB of memory).")] = False,
    data: Annotated[
        str, typer.Option(help="gaussian, als, als-shop, als-ml-100k, two-tower; commas between.")
    ] = "",
    items: Annotated[str, typer.Option(help="Catalogue sizes, such as 100000,1000000.")] = "",
    dim: Annotated[str, typer.Option(help="Embedding sizes.")] = "",
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "",
    k: Annotated[str, typer.Option("--k", "-k", help="List lengths.")] = "",
    threads: Annotated[str, typer.Option(help="Numbers of threads, of every method.")] = "",
    peers: Annotated[str, typer.Option(help="Peers, such as numpy,faiss. Default: all.")] = "",
    approximate_up_to: Annotated[
        int | None,
        typer.Option(
            help="Most items for the approximate peers (gaussian, als). Default: 100000 with --plot, else 0."
        ),
    ] = None,
    isa: Annotated[str | None, typer.Option(help="This engine's instruction set. Default: the best.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Per case. Default: 1; quick: 0.7.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the data.")] = 7,
    plot: Annotated[Path | None, typer.Option(help="Write a picture: FILE.png, .svg or .html.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result as JSON to a file as well.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the tables to a file.")] = None,
    json: JsonOption = False,
) -> None:
    """Time exact top-K search against its peers and the limits of this machine.

    All methods run in turns in one process and must give the same answers. Without options: the cases of the
    promised speed. --data to --threads ask for every combination of what they name instead.
    """
    from recserve.benchmarks.kernels import options as choices
    from recserve.benchmarks.kernels.plot import check_path, write
    from recserve.benchmarks.kernels.report import show
    from recserve.benchmarks.kernels.run import run
    from recserve.benchmarks.output import Output
    from recserve.benchmarks.tables import write_csv
    from recserve.training.data import default_cache_dir

    if plot:
        check_path(plot)
    options = choices.Options(
        grids=choices.choose_grids(
            choices.preset(quick=quick, full=full), large, data, items, dim, batch, k, threads
        ),
        seconds=(0.7 if quick else 1.0) if seconds is None else seconds,
        seed=seed,
        peers=choices.split_names(peers) or choices.PEERS,
        isa=isa,
        approximate_up_to=(100_000 if plot else 0) if approximate_up_to is None else approximate_up_to,
    )
    result = run(options, default_cache_dir(), start_processes=1 if quick else 5)
    if plot:
        write(result, plot)
    Output(out=out, csv=csv, json=json).publish("kernels", result, show, write_csv)


def compare(
    before: Annotated[Path, typer.Argument(help="The result of bench load or kernels to compare with.")],
    after: Annotated[Path, typer.Argument(help="The result of the same benchmark, later.")],
    fail_if: Annotated[
        list[str] | None,
        typer.Option(help="Such as 'p99>+10%', 'answered_per_second<-5%' or 'errors>0'; may be given again."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Put two results side by side; exit with 1 when a rule of --fail-if is broken.

    A change that lies within the measured intervals of both results breaks no rule.
    """
    from recserve.benchmarks import compare as comparison

    rules = comparison.read_rules(fail_if or ())
    compared = comparison.compare(comparison.read_result(before), comparison.read_result(after), rules)
    if json:
        console.print_json(compared)
    else:
        comparison.show(compared)
    if broken := [row for row in compared["rows"] if row["broken"]]:
        names = "; ".join(f"{row['row']}: {' '.join(row['broken'])}" for row in broken)
        raise CheckFailed("comparison", found=f"{len(broken)} broken", expected="no broken rule", cure=names)


def report(
    results: Annotated[list[Path], typer.Argument(help="What bench load, kernels or others wrote as JSON.")],
    html: Annotated[Path | None, typer.Option(help="Write a page with plots and tables, one file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the plots.")] = None,
) -> None:
    """Draw results: latency distribution, throughput, recall and quality against latency."""
    from recserve.benchmarks.compare import read_result
    from recserve.benchmarks.pages import check_paths, write

    if html is None and png is None:
        raise InvalidRequest("bench report", found="without --html or --png", expected="one of them")
    check_paths(html, png)
    write({path.stem: read_result(path) for path in results}, html, png)


def start(
    processes: Annotated[int, typer.Option(help="Fresh processes; the medians are shown.")] = 5,
    cold: Annotated[
        bool, typer.Option("--cold", help="Also one with an empty cache, which compiles everything.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Time how long a fresh process takes to be warm, and its first search."""
    from recserve.benchmarks.kernels.report import show_start
    from recserve.benchmarks.start import measure

    if not 1 <= processes <= MAX_PROCESSES:
        raise InvalidRequest("--processes", found=processes, expected=f"1 to {MAX_PROCESSES}")
    result = measure(processes, cold=cold)
    if json:
        console.print_json(result)
    else:
        show_start(result)
