"""The contract between the offline and the online half: an immutable directory that says what it holds.

Needs numpy, pyarrow, structlog and the standard library, and cryptography where signatures are asked for.
Nothing in a bundle is ever executed or unpickled except its ONNX graphs, which ONNX Runtime interprets.
"""

from recserve.engine.bundle.manifest import FORMAT_VERSION, FoldIn, Manifest, Refused, VariantEntry
from recserve.engine.bundle.reader import Bundle, open_bundle
from recserve.engine.bundle.vocabulary import Vocabulary
from recserve.engine.bundle.writer import BundleWriter

__all__ = [
    "FORMAT_VERSION",
    "Bundle",
    "BundleWriter",
    "FoldIn",
    "Manifest",
    "Refused",
    "VariantEntry",
    "Vocabulary",
    "open_bundle",
]
