"""The verb ``bench quality``."""

from pathlib import Path
from typing import Annotated

import typer

DataOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder with s3rec/ and online-retail/; rows whose files are not there are named and left out.",
        envvar="RECSERVE_TEST_DATA",
    ),
]


def quality(
    rows: Annotated[str, typer.Option(help="Rows, such as als,sasrec-lastfm. Default: all.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="The rows of minutes, one seed.")] = False,
    seeds: Annotated[str, typer.Option(help="Commas between.")] = "0,1,2",
    data: DataOption = None,
    again: Annotated[bool, typer.Option("--again", help="Measure what was measured, too.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="The result to go on with. Default: results/quality.json beside this program."),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the tables to a file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Train models and their peers on one split and hold them against their bars. Takes hours.

    Each finished training is kept: an interrupted run goes on where it was. Peers run in virtual environments
    that this command makes; what their lists and predictions are worth is computed by the same code as ours.
    """
    import torch

    from recserve.benchmarks.kernels.options import split_numbers
    from recserve.benchmarks.output import Output
    from recserve.benchmarks.quality.cells import Cells
    from recserve.benchmarks.quality.run import Options, chosen_rows, run
    from recserve.benchmarks.tables import RESULTS, show, write_csv
    from recserve.training.data import default_cache_dir

    # As the peers: the seconds compare, and a busy core beside does not decide.
    torch.set_num_threads(1)
    cache = default_cache_dir()
    kept = cache / "benchmarks" / "quality"
    options = Options(
        chosen_rows([name for name in rows.split(",") if name], quick=quick),
        split_numbers("seeds", "0" if quick else seeds),
        data,
        Cells(kept, cache / "peers"),
        out or (kept / "quick.json" if quick else RESULTS / "quality.json"),
        again,
    )
    Output(csv=csv, json=json).publish("quality", run(options), show, write_csv)
