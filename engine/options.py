"""Options of the command line that several verbs have."""

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file: [engine], [server], [batcher], [http], [telemetry], [repository], [state], "
        "[pipeline].",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
