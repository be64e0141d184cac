"""The gate's figures as rows for a person: what ``export`` and ``inspect`` print."""

from collections import defaultdict
from collections.abc import Mapping

from recserve.engine.bundle.manifest import Manifest

FIGURES = (
    "NDCG@10",
    "lost",
    "at least (95 %)",
    "at most (95 %)",
    "same top 10",
    "largest score error",
    "graph and items MB",
    "of fp32",
    "memory MB",
    "1 history: p50 ms",
    "p99 ms",
    "speed-up",
    "32 histories: p50 ms",
    "p99 ms",
    "speed-up",
)


def gate_table(manifest: Manifest) -> tuple[list[str], list[list[str]]]:
    """Returns the columns, one for each form that the gate measured, and a row for each figure."""
    served = {name: (variant.gate, "served") for name, variant in manifest.variants.items()}
    refused = {name: (form.gate, "refused") for name, form in manifest.refused.items()}
    # A refused form may lack a figure: the one that was not a number.
    forms = {name: form for name, form in (served | refused).items() if "speedup_batch1" in form[0]}
    labels = [f"{name} *" if name == manifest.default_variant else name for name in forms]
    columns = [[*_values(gate), verdict] for gate, verdict in forms.values()]
    if not columns:
        return [], []
    return ["", *labels], [list(row) for row in zip((*FIGURES, "gate"), *columns, strict=True)]


def refusals(manifest: Manifest) -> list[str]:
    """Returns a line for each form that is not in the bundle: why."""
    return [f"{name} refused: {form.reason}" for name, form in manifest.refused.items()]


def ranker_gate(manifest: Manifest) -> list[str]:
    """Returns a line about the form of the ranker, where it is another than fp32."""
    ranker = manifest.ranker
    if ranker is None or "auc_loss" not in ranker.gate:
        return []
    gate = defaultdict(lambda: float("nan"), ranker.gate)
    return [
        f"ranker {ranker.model} as {ranker.form}: AUC {gate['auc']:.4f}, lost {gate['auc_loss']:+.4f} "
        f"({gate['auc_loss_low']:+.4f} to {gate['auc_loss_high']:+.4f}, 95 %), same top 10 "
        f"{gate['top10_overlap']:.3f}, largest logit error {gate['max_logit_error']:.1e}; "
        f"{gate['size_ratio']:.2f} of fp32's bytes, {gate['resident_bytes'] / 1e6:.1f} MB of memory; "
        f"{gate['p50_batch1_ms']:.3f} and {gate['p50_batch32_ms']:.2f} ms for 1 and 32 requests (p99 "
        f"{gate['p99_batch1_ms']:.3f} and {gate['p99_batch32_ms']:.2f}), speed-up "
        f"{gate['speedup_batch1']:.2f}× and {gate['speedup_batch32']:.2f}×"
    ]


def _values(gate: Mapping[str, float]) -> list[str]:
    value = defaultdict(lambda: float("nan"), gate)
    return [
        f"{value['ndcg']:.4f}",
        f"{value['ndcg_loss']:+.2%}",
        f"{value['ndcg_loss_low']:+.2%}",
        f"{value['ndcg_loss_high']:+.2%}",
        f"{value['top10_overlap']:.3f}",
        f"{value['max_score_error']:.1e}",
        f"{value['size_bytes'] / 1e6:.2f}",
        f"{value['size_ratio']:.2f}",
        f"{value['resident_bytes'] / 1e6:.1f}",
        f"{value['p50_batch1_ms']:.3f}",
        f"{value['p99_batch1_ms']:.3f}",
        f"{value['speedup_batch1']:.2f}×",
        f"{value['p50_batch32_ms']:.2f}",
        f"{value['p99_batch32_ms']:.2f}",
        f"{value['speedup_batch32']:.2f}×",
    ]
