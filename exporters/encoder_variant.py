"""The variant of a sequence model: an ONNX graph that encodes the history."""

import io
from pathlib import Path

import numpy as np

from recserve.engine.bundle import BundleWriter, VariantEntry, layout
from recserve.engine.bundle.item_table import FLOAT32, FORMS
from recserve.engine.bundle.manifest import InputContract
from recserve.exporters.candidates import AUTO
from recserve.exporters.forms import smallest_table
from recserve.exporters.gate import GateBudget
from recserve.exporters.item_tables import over_table, save_parts, stored
from recserve.exporters.onnx_graph import (
    EncoderGraph,
    export_incremental_encoder,
    export_query_encoder,
)
from recserve.exporters.parity import (
    Parity,
    check_parity,
    incremental_encoder,
    onnx_encoder,
    record_golden,
    torch_encoder,
)
from recserve.exporters.variant import GOLDEN, VARIANT, Variant
from recserve.training.data import EvaluationSet
from recserve.training.models.incremental import IncrementalModel
from recserve.training.models.sequence import SequenceModel

GRAPH = f"variants/{VARIANT}/query_encoder.onnx"
INCREMENTAL_GRAPH = f"variants/{VARIANT}/incremental_encoder.onnx"


def write_encoder(
    writer: BundleWriter,
    model: SequenceModel,
    recorded: EvaluationSet,
    table: str,
    budget: GateBudget,
    scratch: Path,
) -> Variant:
    """Writes graphs, item table and records; raises :class:`CheckFailed` unless ONNX agrees with torch.

    ``table``: the form that the item table is stored in, or "auto" for the smallest that keeps ``budget``.
    ``scratch`` gets the files of the stored and of the float32 table, for the sessions that measure.
    """
    exact = export_query_encoder(model)
    save_parts(exact.parts, FLOAT32, scratch)
    if table == AUTO:
        table = smallest_table(model, exact, recorded, scratch, budget)
    parts = stored(exact, table)
    save_parts(parts, table, scratch)
    graph = over_table(exact, parts, table)
    for name, part in parts.items():
        writer.add_rows(FORMS[table][name].file, part)
    parity = check_parity(
        "ONNX parity",
        onnx_encoder(model, exact.session(scratch), recorded),
        torch_encoder(model, recorded),
        exact.item_embeddings,
        recorded,
    )
    gate = parity.as_dict()
    incremental = ""
    if isinstance(model, IncrementalModel) and model.config.incremental:
        second = export_incremental_encoder(model)
        agreed = _check_incremental(model, second, recorded, scratch)
        gate["incremental_max_abs_error"] = agreed.max_abs_error
        writer.add_bytes(INCREMENTAL_GRAPH, over_table(second, parts, table).data)
        incremental = INCREMENTAL_GRAPH
    golden = io.BytesIO()
    np.savez(golden, **record_golden(model, graph.session(scratch), recorded))  # type: ignore[arg-type]
    writer.add_bytes(GRAPH, graph.data)
    writer.add_bytes(GOLDEN, golden.getvalue())
    entry = VariantEntry(
        query_encoder=GRAPH,
        golden=GOLDEN,
        size_bytes=graph.size_bytes,
        gate=gate,
        incremental_encoder=incremental,
    )
    inputs = InputContract(max_history=model.config.max_history, features=exact.features)
    return Variant(entry, inputs, graph.item_embeddings, parity, exact, table)


def _check_incremental(
    model: IncrementalModel, graph: EncoderGraph, recorded: EvaluationSet, scratch: Path
) -> Parity:
    session, first = (graph.session(scratch, without=without) for without in ((), layout.UNSAFE_OF_NOTHING))
    some = recorded.take(np.flatnonzero(recorded.histories.lengths > 0))
    return check_parity(
        "parity of the incremental encoder",
        incremental_encoder(model, session, first, some),
        torch_encoder(model, some),
        graph.item_embeddings,
        some,
    )
