"""The verb ``sweep``: settings searched for, the best first."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from recserve import console
from recserve.training.config_file import SWEEP, named_options, read_options, read_toml


def sweep(
    config: Annotated[
        Path, typer.Option(help="TOML file: options of `train`, and in [sweep] lists or ranges of some.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the trials; a sweep in it goes on.")],
    trials: Annotated[int, typer.Option(help="Trials in all.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the proposals.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Search for the settings with the best validation metric; every trial is a run of `train`."""
    from recserve.training.commands import train
    from recserve.training.hyperparameters import Sweep

    content, allowed = read_toml(config), inspect.signature(train).parameters
    space = named_options(config, content.get(SWEEP, {}), allowed)
    search = Sweep(out, read_options(config, content, allowed), space, seed)
    with console.progress("trials", trials) as update:

        def on_trial(trial: Any) -> None:
            found = "failed" if trial.value is None else f"{trial.user_attrs['validation']:.4f}"
            update(1, f"trials  last {found}")

        done = search.run(trials, on_trial)
    rows = [
        {
            "run": str(out / f"trial-{trial.number:04}"),
            "metric": trial.user_attrs["metric"],
            "validation": trial.user_attrs["validation"],
            **trial.params,
        }
        for trial in done
    ]
    if json:
        console.print_json({"trials": rows})
        return
    console.print_table(
        f"{len(rows)} trials, the best first",
        ["run", rows[0]["metric"], *space],
        [[row["run"], f"{row['validation']:.4f}", *(row[name] for name in space)] for row in rows],
    )
