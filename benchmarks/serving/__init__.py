"""What the server promises of its speed, measured: ``python -m recserve.benchmarks.serving``.

``transports`` (next to an echo, as h2load sees them) · ``cases`` (everything else) · ``bundles`` (what is
served) · ``bars`` (the promises) · ``echo`` (the servers to compare with).
"""

from recserve.benchmarks.serving.transports import SHAPES, serving

__all__ = ["SHAPES", "serving"]
