"""Builds the forms of a model, sends each through the gate and writes those that may be served."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recserve.engine.bundle import BundleWriter, Refused, VariantEntry
from recserve.engine.bundle.item_table import FLOAT16, FLOAT32, INT4, INT8
from recserve.engine.bundle.ranker_entry import MAX_GOLDEN_TOLERANCE, MIN_GOLDEN_TOLERANCE
from recserve.errors import CheckFailed
from recserve.exporters.candidates import AUTO, Material, wanted_forms
from recserve.exporters.gate import (
    MARGIN,
    GateBudget,
    Measured,
    fastest,
    paired_loss,
    pareto_front,
    refusal,
)
from recserve.exporters.item_tables import can_store, over_table, save_parts, stored
from recserve.exporters.measure import Quality, compare, full_length, quality, resident_bytes, timings
from recserve.exporters.onnx_graph import EncoderGraph
from recserve.exporters.parity import onnx_encoder, record_golden, recorded_inputs
from recserve.exporters.variant import VARIANT
from recserve.training.data import EvaluationSet
from recserve.training.models.sequence import SequenceModel

BATCH_SIZES = (1, 32)
EXACT = "exact"


@dataclass(frozen=True, slots=True)
class Form:
    """One form and what the gate said of it: ``refused`` is empty where it may be served."""

    graph: EncoderGraph
    measured: Measured
    max_abs_error: float
    """Largest difference of a query embedding's component from fp32's."""
    refused: str


@dataclass(frozen=True, slots=True)
class Written:
    """What came of the forms: for the manifest."""

    exact_gate: dict[str, float] = field(default_factory=dict)
    entries: dict[str, VariantEntry] = field(default_factory=dict)
    refused: dict[str, Refused] = field(default_factory=dict)
    default: str = VARIANT


def write_forms(
    writer: BundleWriter,
    material: Material,
    recorded: EvaluationSet,
    names: Sequence[str],
    budget: GateBudget,
    scratch: Path,
    on_progress: Callable[[str], None] = lambda name: None,
) -> Written:
    """Writes the forms of ``names`` that pass the gate; ``recorded``: the held-out users that decide.

    "all" writes what passes, "auto" of that the Pareto front and makes its fastest the default. A form that
    was asked for by its name and is refused, or a smaller item table that is, raises :class:`CheckFailed`
    with the figures. ``scratch`` has the files of the item tables.
    """
    wanted = wanted_forms(names, material.model)
    if not wanted and material.table == FLOAT32:
        return Written()
    forms = judge(material, wanted, recorded, scratch, budget, on_progress)
    if forms[VARIANT].refused:
        raise CheckFailed(
            f"item table {material.table}",
            found=forms[VARIANT].refused,
            expected="one that passes the gate",
        )
    for name in wanted:
        if name in names and forms[name].refused:
            raise CheckFailed(
                f"variant {name}", found=forms[name].refused, expected="one that passes the gate"
            )
    kept = [name for name, form in forms.items() if not form.refused]
    refused = {name: form.refused for name, form in forms.items() if form.refused}
    default = VARIANT
    if AUTO in names:
        front = pareto_front({name: forms[name].measured for name in kept})
        # fp32 stays in any case: it is what the others were measured by.
        beaten = [name for name in kept if name not in (*front, VARIANT)]
        refused |= dict.fromkeys(beaten, "another form is better in every figure")
        kept = [name for name in kept if name not in beaten]
        default = fastest({name: forms[name].measured for name in kept})
    entries = {
        name: _write(writer, name, forms[name], material, recorded, scratch)
        for name in kept
        if name != VARIANT
    }
    return Written(
        forms[VARIANT].measured.as_dict(),
        entries,
        {name: Refused(reason, forms[name].measured.as_dict()) for name, reason in refused.items()},
        default,
    )


def smallest_table(
    model: SequenceModel, exact: EncoderGraph, recorded: EvaluationSet, folder: Path, budget: GateBudget
) -> str:
    """Returns the smallest form of the item table with which fp32 passes the gate; float32 if none does.

    ``folder`` has the file of the float32 table and gets those of the forms that are tried.
    """

    def found_by(graph: EncoderGraph) -> Quality:
        return quality(onnx_encoder(model, graph.session(folder), recorded), graph.item_embeddings, recorded)

    reference = found_by(exact)
    width = exact.item_embeddings.shape[1]
    for form in (one for one in (INT4, INT8, FLOAT16) if can_store(width, one)):
        graph = over_table(exact, stored(exact, form), form)
        if graph.size_bytes >= (1 - MARGIN) * exact.size_bytes:
            continue
        save_parts(graph.parts, form, folder)
        if paired_loss(reference.ndcg, found_by(graph).ndcg)[2] <= budget.max_loss:
            return form
    return FLOAT32


def judge(
    material: Material,
    names: Sequence[str],
    recorded: EvaluationSet,
    folder: Path,
    budget: GateBudget,
    on_progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Form]:
    """Builds and measures each form of ``names`` beside fp32, which is the first of what is returned.

    All are held against fp32 over the float32 table, which is itself in the bundle unless that stores a
    smaller one: then fp32 has to pass as well. ``folder`` has the files of the item tables.
    """
    model, exact = material.model, material.exact
    sample = recorded_inputs(model, recorded, np.arange(min(BATCH_SIZES[-1], len(recorded.user_index))))
    inputs = {rows: full_length(sample, rows, model.config.max_history) for rows in BATCH_SIZES}
    exact_session = exact.session(folder)

    def found_by(graph: EncoderGraph) -> Quality:
        return quality(onnx_encoder(model, graph.session(folder), recorded), graph.item_embeddings, recorded)

    reference = found_by(exact)
    forms: dict[str, Form] = {}
    for name in (VARIANT, *names):
        on_progress(name)
        graph = material.build(name)
        is_exact = graph is exact
        found = reference if is_exact else found_by(graph)
        # One session in turns with itself: the same, by definition.
        pair = {EXACT: exact_session} if is_exact else {EXACT: exact_session, name: graph.session(folder)}
        timed = [[*timings(pair, inputs[rows]).values()] for rows in BATCH_SIZES]
        resident = resident_bytes(graph.data, inputs[BATCH_SIZES[-1]], graph.parts, folder)
        measured = compare(
            reference,
            found,
            (exact.item_embeddings, graph.item_embeddings),
            bytes_and_resident=(graph.size_bytes, resident),
            exact_bytes=exact.size_bytes,
            one=(timed[0][0], timed[0][-1]),
            many=(timed[1][0], timed[1][-1]),
        )
        error = float(np.abs(found.queries - reference.queries).max(initial=0.0))
        beside = None if name == VARIANT else forms[VARIANT].measured
        forms[name] = Form(graph, measured, error, "" if is_exact else refusal(measured, budget, beside))
    return forms


def _write(
    writer: BundleWriter,
    name: str,
    form: Form,
    material: Material,
    recorded: EvaluationSet,
    scratch: Path,
) -> VariantEntry:
    graph, golden = f"variants/{name}/query_encoder.onnx", f"variants/{name}/golden.npz"
    buffer = io.BytesIO()
    record = record_golden(material.model, form.graph.session(scratch), recorded)
    np.savez(buffer, **record)  # type: ignore[arg-type]
    writer.add_bytes(graph, form.graph.data)
    writer.add_bytes(golden, buffer.getvalue())
    return VariantEntry(
        query_encoder=graph,
        golden=golden,
        # Where rounding steps are coarse, a last bit of another machine can move a value by one of them.
        golden_tolerance=float(np.clip(form.max_abs_error, MIN_GOLDEN_TOLERANCE, MAX_GOLDEN_TOLERANCE)),
        size_bytes=form.graph.size_bytes,
        metrics={"NDCG@10": form.measured.ndcg},
        gate=form.measured.as_dict(),
    )
