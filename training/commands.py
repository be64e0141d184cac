"""The verbs ``train`` and ``evaluate``. Torch and polars are imported when a verb runs, not before."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recserve import console
from recserve.errors import InvalidRequest, RecserveError
from recserve.training.classify_command import classify
from recserve.training.config_file import use_config
from recserve.training.evaluate_command import evaluate
from recserve.training.hyperparameters_command import sweep
from recserve.training.map_command import map_catalogue
from recserve.training.models import MODULES
from recserve.training.show import show_cleaning

if TYPE_CHECKING:
    from recserve.training.run import Run, RunConfig

NEEDS = ("torch", "polars", "safetensors")


def register(add: Callable[..., Any]) -> None:
    """Adds this folder's verbs to the command line."""
    add(train, needs=NEEDS, extra="train")
    add(evaluate, needs=NEEDS, extra="train")
    add(classify, needs=NEEDS, extra="train")
    add(map_catalogue, needs=NEEDS, extra="train")
    add(sweep, needs=(*NEEDS, "optuna"), extra="sweep")


def train(
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of options: `embedding-size = 64`; flags go before it.",
            is_eager=True,
            callback=use_config,
        ),
    ] = None,
    *,
    data: Annotated[
        str,
        typer.Option(
            help="ml-100k, synthetic-shop[:n_items=...,seed=...], a file of events, or sequences:FILE."
        ),
    ],
    model: Annotated[str, typer.Option(help=f"Model family: {', '.join(MODULES)}.")] = "sasrec",
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/DATA-MODEL.")] = None,
    columns: Annotated[
        str,
        typer.Option(
            help="Which columns of the file are what: user=customer,item=sku,timestamp=when,value=qty."
        ),
    ] = "",
    items: Annotated[
        Path | None, typer.Option(help="File of item attributes (title, category, price, ...).")
    ] = None,
    item_embeddings: Annotated[
        Path | None,
        typer.Option(help="Vectors of the items: .npy in the order of --items, or Parquet with ids."),
    ] = None,
    every_item: Annotated[
        bool, typer.Option("--every-item", help="Keep items of these files that nobody had yet.")
    ] = False,
    value_range: Annotated[
        str, typer.Option(help="Scale of the values, such as 1:5: rows beyond it are dropped and counted.")
    ] = "",
    min_user_interactions: Annotated[int, typer.Option(help="k-core: interactions a user needs.")] = 1,
    min_item_interactions: Annotated[int, typer.Option(help="k-core: interactions an item needs.")] = 1,
    split: Annotated[
        str, typer.Option(help="leave-one-out, temporal, or random (8:1:1 of each user).")
    ] = "leave-one-out",
    embedding_size: Annotated[int | None, typer.Option(help="Width of the user and item vectors.")] = None,
    size: Annotated[
        str | None, typer.Option(help="tiny, small, base or large, where the shape is not given (hstu).")
    ] = None,
    blocks: Annotated[int | None, typer.Option(help="Blocks or layers (sequence models).")] = None,
    layers: Annotated[
        int | None, typer.Option(help="Steps over the graph (lightgcn, graphsage, gcn).")
    ] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads (sasrec, bert4rec, hstu).")] = None,
    hidden_size: Annotated[int | None, typer.Option(help="Width of the recurrent state (gru4rec).")] = None,
    max_history: Annotated[
        int | None, typer.Option(help="Newest items that the model sees (sequence models).")
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(help="Dropout rate (sequence models, dssm, graphsage, gcn).")
    ] = None,
    mask_rate: Annotated[
        float | None, typer.Option(help="Share of a history's items hidden in training (bert4rec).")
    ] = None,
    time_gaps: Annotated[
        bool | None, typer.Option(help="Let attention see how long ago each item was (sasrec, hstu).")
    ] = None,
    incremental: Annotated[
        bool | None, typer.Option(help="Let servers keep what they computed of a user (sasrec, hstu).")
    ] = None,
    content: Annotated[
        bool | None,
        typer.Option(help="An item is also its attributes, texts and vectors (sequence models)."),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="Confidence of an interaction above that of none (als).")
    ] = None,
    reg: Annotated[
        float | None, typer.Option(help="Regularisation (als, bpr, svd, svdpp, ease, graphs).")
    ] = None,
    reg_exponent: Annotated[
        float | None, typer.Option(help="How regularisation grows with the interactions, 0 to 1 (als).")
    ] = None,
    clusters: Annotated[int | None, typer.Option(help="Clusters of users (clusters).")] = None,
    window: Annotated[
        int | None, typer.Option(help="Items before and after one that are its neighbours (item2vec, glove).")
    ] = None,
    neighbours: Annotated[int | None, typer.Option(help="Neighbours of an item (item-knn).")] = None,
    shrinkage: Annotated[
        float | None, typer.Option(help="Damping of neighbours with few users (item-knn).")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Most epochs.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Users (rankers: examples; dssm, graphs: interactions) of a step.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the gradient steps.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW.")] = None,
    loss: Annotated[str | None, typer.Option(help="softmax, sampled, or auto by catalogue size.")] = None,
    negatives: Annotated[
        int | None, typer.Option(help="Sampled items of a step under the sampled loss.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, or bf16 for what an encoder computes (sequence models).")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Differential privacy of users (sasrec): DP-SGD, with --delta.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Well below 1 by the number of users.")] = None,
    max_norm: Annotated[
        float | None, typer.Option(help="Length that DP-SGD clips a user's gradient to.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Validations without progress before training stops.")
    ] = None,
    validate_every: Annotated[int | None, typer.Option(help="Epochs between validations.")] = None,
    hidden: Annotated[str | None, typer.Option(help="Widths of the perceptron (rankers): 64,32.")] = None,
    crosses: Annotated[int | None, typer.Option(help="Layers of the cross network (dcn).")] = None,
    context: Annotated[
        bool | None, typer.Option(help="Whether hour and weekday are features (rankers).")
    ] = None,
    history_values: Annotated[
        bool | None, typer.Option(help="Whether the user's earlier ratings are read (rankers).")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="ratings, sampled (items at random are no clicks), listwise or auto (rankers)."),
    ] = None,
    click_at: Annotated[
        float | None, typer.Option(help="Least value that counts as a click (rankers).")
    ] = None,
    negatives_per_click: Annotated[
        int | None, typer.Option(help="Items at random for each click, with sampled labels (rankers).")
    ] = None,
    unknown_rate: Annotated[
        float | None,
        typer.Option(help="How often training hides an id (not of tables)."),
    ] = None,
    normalisation: Annotated[
        str | None, typer.Option(help="Of numbers: min-max, z-score, log or quantile (rankers).")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="platt, isotonic, none, or auto by validation (rankers).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    track: Annotated[str, typer.Option(help="tensorboard, mlflow, or both: what is told each epoch.")] = "",
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the run in --out.")] = False,
) -> None:
    """Train a model on behaviour data; the best checkpoint lands in the run folder.

    What is not given is the family's default; an option that the family does not use is an error.
    """
    # Threads that spin at a barrier slow training five times down when another program needs a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from recserve.training.distributed import processes
    from recserve.training.run import open_run
    from recserve.training.start import DataOptions, begin, go_on
    from recserve.training.tracking import check_trackers

    given = {
        "embedding_size": embedding_size,
        "size": size,
        "n_blocks": blocks,
        "n_layers": layers,
        "n_heads": heads,
        "hidden_size": hidden_size,
        "max_history": max_history,
        "dropout": dropout,
        "mask_rate": mask_rate,
        "time_gaps": time_gaps,
        "incremental": incremental,
        "content": content,
        "weight": weight,
        "reg": reg,
        "reg_exponent": reg_exponent,
        "n_clusters": clusters,
        "window": window,
        "neighbours": neighbours,
        "shrinkage": shrinkage,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "loss": loss,
        "n_negatives": negatives,
        "precision": precision,
        "epsilon": epsilon,
        "delta": delta,
        "max_norm": max_norm,
        "patience": patience,
        "validate_every": validate_every,
        "hidden": None if hidden is None else _widths(hidden),
        "crosses": crosses,
        "context": context,
        "history_values": history_values,
        "labels": labels,
        "click_at": click_at,
        "negatives": negatives_per_click,
        "unknown_rate": unknown_rate,
        "normalisation": normalisation,
        "calibration": calibration,
        "seed": seed,
    }
    wanted = run_config(model, split, {name: value for name, value in given.items() if value is not None})
    options = DataOptions(
        data=data,
        columns=columns,
        value_range=value_range,
        items=items,
        item_embeddings=item_embeddings,
        every_item=every_item,
        min_user_interactions=min_user_interactions,
        min_item_interactions=min_item_interactions,
    )
    trackers = check_trackers(track)
    folder = out or Path("runs") / f"{Path(data).stem.split(':')[0]}-{model}"
    failure: RecserveError | None = None
    with processes() as group:
        if group.is_main:
            try:
                if resume and folder.exists():
                    run = go_on(folder, wanted, options, console.note)
                else:
                    run = begin(folder, wanted, options, overwrite=overwrite, on_note=console.note)
                show_cleaning(run)
            except RecserveError as error:
                failure = error
        # The others wait here, and must not wait for a run that will never be.
        if group.same_everywhere(float(failure is not None)):
            if failure is not None:
                raise failure
            raise typer.Exit(1)
        # Opened again: of the events that were read nothing stays but the file.
        train_run(open_run(folder), group, trackers)


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(width) for width in text.split(","))
    except ValueError:
        raise InvalidRequest("--hidden", found=text, expected="whole numbers joined by commas") from None


