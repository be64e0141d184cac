"""The verbs ``inspect``, ``serve``, ``demo``, ``keys``, ``audit`` and ``kernels``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recserve import console
from recserve.engine import (
    bundle_commands,
    items_commands,
    models_commands,
    recommend_command,
    state_commands,
)
from recserve.engine.options import ConfigOption, JsonOption
from recserve.engine.server.security import verbs

if TYPE_CHECKING:
    from recserve.engine.bundle import Manifest, VariantEntry
    from recserve.engine.bundle.ranker_entry import RankerEntry

# What a person compares variants by; --json has all of them.
HEADLINE_METRICS = ("NDCG@10", "HR@10", "MRR@10", "coverage@10")


def register(add: Callable[..., Any]) -> None:
    """Adds this folder's verbs to the command line."""
    add(inspect)
    recommend_command.register(add)
    add(serve)
    verbs.register(add)
    add(demo, needs=("torch", "onnx", "polars"), extra="train")
    add(warmup, group="kernels")
    bundle_commands.register(add)
    models_commands.register(add)
    items_commands.register(add)
    state_commands.register(add)


def inspect(bundle: Annotated[Path, typer.Argument(help="Bundle folder.")], json: JsonOption = False) -> None:
    """Check every file of a bundle and show what it holds."""
    import dataclasses

    from recserve.engine.bundle import open_bundle
    from recserve.engine.bundle.signatures import read_signatures

    opened = open_bundle(bundle)
    manifest = opened.manifest
    if json:
        console.print_json(dataclasses.asdict(manifest))
        return
    console.print_table(
        f"{bundle}: every file is what the manifest says",
        ["what", "value"],
        [
            ["bundle version", manifest.bundle_version],
            ["model", manifest.model],
            ["created", manifest.created_at],
            ["data", f"{manifest.lineage.data_name} (sha256 {manifest.lineage.data_sha256[:12]}…)"],
            ["items × embedding size", f"{manifest.n_items:,} × {manifest.embedding_size}"],
            ["newest items that the model sees", manifest.inputs.max_history],
            ["inputs", ", ".join(manifest.inputs.features)],
            ["signed by (not verified)", ", ".join(sorted(read_signatures(bundle))) or "nobody"],
            ["attributes for filters", ", ".join(opened.catalogue.describe()) or "none but item_id"],
            *(
                [f"query embeddings of {name}", _query_text(variant)]
                for name, variant in manifest.variants.items()
            ),
            ["second stage", "none" if manifest.ranker is None else _ranker_text(manifest.ranker)],
        ],
    )
    metrics = [name for name in HEADLINE_METRICS if name in manifest.metrics]
    console.print_table(
        "variants (* = default)",
        ["variant", "MB", *metrics, "parity"],
        [
            [
                f"{name} *" if name == manifest.default_variant else name,
                f"{variant.size_bytes / 1e6:.1f}",
                *(
                    f"{variant.metrics[metric]:.4f}" if metric in variant.metrics else ""
                    for metric in metrics
                ),
                f"{variant.gate['max_abs_error']:.1e}" if "max_abs_error" in variant.gate else "",
            ]
            for name, variant in manifest.variants.items()
        ],
    )
    _show_gate(manifest)


def _show_gate(manifest: "Manifest") -> None:
    from recserve.engine.bundle.gate_table import gate_table, ranker_gate, refusals

    columns, rows = gate_table(manifest)
    if rows:
        console.print_table(
            "what the gate measured when the bundle was exported (* = default)", columns, rows
        )
    for line in (*refusals(manifest), *ranker_gate(manifest)):
        console.note(line)


def _query_text(variant: "VariantEntry") -> str:
    if variant.fold_in is not None:
        fold_in = variant.fold_in
        return (
            f"user {variant.query}, fold-in with weight {fold_in.weight:g}, reg {fold_in.reg:g} "
            f"(exponent {fold_in.reg_exponent:g})"
        )
    return variant.query_encoder or f"user {variant.query}, others by popularity"


def _ranker_text(ranker: "RankerEntry") -> str:
    targets = ", ".join(f"{name} ({ranker.calibration[name].method})" for name in ranker.targets)
    context = ", ".join(feature.name for feature in ranker.context_features) or "no context"
    return f"{ranker.model}, {ranker.form}, predicts {targets} by {context}"


