"""The verbs ``bench train`` and ``bench variants``: one front to what measures already."""

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from recserve.errors import CheckFailed, InvalidRequest, nearest

# By the name of the verb: what can be measured and the program that does.
TRAIN = MappingProxyType({"als": "als_speed", "sasrec": "sequence_speed", "evaluation": "evaluation_speed"})
OutOption = Annotated[Path | None, typer.Option(help="Write the result as JSON to a file as well.")]
CsvOption = Annotated[Path | None, typer.Option(help="Write the tables to a file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def train(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(TRAIN)}.")] = "als",
    out: OutOption = None,
    csv: CsvOption = None,
    json: JsonOption = False,
) -> None:
    """Time training, or the evaluation of a model, next to a peer."""
    _run_program(_choose(TRAIN, name), [], out, csv, json)


def _choose(programs: Mapping[str, str], name: str) -> str:
    if name not in programs:
        raise InvalidRequest(
            "name", found=name, expected=f"one of {', '.join(programs)}", cure=nearest(name, programs)
        )
    return programs[name]


def command_of(module: str) -> list[str]:
    """Returns how Python is told to run a program of this folder."""
    return ["-m", f"recserve.benchmarks.{module}"]


def _run_program(module: str, arguments: list[str], out: Path | None, csv: Path | None, json: bool) -> None:
    """Runs a program of this folder in a process of its own, its words on stderr, and shows its result."""
    from recserve.benchmarks.compare import read_result
    from recserve.benchmarks.output import Output
    from recserve.benchmarks.tables import show, write_csv

    output = Output(out=out, csv=csv, json=json)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "result.json"
        command = [sys.executable, *command_of(module), *arguments, "--out", str(saved)]
        finished = subprocess.run(command, stdout=sys.stderr, check=False)
        if finished.returncode != 0:
            raise CheckFailed(module, found=f"exit code {finished.returncode}", expected="0; see above")
        output.publish(module, read_result(saved), show, write_csv)


def variants(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    batch: Annotated[int, typer.Option(help="Requests at a time, 1 to 256.")] = 1,
    seconds: Annotated[float, typer.Option(help="For all forms together.")] = 5.0,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots, one file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the plots.")] = None,
    out: OutOption = None,
    csv: CsvOption = None,
    json: JsonOption = False,
) -> None:
    """Time every form of a bundle on this machine, in turns, beside the quality that its export measured."""
    from recserve.benchmarks.output import Output
    from recserve.benchmarks.variants import measure, show

    output = Output(out, csv, html, png, json)
    output.publish("variants", measure(bundle, batch, seconds), show)
