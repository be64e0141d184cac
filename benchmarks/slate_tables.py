"""The results about slates as tables: what the pipeline costs, what its stages are worth."""

from collections.abc import Mapping
from typing import Any

from recserve.benchmarks.load.report import milliseconds
from recserve.benchmarks.served_tables import promises
from recserve.benchmarks.table import Table

Result = Mapping[str, Any]


def slates(result: Result) -> list[Table]:
    """The whole pipeline next to the one by hand."""
    rows = [
        [
            str(row["batch"]),
            way,
            milliseconds(row["p50_ms"][way]),
            milliseconds(row["p99_ms"][way]),
            f"{row['slates_per_second'][way]:,.0f}",
        ]
        for row in result["rows"]
        for way in row["p50_ms"]
    ]
    title = (
        f"{result['n_items']:,} items → {result['n_candidates']} candidates, ranked → {result['k']} by DPP, "
        "explained: the engine and the same by hand"
    )
    note = "; ".join(
        f"batch {batch}, µs of each stage: " + ", ".join(f"{name} {us:.0f}" for name, us in stages.items())
        for batch, stages in result["stages_us"].items()
    )
    columns = ["batch", "who", "p50 ms", "p99 ms", "slates per second"]
    return [Table(title, columns, rows, f"The engine, {note}."), promises(result)]


def slate_quality(result: Result) -> list[Table]:
    """Two stages, diversity and context."""
    stages = [
        [row["what"], f"{row['ndcg@10']['mean']:.4f}", _between(row["gain"])] for row in result["two_stages"]
    ]
    diversity = [
        [
            row["what"],
            f"{row['weight']:g}",
            f"{row['ndcg@10']:.4f}",
            _between(row["ndcg_change"], percent=True),
            f"{row['diversity']:.3f}",
            f"{row['diversity_raised']:+.1%}",
            "reached" if row["reached"] else "missed",
        ]
        for row in result["diversity"]
    ]
    context = result["context"]
    aucs = [
        [
            way,
            f"{auc['mean']:.4f}",
            _between(context["gain_over"][way]) if way in context["gain_over"] else "",
        ]
        for way, auc in context["auc"].items()
    ]
    title = f"Context: AUC of {context['model']}, the next item among all that a user did not have"
    return [
        Table(f"Two stages: {result['protocol']}", ["what", "NDCG@10", "gain (95 %)"], stages),
        Table(
            "Diversity by DPP: at least +20 % at no more than −3 %",
            ["what", "weight", "NDCG@10", "change (95 %)", "mean cosine distance", "change", ""],
            diversity,
        ),
        Table(title, ["what it knows", "AUC", "gain of all over it (95 %)"], aucs),
    ]


def _between(gain: Result, *, percent: bool = False) -> str:
    form = "{:+.1%}" if percent else "{:+.4f}"
    mean, low, high = (form.format(gain[name]) for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"
