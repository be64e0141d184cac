"""Recorded inferences: what the exporter saw, which every load must see again."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle.ranker_entry import MIN_GOLDEN_TOLERANCE
from recserve.errors import BundleInvalid, BundleReason


def read_golden(data: bytes, name: str, arrays: list[str]) -> dict[str, NDArray[Any]]:
    """Reads the named arrays of an uncompressed ``.npz``; raises :class:`BundleInvalid` otherwise."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # Compressed entries could unpack to any size.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("compressed")
        with np.load(io.BytesIO(data), allow_pickle=False) as golden:
            return {array: golden[array] for array in arrays}
    except (
        ValueError,
        KeyError,
        OSError,
        EOFError,
        TypeError,
        NotImplementedError,
        zipfile.BadZipFile,
    ) as error:
        raise BundleInvalid(
            f"file {name}",
            found="unreadable",
            expected="recorded inference",
            reason=BundleReason.GOLDEN_MALFORMED,
        ) from error


@contextmanager
def repeated(name: str) -> Iterator[None]:
    """Turns whatever ends the repetition of what file ``name`` recorded into :class:`BundleInvalid`."""
    try:
        yield
    except Exception as error:
        raise BundleInvalid(
            name,
            found="an inference that fails",
            expected="the recorded one",
            reason=BundleReason.GRAPH_FAILS,
        ) from error


def check_golden(
    name: str,
    found: NDArray[np.float32],
    expected: NDArray[Any],
    shape: tuple[int, ...],
    tolerance: float = MIN_GOLDEN_TOLERANCE,
) -> None:
    """Raises :class:`BundleInvalid` unless ``found`` is what file ``name`` recorded, both of ``shape``."""
    if expected.shape != shape:
        raise BundleInvalid(
            f"recorded output of {name}",
            found=expected.shape,
            expected=f"shape {shape}",
            reason=BundleReason.GOLDEN_MALFORMED,
        )
    if found.shape != shape:
        raise BundleInvalid(
            f"output of {name}",
            found=found.shape,
            expected=f"shape {shape}",
            reason=BundleReason.GRAPH_OUTPUT,
        )
    difference = float(np.max(np.abs(found - expected), initial=0.0))
    if not difference <= tolerance:
        raise BundleInvalid(
            f"difference from {name}",
            found=difference,
            expected=f"at most {tolerance:.2g}",
            reason=BundleReason.GOLDEN_DIFFERS,
        )
