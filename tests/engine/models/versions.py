"""Bundles that differ by version, and damage to them."""

from pathlib import Path

from recserve.benchmarks.versions import is_of, make_version

__all__ = ["flip_bit", "is_of", "make_version"]


def flip_bit(path: Path) -> None:
    """Damages the first byte of a file: in a manifest, too, it is one that counts."""
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
