"""The verb ``bench peers``."""

from pathlib import Path
from typing import Annotated

import typer


def peers(
    bundle: Annotated[Path, typer.Argument(help="Bundle of a sequence model.")],
    peers: Annotated[str, typer.Option(help="Some of fastapi, litserve, ray; commas between.")] = (
        "fastapi,litserve,ray"
    ),
    items: Annotated[int, typer.Option(help="Let the catalogue grow to so many. Default: as it is.")] = 0,
    in_flight: Annotated[str, typer.Option(help="Requests at a time; commas between.")] = "1,32",
    k: Annotated[int, typer.Option("--k", "-k", help="List length.")] = 10,
    seconds: Annotated[float, typer.Option(help="For each measurement.")] = 3.0,
    rounds: Annotated[int, typer.Option(help="The servers are asked in turns so often.")] = 3,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots, one file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the plots.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result as JSON to a file as well.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a line per server and load to a file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Serve a bundle with this server and with what else there is, and ask them in turns.

    LitServe, FastAPI and Ray Serve run the same encoder with ONNX Runtime and NumPy, in virtual environments
    that this command makes. All must give the same answers.
    """
    from recserve.benchmarks.kernels.options import split_names, split_numbers
    from recserve.benchmarks.output import Output
    from recserve.benchmarks.peers.report import show
    from recserve.benchmarks.peers.serving import Options, run
    from recserve.training.data import default_cache_dir

    output = Output(out, csv, html, png, json)
    options = Options(split_names(peers), split_numbers("in-flight", in_flight), seconds, rounds, k, items)
    output.publish("peers", run(bundle, default_cache_dir() / "peers", options), show)
