"""The verb ``export``, and the registration of this folder's verbs."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recserve import console
from recserve.exporters.encoder_commands import embed, import_folder, train_words
from recserve.exporters.retraining import commands as retraining

if TYPE_CHECKING:
    from recserve.engine.bundle import Manifest
    from recserve.engine.bundle.ranker_entry import RankerEntry
    from recserve.exporters.parity import Parity

NEEDS = ("torch", "onnx", "onnxscript", "polars", "safetensors")


def register(add: Callable[..., Any]) -> None:
    """Adds this folder's verbs to the command line."""
    add(export, needs=NEEDS, extra="train")
    retraining.register(add, needs=NEEDS)
    add(import_folder, group="encoder", needs=("tokenizers",), extra="text")
    add(train_words, group="encoder", needs=(*NEEDS, "tokenizers"), extra="text,train")
    add(embed, group="encoder", needs=("tokenizers", "polars"), extra="text")


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
    variants: Annotated[
        str,
        typer.Option(
            help="Smaller or faster forms that pass the gate, by comma: int8, int8-static, fp16, int4, "
            "pruned, pruned-int8; all; or auto: the best of all, the fastest as the default."
        ),
    ] = "fp32",
    item_table: Annotated[
        str,
        typer.Option(
            help="What the vectors of the items are stored as: float32, float16, int8 (codes with a scale "
            "a row) or int4 (with a scale for every 32 of a row), which have to pass the gate; auto: the "
            "smallest that does. Default: float32, but auto with --variants auto.",
            show_default=False,
        ),
    ] = "",
    shard_mb: Annotated[
        int, typer.Option(min=1, help="A table of embeddings above so many MiB lies in several files.")
    ] = 2048,
    ranker_form: Annotated[
        str, typer.Option(help="fp32, int8 or fp16, which have to pass a gate of their own (AUC).")
    ] = "fp32",
    max_loss: Annotated[
        float, typer.Option(help="Of NDCG@10 against fp32, relative: the most that a form may lose.")
    ] = 0.01,
    prune_hidden: Annotated[
        float, typer.Option(help="Share of the hidden units (of HSTU: values, queries) that pruned keeps.")
    ] = 0.5,
    prune_heads: Annotated[float, typer.Option(help="Share of the attention heads that pruned keeps.")] = 1.0,
    prune_dimensions: Annotated[
        float, typer.Option(help="Share of the embedding's dimensions that pruned layers work on.")
    ] = 1.0,
    prune_epochs: Annotated[
        int, typer.Option(help="Passes over the histories that teach what pruning left.")
    ] = 60,
    pipeline: Annotated[
        Path | None, typer.Option(help="TOML file whose section [pipeline] are the bundle's own rules.")
    ] = None,
    segments: Annotated[
        str,
        typer.Option(
            help="By what cold starts are told apart, by comma: attributes of users, hour, weekday; auto: "
            "all attributes of few values; none."
        ),
    ] = "auto",
    item_encoder: Annotated[
        bool,
        typer.Option(
            "--item-encoder", help="Fit what makes embeddings of attributes, for items that come later."
        ),
    ] = False,
    text_encoder: Annotated[
        str,
        typer.Option(
            help="For requests with a text (query_text): a folder that `encoder import` wrote, or hashing, "
            "which finds the words of titles and descriptions."
        ),
    ] = "",
    sign_key: Annotated[
        Path | None, typer.Option(help="File of a private key (`recserve bundle keygen`) to sign with.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Export a run to a bundle: ONNX graph or user table, parity check, other forms, vectors, catalogue."""
    from recserve.engine.bundle.item_table import FLOAT32
    from recserve.engine.bundle.signing_keys import read_signing_key
    from recserve.exporters.assemble import FormOptions, export_run
    from recserve.exporters.candidates import AUTO
    from recserve.exporters.gate import GateBudget
    from recserve.exporters.pipeline_file import read_pipeline
    from recserve.exporters.prune import PruneConfig
    from recserve.training.run import open_run

    signing_key = None if sign_key is None else read_signing_key(sign_key)
    opened = open_run(run)
    second = None if ranker is None else open_run(ranker)
    names = tuple(name.strip() for name in variants.split(","))
    options = FormOptions(
        variants=names,
        item_table=item_table or (AUTO if AUTO in names else FLOAT32),
        ranker=ranker_form,
        shard_bytes=shard_mb << 20,
        budget=GateBudget(max_loss=max_loss),
        pruning=PruneConfig(
            hidden_share=prune_hidden,
            head_share=prune_heads,
            dimension_share=prune_dimensions,
            epochs=prune_epochs,
        ),
    )
    with console.progress("exporting") as update:
        exported = export_run(
            opened,
            out,
            replace=replace,
            histories=histories,
            ranker=second,
            options=options,
            pipeline=read_pipeline(pipeline) if pipeline is not None else None,
            segments=[] if segments == "none" else segments.split(","),
            item_encoder=item_encoder,
            text_encoder=text_encoder,
            signing_key=signing_key,
            on_progress=lambda name: update(1, description=f"measuring {name}"),
        )
    _show(out, exported.manifest, exported.parity, json=json)


def _show(out: Path, manifest: "Manifest", parity: "Parity", *, json: bool) -> None:
    """Prints what was exported: parity, then the gate where other forms were asked for."""
    from recserve.engine.bundle.gate_table import gate_table, ranker_gate, refusals
    from recserve.exporters.parity import MAX_ABS_ERROR

    if json:
        console.print_json(
            {
                "bundle": str(out),
                "bundle_version": manifest.bundle_version,
                "parity": parity.as_dict(),
                "default_variant": manifest.default_variant,
                "variants": {name: variant.gate for name, variant in manifest.variants.items()},
                "refused": {name: asdict(form) for name, form in manifest.refused.items()},
            }
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
    columns, rows = gate_table(manifest)
    if rows:
        console.print_table("the gate, on the held-out users and this machine (* = default)", columns, rows)
    for line in (*refusals(manifest), *ranker_gate(manifest)):
        console.note(line)
