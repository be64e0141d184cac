"""Times ALS iterations of implicit; run by `benchmarks.als_speed`, which asks for them one by one.

Usage: ``python implicit_speed.py ARRAYS.npz WIDTH THREADS``. For each line on stdin it runs a few iterations
from where it is and answers with the milliseconds of the fastest, as a line on stdout.
"""

import sys

import numpy as np
import scipy.sparse as sp
from implicit.als import AlternatingLeastSquares


def main() -> None:
    """Answers until stdin ends."""
    arrays, width, threads = np.load(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    shape = tuple(arrays["shape"])
    # The confidence of an interaction, the same for both sides of the comparison.
    confidence = np.full(len(arrays["user"]), 1 + arrays["weight"], np.float32)
    matrix = sp.csr_matrix((confidence, (arrays["user"], arrays["item"])), shape)
    model = AlternatingLeastSquares(
        factors=width, regularization=float(arrays["reg"]), iterations=4, num_threads=threads, random_state=0
    )
    for _ in sys.stdin:
        seconds: list[float] = []
        model.fit(matrix, show_progress=False, callback=lambda _, s, loss, seconds=seconds: seconds.append(s))
        print(1e3 * min(seconds), flush=True)


if __name__ == "__main__":
    main()
