"""The variant of a sequence model: an ONNX graph that encodes the history."""

import io

import numpy as np

from recserve.engine.bundle import BundleWriter, VariantEntry, layout
from recserve.engine.bundle.manifest import InputContract
from recserve.exporters.onnx_graph import export_query_encoder
from recserve.exporters.parity import check_parity, onnx_encoder, record_golden, torch_encoder
from recserve.exporters.variant import GOLDEN, VARIANT, Variant
from recserve.training.data import EvaluationSet
from recserve.training.models.sequence import SequenceModel

GRAPH = f"variants/{VARIANT}/query_encoder.onnx"


def write_encoder(writer: BundleWriter, model: SequenceModel, recorded: EvaluationSet) -> Variant:
    """Writes graph, item table and records; raises :class:`CheckFailed` unless ONNX agrees with torch."""
    graph = export_query_encoder(model)
    writer.add_array(layout.ITEM_EMBEDDINGS, graph.item_embeddings)
    session = graph.session(writer.folder)
    parity = check_parity(
        "ONNX parity",
        onnx_encoder(model, session, recorded),
        torch_encoder(model, recorded),
        graph.item_embeddings,
        recorded,
    )
    golden = io.BytesIO()
    np.savez(golden, **record_golden(model, session, recorded))  # type: ignore[arg-type]
    writer.add_bytes(GRAPH, graph.data)
    writer.add_bytes(GOLDEN, golden.getvalue())
    entry = VariantEntry(
        query_encoder=GRAPH,
        golden=GOLDEN,
        size_bytes=len(graph.data) + graph.item_embeddings.nbytes,
        gate=parity.as_dict(),
    )
    inputs = InputContract(max_history=model.config.max_history, features=graph.features)
    return Variant(entry, inputs, graph.item_embeddings, parity, graph)
