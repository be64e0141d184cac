"""The results of ``encoder_forms`` and ``ranker_forms`` as tables."""

from collections.abc import Mapping
from typing import Any

from recserve.benchmarks.load.report import milliseconds
from recserve.benchmarks.table import Table

Row = Mapping[str, Any]
TIMES, LIMITS = ["case", "form", "ms", "of torch", "of as exported"], ["GFLOP/s", "of the limit"]
# What is shown of quality: title, name in the row, form of the number.
NDCG = (("NDCG@10", "ndcg@10", ".4f"), ("lost, up to", "ndcg_loss_high", ".1%"))
AUC = (("AUC", "auc", ".4f"), ("lost", "auc_loss", "+.4f"), ("up to", "auc_loss_high", "+.4f"))
Quality = tuple[tuple[str, str, str], ...]


def forms_tables(result: Row) -> list[Table]:
    """Returns a table for each encoder."""
    return _tables(result, "length 50", NDCG)


def ranker_tables(result: Row) -> list[Table]:
    """Returns a table for each ranker."""
    return _tables(result, "requests of 500 candidates", AUC)


def _tables(result: Row, what: str, quality: Quality) -> list[Table]:
    columns = [*TIMES, *(title for title, _, _ in quality), "bytes", *LIMITS]
    tables = []
    for model in dict.fromkeys(row["model"] for row in result["rows"]):
        rows = [_texts(row, quality) for row in result["rows"] if row["model"] == model]
        title = f"Forms of {model}, {what}, one thread, in turns"
        tables.append(Table(title, columns, rows, _limits(result["limits"])))
    return tables


def _texts(row: Row, quality: Quality) -> list[str]:
    return [
        row["case"],
        row["form"],
        milliseconds(row["p50_ms"]),
        f"{row['of_torch']:.2f}",
        f"{row['of_exported']:.2f}",
        *(_figure(row, name, form) for _, name, form in quality),
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
