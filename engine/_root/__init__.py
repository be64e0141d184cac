"""recserve: train recommendation models, export them to ONNX, serve them fast.

The rooms: :mod:`recserve.engine` (online half, embeddable), :mod:`recserve.kernels` (top-K scoring),
:mod:`recserve.training`, :mod:`recserve.exporters`, :mod:`recserve.benchmarks`, :mod:`recserve.proto`.
"""

__version__ = "0.1.0"