def run_config(model: str, split: str, given: dict[str, Any]) -> "RunConfig":
    """Returns the configuration of a run of the family ``model`` with the settings that were given.

    Raises :class:`InvalidRequest` for a setting that the family does not use.
    """
    import dataclasses

    from recserve.training.loop_config import LoopConfig
    from recserve.training.models import family_of
    from recserve.training.run import RunConfig

    family = family_of(model)
    names = {field.name for field in dataclasses.fields(family.settings)}
    for name in given:
        if name not in names | family.loop_options:
            raise InvalidRequest(f"setting {name}", found="given", expected=f"not given with model {model}")
    settings = {name: value for name, value in given.items() if name in names}
    loop = {name: value for name, value in given.items() if name not in names}
    # Each epoch costs privacy: a private run has the fewer of the loop's own.
    budget = {} if loop.get("epsilon") else family.budget
    return RunConfig(
        model=model,
        shape=family.settings(**settings),
        loop=LoopConfig(**{**budget, **loop}),
        split=split,
    )


def train_run(run: "Run", group: Any, trackers: Sequence[str] = ()) -> None:
    """Trains an open run to its end, with a bar; ``trackers``: names of those that follow."""
    import torch

    from recserve.training.loop import EpochReport, Trainer
    from recserve.training.tracking import tracked

    torch.manual_seed(run.config.loop.seed)
    model = run.new_model()
    trainer = Trainer(model, run.split(), run.folder, run.config.loop, group)
    done = trainer.resume()
    if not group.is_main:
        trainer.fit()
        return
    if done.epoch:
        console.note(f"resuming after epoch {done.epoch}")
    name, metric = model.validation_metric.name, "…"
    with (
        console.progress("training", run.config.loop.epochs) as update,
        tracked(trackers, run, done.epoch + 1) as followers,
    ):
        update(done.epoch)

        def on_epoch(report: EpochReport) -> None:
            nonlocal metric
            if report.metric is not None:
                metric = f"{report.metric:.4f}"
            for follower in followers:
                follower.epoch(report, name)
            update(1, f"training  loss {report.loss:.3f}  validation {name} {metric}")

        final = trainer.fit(on_epoch)
    console.note(
        f"best validation {name} {final.best_metric:.4f} at epoch {final.best_epoch} "
        f"(of {final.epoch}); run in {run.folder}"
    )
