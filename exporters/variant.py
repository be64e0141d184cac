"""One form of a model inside a bundle, as the exporters of both kinds give it to the assembly."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import VariantEntry
from recserve.engine.bundle.item_table import FLOAT32
from recserve.engine.bundle.manifest import InputContract
from recserve.exporters.onnx_graph import EncoderGraph
from recserve.exporters.parity import Parity

VARIANT = "fp32"
GOLDEN = f"variants/{VARIANT}/golden.npz"


@dataclass(frozen=True, slots=True)
class Variant:
    """Its entry of the manifest (metrics apart), what it reads, its item table and its parity.

    ``graph``: what other forms of an encoder are made from, over the float32 table; a table has none.
    ``item_table``: how the item table is stored.
    """

    entry: VariantEntry
    inputs: InputContract
    item_embeddings: NDArray[np.float32]
    parity: Parity
    graph: EncoderGraph | None = None
    item_table: str = FLOAT32