def serve(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder; not with --repository.")] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Folder of models, MODEL/BUNDLE; see `recserve models`.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Folder or URL that new bundles are copied from into --repository.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to bind, or unix:PATH. Default: 127.0.0.1.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. Default: 50051.")] = None,
    transport: Annotated[
        str | None, typer.Option(help="grpcio, or native (faster; plain text, local only). Default: grpcio.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes on the port; the vectors are in memory once. Default: 1.")
    ] = None,
    worker_threads: Annotated[
        int | None, typer.Option(help="Threads for calls that are not batched. Default: 2.")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Port of the JSON gateway; 0 takes a free one. Default: no gateway.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of /metrics and the probes. Default: the gateway's.")
    ] = None,
    traces: Annotated[
        bool | None, typer.Option("--traces", help="Send OpenTelemetry spans where OTEL_* says.")
    ] = None,
    access_lines: Annotated[
        int | None, typer.Option(help="Most log lines about requests per second; 0: none. Default: 100.")
    ] = None,
    provider: Annotated[str | None, typer.Option(help="auto, cpu or cuda. Default: auto.")] = None,
    insecure_bind: Annotated[
        bool | None,
        typer.Option("--insecure-bind", help="Allow an address other than loopback without TLS or a policy."),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="TOML file that says who may ask what. Default: everybody.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file; turns TLS on.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key, mode 0600.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM file; clients must show a certificate of this authority.")
    ] = None,
    admin_address: Annotated[
        str | None, typer.Option(help="HOST:PORT or unix:PATH of the admin methods. Default: none.")
    ] = None,
    audit_log: Annotated[
        Path | None, typer.Option(help="File that refusals and admin actions are appended to.")
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(help="Where events of users are kept: sqlite:///PATH or memory://. Default: nowhere."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Serve a bundle or a repository over gRPC until SIGTERM; stdout has its addresses once warm."""
    from recserve.engine.server.serve import ServeBundle, ServeRepository
    from recserve.engine.server.serve import serve as run
    from recserve.engine.settings import load_settings

    flags: dict[str, dict[str, Any]] = {
        "engine": {"provider": provider},
        "server": {
            "host": host,
            "port": port,
            "transport": transport,
            "workers": workers,
            "worker_threads": worker_threads,
            "insecure_bind": insecure_bind,
            "policy": policy,
            "tls_certificate": tls_certificate,
            "tls_key": tls_key,
            "tls_client_ca": tls_client_ca,
            "admin_address": admin_address,
            "audit_log": audit_log,
        },
        "http": {"port": http_port, "metrics_port": metrics_port},
        "telemetry": {"traces": traces, "access_lines_per_second": access_lines},
        "repository": {"folder": repository and str(repository), "source": source},
        "state": {"url": state},
    }
    settings = load_settings(config, flags)
    if bool(settings.repository.folder) == (bundle is not None):
        raise typer.BadParameter("give a bundle folder or --repository DIR, one of the two")

    def announce(addresses: str) -> None:
        console.stdout.file.write(f"{addresses}\n")
        console.stdout.file.flush()

    shared = (
        settings.engine,
        settings.server,
        settings.batcher,
        settings.http,
        settings.telemetry,
        settings.state,
        settings.online,
    )
    if bundle is None:
        run(ServeRepository(settings.repository, *shared), announce)
    else:
        run(ServeBundle(bundle, *shared), announce)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the demo's run and bundle.")] = Path("demo"),
    data: Annotated[str, typer.Option(help="Data set.")] = "ml-100k",
) -> None:
    """Train, evaluate, export, serve and ask, on real data; what is there already is used again."""
    from recserve.engine.demo import run_demo

    run_demo(out, data)


def warmup(json: JsonOption = False) -> None:
    """Compile the kernels into the cache, so that no process after this one has to; for image builds."""
    import time

    from recserve.kernels.isa import available
    from recserve.kernels.warmup import warmup_report

    start = time.perf_counter()
    warmed = warmup_report()
    seconds = time.perf_counter() - start
    if json:
        kernels = [kernel._asdict() for kernel in warmed]
        console.print_json({"isa": available()[0], "seconds": seconds, "kernels": kernels})
        return
    console.print_table(
        f"{available()[0]}: ready in {seconds:.2f} s",
        ["kernel", "forms compiled", "from the cache"],
        [[kernel.kernel, kernel.compiled, kernel.loaded] for kernel in warmed],
    )
