"""The forms that a sequence model can be served in besides fp32, each built by one function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np

from recserve.engine.bundle.item_table import Parts
from recserve.errors import InvalidRequest, nearest
from recserve.exporters import quantise
from recserve.exporters.item_tables import over_table, stored
from recserve.exporters.measure import quality
from recserve.exporters.onnx_graph import EncoderGraph, export_query_encoder
from recserve.exporters.parity import evenly_spaced, recorded_inputs, torch_encoder
from recserve.exporters.prune import PruneConfig, prune
from recserve.exporters.quantise import Inputs
from recserve.exporters.units import Prunable
from recserve.exporters.variant import VARIANT
from recserve.training.data import EvaluationSet, Histories
from recserve.training.models.base import RankingModel
from recserve.training.models.sequence import SequenceModel

# Recorded requests that ranges of activations are calibrated on, a few at a time.
N_CALIBRATION, CALIBRATION_BATCH = 256, 16
ALL, AUTO = "all", "auto"


@dataclass(frozen=True)
class Material:
    """What the forms are made of.

    ``table``: the form of the item table that all of them read.
    ``calibration``: what validation tests, whose targets are not those of the gate; ``train``: what a pruned
    model is taught on.
    """

    model: SequenceModel
    exact: EncoderGraph
    table: str
    calibration: EvaluationSet
    train: Histories
    pruning: PruneConfig

    def build(self, name: str) -> EncoderGraph:
        """Returns the form ``name``, or fp32, over the item table as it is stored."""
        graph = self.exact if name == VARIANT else BUILDERS[name](self)
        return over_table(graph, self.parts, self.table)

    @cached_property
    def parts(self) -> Parts:
        """The item table as it is stored."""
        return stored(self.exact, self.table)

    @cached_property
    def pruned(self) -> EncoderGraph:
        """The pruned and taught model; minutes of training, once for all forms that start from it."""
        return export_query_encoder(self.taught())

    def taught(self) -> Prunable:
        """Returns the smallest model that loses nothing on validation, or the one that loses least.

        The targets of the gate have no part in the choice.
        """
        wanted, found = self._ndcg(self.model), {}
        first = self.pruning.hidden_share
        for share in (first, max(first, self.pruning.second_share)):
            if share not in found:
                student = prune(
                    cast(Prunable, self.model), self.train, replace(self.pruning, hidden_share=share)
                )
                found[share] = self._ndcg(student), student
            if found[share][0] >= wanted:
                return found[share][1]
        return max(found.values(), key=lambda pair: pair[0])[1]

    def _ndcg(self, model: SequenceModel) -> float:
        items = model.item_embeddings.detach().numpy()
        return float(quality(torch_encoder(model, self.calibration), items, self.calibration).ndcg.mean())

    def recorded(self) -> list[Inputs]:
        """Returns the inputs that ranges are calibrated on, as the encoder reads them."""
        rows = evenly_spaced(len(self.calibration.user_index), N_CALIBRATION)
        batches = np.array_split(rows, max(1, len(rows) // CALIBRATION_BATCH))
        return [recorded_inputs(self.model, self.calibration, batch) for batch in batches]


BUILDERS: dict[str, Callable[[Material], EncoderGraph]] = {
    "int8": lambda material: quantise.int8_dynamic(material.exact),
    "int8-static": lambda material: quantise.int8_static(material.exact, material.recorded()),
    "fp16": lambda material: quantise.fp16_weights(material.exact),
    "int4": lambda material: quantise.int4_weights(material.exact),
    "pruned": lambda material: material.pruned,
    "pruned-int8": lambda material: quantise.int8_dynamic(material.pruned),
}


def forms_of(model: RankingModel) -> list[str]:
    """Returns the forms besides fp32 that ``model`` can have: tables have none, attention is pruned."""
    if not isinstance(model, SequenceModel):
        return []
    return [name for name in BUILDERS if isinstance(model, Prunable) or not name.startswith("pruned")]


def wanted_forms(names: Sequence[str], model: RankingModel) -> list[str]:
    """Returns the forms of ``model`` that ``names`` (of forms, "all" or "auto") ask for besides fp32.

    Raises :class:`InvalidRequest` for a name that is none, or none of this model's.
    """
    available = forms_of(model)
    for name in names:
        if name not in (*available, VARIANT, ALL, AUTO):
            raise InvalidRequest(
                "variants",
                found=name,
                expected=f"of {', '.join((ALL, AUTO, VARIANT, *available))} for this model",
                cure=nearest(name, (*available, VARIANT)),
            )
    if ALL in names or AUTO in names:
        return available
    return [name for name in available if name in names]
