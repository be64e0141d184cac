"""Puts a bundle together from a run: the model's variant, catalogue, histories, popularity, manifest."""

import dataclasses
import datetime
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

import recserve
from recserve.engine.bundle import BundleWriter, Manifest, Vocabulary, layout
from recserve.engine.bundle.histories import histories_table
from recserve.engine.bundle.item_table import FLOAT32, FORMS
from recserve.engine.bundle.manifest import InputContract, Lineage
from recserve.engine.bundle.ranker_entry import RankerEntry
from recserve.engine.bundle.request_features import ID
from recserve.engine.bundle.rules import PipelineConfig
from recserve.engine.bundle.segments_entry import SegmentsEntry
from recserve.engine.bundle.shards import SHARD_BYTES
from recserve.engine.bundle.signing_keys import SigningKey
from recserve.errors import InvalidRequest, nearest
from recserve.exporters.candidates import AUTO, Material, wanted_forms
from recserve.exporters.encoder_variant import write_encoder
from recserve.exporters.forms import Written, write_forms
from recserve.exporters.gate import GateBudget
from recserve.exporters.item_encoder import write_item_encoder
from recserve.exporters.parity import Parity
from recserve.exporters.prune import PruneConfig
from recserve.exporters.ranker_entry import write_ranker
from recserve.exporters.ranker_forms import check_form
from recserve.exporters.segments import write_segments
from recserve.exporters.table_variant import write_table
from recserve.exporters.text_encoder import write_text_encoder
from recserve.exporters.variant import VARIANT, Variant
from recserve.training.data import Dataset, Histories
from recserve.training.data.columns import EMBEDDING
from recserve.training.models.base import RankingModel
from recserve.training.models.sequence import SequenceModel
from recserve.training.models.tables import TableModel
from recserve.training.run import Run
from recserve.training.segments import AUTO as AUTO_SEGMENTS

NO_HISTORIES = Histories.from_sorted(
    np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int64), n_rows=0
)


@dataclass(frozen=True, slots=True)
class Exported:
    """A bundle just written and how well it agrees with the trained model."""

    manifest: Manifest
    parity: Parity


@dataclass(frozen=True, slots=True, kw_only=True)
class FormOptions:
    """Which forms of an encoder go into a bundle besides fp32.

    ``variants``: names of forms, "all" or "auto" (``forms.write_forms``); ``item_table``: what all of them
    read their items from, one of ``item_table.FORMS``, or "auto" for the smallest that passes the gate;
    ``ranker``: the form of the ranker, one of ``ranker_forms.FORMS``; ``budget``: what each encoder may lose;
    ``shard_bytes``: a table of embeddings above it lies in several files of at most so many.
    """

    variants: tuple[str, ...] = (VARIANT,)
    budget: GateBudget = field(default_factory=GateBudget)
    pruning: PruneConfig = field(default_factory=PruneConfig)
    item_table: str = FLOAT32
    ranker: str = VARIANT
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        check_form(self.ranker)
        known = (AUTO, *FORMS)
        if self.item_table not in known:
            raise InvalidRequest(
                "item_table",
                found=self.item_table,
                expected=f"one of {', '.join(known)}",
                cure=nearest(self.item_table, known),
            )


def export_run(
    run: Run,
    target: Path,
    *,
    replace: bool = False,
    histories: bool = True,
    ranker: Run | None = None,
    options: FormOptions | None = None,
    pipeline: PipelineConfig | None = None,
    segments: Sequence[str] = AUTO_SEGMENTS,
    item_encoder: bool = False,
    text_encoder: str = "",
    signing_key: SigningKey | None = None,
    on_progress: Callable[[str], None] = lambda name: None,
) -> Exported:
    """Exports the best model of ``run`` to the bundle folder ``target``, with that of ``ranker`` behind it.

    ``histories``: whether the users' interactions go along, so that known users are served at once.
    ``pipeline``: the rules that the bundle brings. ``segments``: by what cold starts are told apart, see
    ``fit_segments``; empty for nothing. ``item_encoder``: whether to fit what makes embeddings of attributes,
    for items that come later. ``text_encoder``: for requests with a text, see ``write_text_encoder``;
    empty for none. ``signing_key`` signs it. ``on_progress`` gets the name of each form that is measured.
    Raises :class:`CheckFailed` when parity does not hold or a form asked for by name is refused,
    :class:`InvalidRequest` when ``target`` exists; then nothing is left behind.
    """
    options = options or FormOptions()
    model = run.best_model()
    wanted_forms(options.variants, model)
    known = run.dataset.histories() if histories else None
    with (
        BundleWriter(target, replace=replace, shard_bytes=options.shard_bytes) as writer,
        tempfile.TemporaryDirectory(prefix=".", suffix=".tables", dir=target.parent) as scratch,
    ):
        variant = _write_variant(writer, run, model, known, options, Path(scratch))
        _add_catalogue(writer, run.dataset)
        _add_histories(writer, run.dataset, known, with_values=ranker is not None)
        writer.add_array(layout.POPULARITY, run.dataset.popularity())
        writer.add_array(layout.FIRST_SEEN, run.dataset.first_seen())
        by_segment = write_segments(writer, run.dataset, segments)
        forms = _write_forms(writer, run, model, variant, options, Path(scratch), on_progress)
        entry = None if ranker is None else _write_ranker(writer, run, ranker, known, options.ranker)
        searched_by = write_text_encoder(writer, run.dataset, text_encoder) if text_encoder else None
        known_by = write_item_encoder(writer, run.dataset, variant.item_embeddings) if item_encoder else None
        manifest = dataclasses.replace(
            _manifest(run, variant, forms, writer, entry),
            inputs=_inputs(variant, entry, by_segment),
            segments=by_segment,
            pipeline=pipeline,
            item_table=variant.item_table,
            item_encoder=known_by,
            text_encoder=searched_by,
        )
        writer.commit(manifest, signing_key)
    return Exported(manifest, variant.parity)


