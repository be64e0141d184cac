"""The verb ``export``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recserve import console

if TYPE_CHECKING:
    from recserve.engine.bundle.ranker_entry import RankerEntry

NEEDS = ("torch", "onnx", "onnxscript", "polars", "safetensors")


def register(add: Callable[..., Any]) -> None:
    """Adds this folder's verbs to the command line."""
    add(export, needs=NEEDS, extra="train")


def _ranker_rows(ranker: "RankerEntry | None") -> list[list[object]]:
    if ranker is None:
        return []
    error = ranker.gate["max_abs_error"]
    return [[f"largest difference of a logit ({ranker.model})", f"{error:.1e}", "1e-04"]]


def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to write.")],
    replace: Annotated[bool, typer.Option(help="Replace the bundle in --out.")] = False,
    histories: Annotated[bool, typer.Option(help="Put the users' interactions into the bundle.")] = True,
    ranker: Annotated[
        Path | None, typer.Option(help="Run folder of a ranker, trained on the same data, to go behind it.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Export a run to a bundle: ONNX graph or user table, parity check, vectors, catalogue."""
    from recserve.exporters.assemble import export_run
    from recserve.exporters.parity import MAX_ABS_ERROR
    from recserve.training.run import open_run

    opened = open_run(run)
    second = None if ranker is None else open_run(ranker)
    with console.progress("exporting", 1) as update:
        exported = export_run(opened, out, replace=replace, histories=histories, ranker=second)
        update(1)
    manifest, parity = exported.manifest, exported.parity
    if json:
        console.print_json(
            {"bundle": str(out), "bundle_version": manifest.bundle_version, "parity": parity.as_dict()}
        )
        return
    console.print_table(
        f"{manifest.bundle_version} in {out}: what is served against what was trained",
        ["check", "found", "allowed"],
        [
            ["test histories compared", parity.n_histories, ""],
            ["largest difference of an embedding", f"{parity.max_abs_error:.1e}", f"{MAX_ABS_ERROR:.0e}"],
            ["largest difference of a score", f"{parity.max_score_error:.1e}", ""],
            ["identical top-10 lists", parity.top10_identical, ""],
            ["equal top-10 lists, ties aside", parity.top10_equal_up_to_ties, f"{parity.n_histories}"],
            *_ranker_rows(manifest.ranker),
        ],
    )
