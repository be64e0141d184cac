"""Puts a bundle together from a run: graph, vectors, catalogue, histories, popularity, manifest."""

import datetime
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

import recserve
from recserve.engine.bundle import BundleWriter, Manifest, VariantEntry, Vocabulary, layout
from recserve.engine.bundle.histories import histories_table
from recserve.engine.bundle.manifest import InputContract, Lineage
from recserve.exporters.onnx_graph import EncoderGraph, export_query_encoder
from recserve.exporters.parity import Parity, check_parity, record_golden
from recserve.training.data import Dataset
from recserve.training.run import Run

VARIANT = "fp32"


@dataclass(frozen=True, slots=True)
class Exported:
    """A bundle just written and how well its graph agrees with the trained model."""

    manifest: Manifest
    parity: Parity


def export_run(run: Run, target: Path, *, replace: bool = False, histories: bool = True) -> Exported:
    """Exports the best model of ``run`` to the bundle folder ``target``.

    ``histories``: whether the users' interactions go along, so that known users are served at once.
    Raises :class:`CheckFailed` when parity does not hold, :class:`InvalidRequest` when ``target`` exists;
    then nothing is left behind.
    """
    model = run.best_model()
    with BundleWriter(target, replace=replace) as writer:
        graph = export_query_encoder(model)
        writer.add_array(layout.ITEM_EMBEDDINGS, graph.item_embeddings)
        session = graph.session(writer.folder)
        recorded = run.split().test
        parity = check_parity(model, session, graph.item_embeddings, recorded)
        golden = io.BytesIO()
        np.savez(golden, **record_golden(model, session, recorded))  # type: ignore[arg-type]
        _add_catalogue(writer, run.dataset)
        _add_histories(writer, run.dataset, histories)
        writer.add_array(layout.POPULARITY, run.dataset.popularity())
        entry = VariantEntry(
            query_encoder=f"variants/{VARIANT}/query_encoder.onnx",
            golden=f"variants/{VARIANT}/golden.npz",
            size_bytes=len(graph.data) + graph.item_embeddings.nbytes,
            metrics=_metrics_of(run),
            gate=parity.as_dict(),
        )
        writer.add_bytes(entry.query_encoder, graph.data)
        writer.add_bytes(entry.golden, golden.getvalue())
        manifest = _manifest(run, graph, entry, writer)
        writer.commit(manifest)
    return Exported(manifest, parity)


def _add_catalogue(writer: BundleWriter, dataset: Dataset) -> None:
    items = dataset.items.to_arrow()
    ids = items.column("item_id").cast(pa.large_string())
    writer.add_table(layout.ITEMS, items.set_column(0, "item_id", ids))
    writer.add_table(layout.ITEM_LOOKUP, Vocabulary.build(ids.to_pylist()).lookup_table())


def _add_histories(writer: BundleWriter, dataset: Dataset, wanted: bool) -> None:
    if wanted:
        known = dataset.histories()
        user_ids = dataset.users["user_id"].to_list()
        table = histories_table(user_ids, known.indptr, known.item_index, known.timestamp)
    else:
        user_ids = []
        table = histories_table([], np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.int64))
    writer.add_table(layout.HISTORIES, table)
    writer.add_table(layout.USER_LOOKUP, Vocabulary.build(user_ids).lookup_table())


def _metrics_of(run: Run) -> dict[str, float]:
    evaluation = run.read_evaluation()
    if evaluation is None:
        return {}
    return {name: estimate["mean"] for name, estimate in evaluation["model"]["metrics"].items()}


def _manifest(run: Run, graph: EncoderGraph, entry: VariantEntry, writer: BundleWriter) -> Manifest:
    checkpoint = run.checkpoint_sha256()
    now = datetime.datetime.now(datetime.UTC)
    n_items, embedding_size = graph.item_embeddings.shape
    return Manifest(
        model=run.config.model,
        bundle_version=f"{run.config.model}-{now:%Y%m%dT%H%M%SZ}-{checkpoint[:8]}",
        created_at=now.isoformat(timespec="seconds"),
        n_items=n_items,
        embedding_size=embedding_size,
        inputs=InputContract(max_history=run.config.shape.max_history, features=graph.features),
        lineage=Lineage(
            data_name=run.dataset.name,
            data_sha256=run.dataset.sha256,
            checkpoint_sha256=checkpoint,
            code_version=recserve.__version__,
            seed=run.config.loop.seed,
            config=run.config.as_dict(),
        ),
        variants={VARIANT: entry},
        default_variant=VARIANT,
        metrics=_metrics_of(run),
        files=writer.files,
    )
