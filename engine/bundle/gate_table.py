"""The gate's figures as rows for a person: what ``export`` and ``inspect`` print."""

from collections import defaultdict
from collections.abc import Mapping

from recserve.engine.bundle.manifest import Manifest

COLUMNS = (
    "variant",
    "NDCG@10",
    "lost (95 %)",
    "same top 10",
    "score error",
    "graph MB",
    "memory MB",
    "1 history, p50 / p99 ms",
    "32 histories, p50 / p99 ms",
    "speed-up 1 / 32",
    "gate",
)


def gate_rows(manifest: Manifest) -> list[list[str]]:
    """Returns a row of ``COLUMNS`` for each form that the gate measured, served ones first."""
    served = {
        name: (f"{name} *" if name == manifest.default_variant else name, variant.gate, "served")
        for name, variant in manifest.variants.items()
    }
    refused = {name: (name, form.gate, f"refused: {form.reason}") for name, form in manifest.refused.items()}
    return [
        [label, *_figures(gate), verdict]
        for label, gate, verdict in (*served.values(), *refused.values())
        if "ndcg" in gate
    ]


def _figures(gate: Mapping[str, float]) -> list[str]:
    # A manifest may be of another hand: what it lacks is shown as not a number.
    value = defaultdict(lambda: float("nan"), gate)
    return [
        f"{value['ndcg']:.4f}",
        f"{value['ndcg_loss']:+.2%} ({value['ndcg_loss_low']:+.2%} to {value['ndcg_loss_high']:+.2%})",
        f"{value['top10_overlap']:.3f}",
        f"{value['max_score_error']:.1e}",
        f"{value['size_bytes'] / 1e6:.2f} ({value['size_ratio']:.2f})",
        f"{value['resident_bytes'] / 1e6:.1f}",
        f"{value['p50_batch1_ms']:.3f} / {value['p99_batch1_ms']:.3f}",
        f"{value['p50_batch32_ms']:.2f} / {value['p99_batch32_ms']:.2f}",
        f"{value['speedup_batch1']:.2f}× / {value['speedup_batch32']:.2f}×",
    ]
