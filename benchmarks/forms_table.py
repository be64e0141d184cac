"""The result of ``encoder_forms`` as tables."""

from collections.abc import Mapping
from typing import Any

from recserve.benchmarks.load.report import milliseconds
from recserve.benchmarks.table import Table

Row = Mapping[str, Any]
COLUMNS = [
    *("case", "form", "ms", "of torch", "of as exported"),
    *("NDCG@10", "lost, up to", "bytes", "GFLOP/s", "of the limit"),
]


def forms_tables(result: Row) -> list[Table]:
    """Returns a table for each model."""
    tables = []
    for model in dict.fromkeys(row["model"] for row in result["rows"]):
        rows = [_texts(row) for row in result["rows"] if row["model"] == model]
        title = f"Forms of {model}, length 50, one thread, in turns"
        tables.append(Table(title, COLUMNS, rows, _limits(result["limits"])))
    return tables


def _texts(row: Row) -> list[str]:
    return [
        row["case"],
        row["form"],
        milliseconds(row["p50_ms"]),
        f"{row['of_torch']:.2f}",
        f"{row['of_exported']:.2f}",
        _figure(row, "ndcg@10", ".4f"),
        _figure(row, "ndcg_loss_high", ".1%"),
        _figure(row, "size_ratio", ".2f"),
        _figure(row, "gflops", ".1f"),
        _figure(row, "of_limit", ".0%"),
    ]


def _limits(machine: Row | None) -> str:
    if not machine:
        return ""
    speed = machine["read_gb_per_s"][max(machine["read_gb_per_s"], key=int)]
    return (
        f"Limits of one thread, measured: {machine['fp32_gflops']:.0f} GFLOP/s, "
        f"{machine['int8_gops']:.0f} · 10⁹ operations/s in 8 bits, {speed:.1f} GB/s from memory."
    )


def _figure(row: Row, name: str, form: str) -> str:
    return f"{row[name]:{form}}" if name in row else "–"
