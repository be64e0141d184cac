"""The verb ``evaluate``: what it measures is chosen here and computed elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recserve import console
from recserve.errors import InvalidRequest
from recserve.training.show import (
    show_cold_items,
    show_cold_start,
    show_evaluation,
    show_folds,
    show_predictions,
)
from recserve.training.show_robustness import plot_robustness, show_robustness

if TYPE_CHECKING:
    from recserve.training.run import Run


def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several on the same data are compared.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the result as JSON to a file as well.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the comparison: FILE.png, .svg or .pdf.")] = None,
    sweep: Annotated[str, typer.Option(help="diversity: weigh it against accuracy, with every method.")] = "",
    cold_start: Annotated[
        bool, typer.Option("--cold-start", help="NDCG@10 of users cut to 0, 1 and 5 events instead.")
    ] = False,
    cold_items: Annotated[
        bool, typer.Option("--cold-items", help="Rank the items that training has no event of, alone.")
    ] = False,
    category: Annotated[
        str, typer.Option(help="Attribute of the items that a baseline of --cold-items goes by.")
    ] = "",
    robustness: Annotated[
        bool,
        typer.Option(
            "--robustness", help="Train again with other seeds, noise, fake users and cold items; compare."
        ),
    ] = False,
    folds: Annotated[
        int | None,
        typer.Option(help="Errors of predicted ratings over so many folds, trained anew without each (svd)."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of --robustness, that of the run among them.")] = 3,
) -> None:
    """Rank the whole catalogue for every test user; compare with popularity and with each other.

    A ranker trained on ratings, alone, predicts every test interaction instead, next to the item's mean.
    """
    from recserve.training import comparison
    from recserve.training.run import open_run, write_json

    whole = {
        "--folds": folds,
        "--cold-start": cold_start,
        "--cold-items": cold_items,
        "--robustness": robustness,
        "--sweep": sweep,
    }
    chosen = [name for name, value in whole.items() if value not in (None, False, "")]
    if len(chosen) > 1:
        raise InvalidRequest(chosen[0], found=f"given with {chosen[1]}", expected="one of them")
    opened = [open_run(run) for run in runs]
    comparison.check_comparable(opened)
    if folds is not None:
        _cross_validate(opened, folds, json=json, out=out, plot=plot)
        return
    if cold_start:
        _evaluate_cold_start(opened, json=json, out=out, plot=plot)
        return
    if category and not cold_items:
        raise InvalidRequest("--category", found="given", expected="given with --cold-items")
    if cold_items:
        _evaluate_cold_items(opened, category, json=json, out=out, plot=plot)
        return
    if plot:
        comparison.check_plot(plot)
    if robustness:
        _evaluate_robustness(opened, seeds, json=json, out=out, plot=plot)
        return
    if sweep:
        from recserve.training.sweep_command import show_sweep

        show_sweep(opened, sweep, out, plot, json=json)
        return
    if len(opened) == 1 and (predictions := comparison.predictions_of(opened[0])) is not None:
        if plot:
            raise InvalidRequest("--plot", found="given", expected="not given for a ranker of ratings")
        opened[0].write_evaluation(predictions)
        if out:
            write_json(out, predictions)
        if json:
            console.print_json(predictions)
        else:
            show_predictions(opened[0], predictions)
        return
    n_users = len(opened[0].split().test.user_index)
    with console.progress("evaluating", n_users * (1 + len(opened))) as update:
        result = comparison.evaluate_runs(opened, update)
    for run, model in zip(opened, result["models"].values(), strict=True):
        run.write_evaluation(comparison.of_one_run(model, result))
    if out:
        write_json(out, result)
    if plot:
        comparison.plot(result, plot)
    if json:
        only = next(iter(result["models"].values()))
        console.print_json(comparison.of_one_run(only, result) if len(opened) == 1 else result)
    else:
        show_evaluation(result)


def _evaluate_cold_start(runs: "list[Run]", *, json: bool, out: Path | None, plot: Path | None) -> None:
    from recserve.training.cold_start import evaluate_cold_start
    from recserve.training.run import write_json

    if plot or len(runs) > 1:
        found = "--plot" if plot else f"{len(runs)} runs"
        raise InvalidRequest("--cold-start", found=f"given with {found}", expected="one run, no plot")
    with console.progress("evaluating", 5 * len(runs[0].split().test.user_index)) as update:
        result = evaluate_cold_start(runs[0], update)
    if out:
        write_json(out, result)
    if json:
        console.print_json(result)
        return
    show_cold_start(result)


def _evaluate_cold_items(
    runs: "list[Run]", category: str, *, json: bool, out: Path | None, plot: Path | None
) -> None:
    from recserve.training.cold_items import evaluate_cold_items
    from recserve.training.run import write_json

    if plot:
        raise InvalidRequest("--cold-items", found="given with --plot", expected="no plot")
    with console.progress("evaluating", len(runs) * len(runs[0].split().test.user_index)) as update:
        result = evaluate_cold_items(runs, category, update)
    if out:
        write_json(out, result)
    if json:
        console.print_json(result)
        return
    show_cold_items(result)


def _evaluate_robustness(
    runs: "list[Run]", n_seeds: int, *, json: bool, out: Path | None, plot: Path | None
) -> None:
    from recserve.training import robustness
    from recserve.training.run import write_json

    if len(runs) > 1:
        raise InvalidRequest("--robustness", found=f"given with {len(runs)} runs", expected="one run")
    with console.progress("training", robustness.n_trainings(n_seeds)) as update:
        result = robustness.evaluate_robustness(
            runs[0], n_seeds=n_seeds, on_progress=lambda name: update(1, f"training: {name}")
        )
    if out:
        write_json(out, result)
    if plot:
        plot_robustness(result, plot)
    if json:
        console.print_json(result)
        return
    show_robustness(result)


def _cross_validate(
    runs: "list[Run]", n_folds: int, *, json: bool, out: Path | None, plot: Path | None
) -> None:
    from recserve.training.cross_validation import cross_validate
    from recserve.training.run import write_json

    if plot:
        raise InvalidRequest("--folds", found="given with --plot", expected="no plot")
    with console.progress("training", n_folds * len(runs)) as update:
        result = cross_validate(runs, n_folds, update)
    if out:
        write_json(out, result)
    if json:
        console.print_json(result)
        return
    show_folds(result)


def evaluate_run(run: "Run") -> dict[str, Any]:
    """Returns the test evaluation of a run's best model and of a baseline, as plain values."""
    from recserve.training import comparison

    if (predictions := comparison.predictions_of(run)) is not None:
        return predictions
    with console.progress("evaluating", 2 * len(run.split().test.user_index)) as update:
        result = comparison.evaluate_runs([run], update)
    return comparison.of_one_run(next(iter(result["models"].values())), result)
