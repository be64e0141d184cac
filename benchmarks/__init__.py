"""Benchmarks: programs that measure; each prints its machine, its versions, its seeds and its baseline."""
