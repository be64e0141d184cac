"""``recserve serve`` that keeps some bytes of every call, which benchmarks/soak.py must find.

``python -m recserve.benchmarks.leaking BYTES serve …``
"""

import os
import sys
from typing import Any

from recserve.engine import cli
from recserve.engine.server.call import Call
from recserve.engine.server.chain import Chain


def main() -> None:
    """Plants the leak and runs the command line."""
    n_bytes, arguments = int(sys.argv[1]), sys.argv[2:]
    dispatch = Chain.dispatch
    kept: list[bytes] = []

    def leaking(self: Chain, call: Call, data: bytes) -> Any:
        kept.append(os.urandom(n_bytes))
        return dispatch(self, call, data)

    Chain.dispatch = leaking  # type: ignore[method-assign]
    cli.main(arguments)


if __name__ == "__main__":
    main()
