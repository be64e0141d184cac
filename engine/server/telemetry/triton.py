"""Triton's metric names, so that dashboards made for Triton show this server.

Names and meanings: github.com/triton-inference-server/core, src/metrics.cc. Triton's counters have no
``_total``, which prometheus-client would append: hence the text is written here.
"""

from collections.abc import Iterator, Mapping

from recserve.engine.server.telemetry.metrics import Counts, Sources

# The word of Triton for a reason of ours; the rest is OTHER.
REASONS = {
    "OVERLOADED": "REJECTED",
    "RATE_LIMITED": "REJECTED",
    "UNAVAILABLE": "REJECTED",
    "DEADLINE_EXCEEDED": "REJECTED",
    "CANCELLED": "CANCELED",
    "INTERNAL": "BACKEND",
}
# Triton's parts of a request and the stages of ours that are in each.
STAGES = {
    "nv_inference_queue_duration_us": ("queue",),
    "nv_inference_compute_input_duration_us": ("resolve",),
    "nv_inference_compute_infer_duration_us": ("encode", "retrieve"),
    "nv_inference_compute_output_duration_us": ("assemble",),
}
INFERENCE_SCOPE = "recommend"
# As every repository counts that has one version of a model.
VERSION = "1"


def triton_lines(counts: Counts, sources: Sources) -> str:
    """Returns the metrics in Prometheus' text format, nothing while no bundle is served."""
    engines = sources.engines()
    if not engines:
        return ""
    labels = {"model": engines[0].manifest.model, "version": VERSION}
    n_rows = sum(engine.stats()["requests"] for engine in engines)
    return "".join(f"{line}\n" for line in _lines(counts, sources, n_rows, labels))


def _lines(counts: Counts, sources: Sources, n_rows: int, labels: Mapping[str, str]) -> Iterator[str]:
    models = {method.path: method for method in sources.methods if method.scope == INFERENCE_SCOPE}
    succeeded = {path: n for (path, code), n in counts.requests.items() if code == "OK" and path in models}
    failed = dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0)
    for (path, reason), n in counts.failures.items():
        if path in models:
            failed[REASONS.get(reason, "OTHER")] += n
    alone = sum(n for path, n in succeeded.items() if not models[path].is_batched)
    seconds = sum(counts.seconds[path].total for path in models if path in counts.seconds)

    yield from _counter(
        "nv_inference_request_success", "Successful requests", sum(succeeded.values()), labels
    )
    yield "# HELP nv_inference_request_failure Failed requests"
    yield "# TYPE nv_inference_request_failure counter"
    for reason, n in failed.items():
        yield _sample("nv_inference_request_failure", {**labels, "reason": reason}, n)
    yield from _counter("nv_inference_count", "Inferences performed, rows of batches", n_rows, labels)
    yield from _counter(
        "nv_inference_exec_count", "Model executions, batches", sum(counts.batch_sizes.counts) + alone, labels
    )
    yield from _counter(
        "nv_inference_request_duration_us", "Cumulative request duration", int(seconds * 1e6), labels
    )
    for name, stages in STAGES.items():
        total = sum(counts.stages[stage].total for stage in stages if stage in counts.stages)
        text = name.removeprefix("nv_inference_").removesuffix("_us").replace("_", " ")
        yield from _counter(name, f"Cumulative {text}", int(total * 1e6), labels)
    yield "# HELP nv_inference_pending_request_count Requests that wait for execution"
    yield "# TYPE nv_inference_pending_request_count gauge"
    yield _sample("nv_inference_pending_request_count", labels, sources.waiting())


def _counter(name: str, text: str, value: int, labels: Mapping[str, str]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} counter"
    yield _sample(name, labels, value)


def _sample(name: str, labels: Mapping[str, str], value: int) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