def _write_variant(
    writer: BundleWriter,
    run: Run,
    model: RankingModel,
    known: Histories | None,
    options: FormOptions,
    scratch: Path,
) -> Variant:
    recorded, table = run.split().test, options.item_table
    if isinstance(model, SequenceModel):
        return write_encoder(writer, model, recorded, table, options.budget, scratch)
    if table not in (FLOAT32, AUTO):
        raise InvalidRequest(
            "item_table", found=table, expected=f"{FLOAT32} for a model that is no encoder of histories"
        )
    if isinstance(model, TableModel):
        return write_table(writer, model, NO_HISTORIES if known is None else known, recorded)
    raise InvalidRequest(
        f"model {run.config.model} for export",
        found="neither an encoder nor tables",
        expected="a model whose score is an inner product",
        cure="It is a baseline for evaluate.",
    )


def _write_ranker(
    writer: BundleWriter, run: Run, ranker: Run, known: Histories | None, form: str
) -> RankerEntry:
    if ranker.dataset.sha256 != run.dataset.sha256:
        raise InvalidRequest(
            f"data of the ranker {ranker.folder}",
            found=ranker.dataset.sha256[:12],
            expected=f"that of {run.folder}, {run.dataset.sha256[:12]}",
            cure="Train both on the same events: items and users are numbered by the data.",
        )
    return write_ranker(writer, ranker, with_users=known is not None, form=form)


def _write_forms(
    writer: BundleWriter,
    run: Run,
    model: RankingModel,
    variant: Variant,
    options: FormOptions,
    scratch: Path,
    on_progress: Callable[[str], None],
) -> Written:
    if variant.graph is None or not isinstance(model, SequenceModel):
        return Written()
    split = run.split()
    material = Material(
        model, variant.graph, variant.item_table, split.validation, split.train, options.pruning
    )
    return write_forms(writer, material, split.test, options.variants, options.budget, scratch, on_progress)


def _add_catalogue(writer: BundleWriter, dataset: Dataset) -> None:
    # A vector that came with an item was for the model: no rule and no caller reads it.
    items = dataset.items.drop(EMBEDDING, strict=False).to_arrow()
    ids = items.column("item_id").cast(pa.large_string())
    writer.add_table(layout.ITEMS, items.set_column(0, "item_id", ids))
    writer.add_table(layout.ITEM_LOOKUP, Vocabulary.build(ids.to_pylist()).lookup_table())


def _add_histories(
    writer: BundleWriter, dataset: Dataset, known: Histories | None, *, with_values: bool
) -> None:
    """``with_values``: what the items were rated is something that only rankers read."""
    user_ids = [] if known is None else dataset.users["user_id"].to_list()
    known = NO_HISTORIES if known is None else known
    values = known.value if with_values else None
    table = histories_table(user_ids, known.indptr, known.item_index, known.timestamp, values)
    writer.add_table(layout.HISTORIES, table)
    writer.add_table(layout.USER_LOOKUP, Vocabulary.build(user_ids).lookup_table())


def _metrics_of(run: Run) -> dict[str, float]:
    evaluation = run.read_evaluation()
    if evaluation is None:
        return {}
    return {name: estimate["mean"] for name, estimate in evaluation["model"]["metrics"].items()}


def _inputs(variant: Variant, ranker: RankerEntry | None, segments: SegmentsEntry | None) -> InputContract:
    features = [*ranker.user_features, *ranker.context_features] if ranker else []
    features += segments.features if segments else []
    context = dict.fromkeys(one.name for one in features if one.kind != ID)
    return dataclasses.replace(variant.inputs, context=list(context))


def _manifest(
    run: Run, variant: Variant, forms: Written, writer: BundleWriter, ranker: RankerEntry | None
) -> Manifest:
    checkpoint = run.checkpoint_sha256()
    now = datetime.datetime.now(datetime.UTC)
    n_items, embedding_size = variant.item_embeddings.shape
    metrics = _metrics_of(run)
    exact = dataclasses.replace(
        variant.entry, metrics=metrics, gate={**variant.entry.gate, **forms.exact_gate}
    )
    return Manifest(
        model=run.config.model,
        bundle_version=f"{run.config.model}-{now:%Y%m%dT%H%M%SZ}-{checkpoint[:8]}",
        created_at=now.isoformat(timespec="seconds"),
        n_items=n_items,
        embedding_size=embedding_size,
        inputs=variant.inputs,
        ranker=ranker,
        lineage=Lineage(
            data_name=run.dataset.name,
            data_sha256=run.dataset.sha256,
            checkpoint_sha256=checkpoint,
            code_version=recserve.__version__,
            seed=run.config.loop.seed,
            config=run.config.as_dict(),
        ),
        variants={VARIANT: exact, **forms.entries},
        refused=forms.refused,
        default_variant=forms.default,
        metrics=metrics,
        files=writer.files,
    )
