"""The verb ``retrain``."""

import dataclasses
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from recserve import console


def register(add: Callable[..., Any], *, needs: tuple[str, ...]) -> None:
    """Adds the verb to the command line."""
    add(retrain, needs=(*needs, "apsw", "cryptography"), extra="train,state")


def retrain(
    run: Annotated[Path, typer.Argument(help="Run folder of the version before.")],
    state: Annotated[str, typer.Option(help="The log: sqlite:///PATH, redis://…, postgresql://…")],
    repository: Annotated[Path, typer.Option(help="Repository of the model that answers.")],
    out: Annotated[Path, typer.Option(help="Run folder to write; the next retraining begins with it.")],
    model: Annotated[str, typer.Option(help="Model in the repository.")] = "default",
    since: Annotated[
        datetime.datetime | None, typer.Option(help="First day, or moment (UTC), to learn from.")
    ] = None,
    holdout: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Share of the newest events that both are judged by.")
    ] = 0.2,
    epochs: Annotated[int, typer.Option(help="Most epochs; 0: as the run before.")] = 0,
    key_file: Annotated[Path | None, typer.Option(help="Master keys of the log.")] = None,
    server: Annotated[
        str, typer.Option(help="Admin address of a server that shall answer with a winner at once.")
    ] = "",
    sign_key: Annotated[
        Path | None, typer.Option(help="File of a private key (`recserve bundle keygen`) to sign with.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a new version from the log and the run before; it answers only if it wins on the newest events.

    Exit code 0, whoever won: the table, or "bundle" in JSON, says it.
    """
    from recserve.engine.asking import asking
    from recserve.engine.bundle.signing_keys import read_signing_key
    from recserve.engine.state.config import StateConfig
    from recserve.exporters.retraining.retrain import RetrainConfig
    from recserve.exporters.retraining.retrain import retrain as run_retrain

    config = RetrainConfig(
        run=run,
        out=out,
        state=StateConfig(url=state, key_file=key_file),
        repository=repository,
        model=model,
        since=0 if since is None else int(since.replace(tzinfo=datetime.UTC).timestamp()),
        holdout=holdout,
        epochs=epochs,
        signing_key=None if sign_key is None else read_signing_key(sign_key),
    )
    with console.progress("training") as update:
        result = run_retrain(config, lambda report: update(1, description=f"epoch {report.epoch}"))
    if server and result.bundle is not None:
        from recserve.proto import admin_pb2 as pb
        from recserve.proto import admin_pb2_grpc

        with asking(server, 600.0, admin_pb2_grpc.AdminStub) as ask:
            ask("Activate", pb.ActivateRequest(model=model, version=result.bundle.version))
    _show(result, json=json)


def _show(result: Any, *, json: bool) -> None:
    found = result.contest
    plain = {
        "events learned from": result.n_events,
        "events to judge by": result.n_held_out,
        "users": found.n_users,
        "begun with the weights before": result.carried_over,
        "serving": result.serving,
        "NDCG@10 of it": found.serving,
        "NDCG@10 of the new one": found.new,
        "gain": dataclasses.asdict(found.gain),
        "bundle": str(result.bundle.folder) if result.bundle else None,
    }
    if json:
        console.print_json(plain)
        return
    gain = f"{found.gain.mean:+.4f} ({found.gain.low:+.4f} to {found.gain.high:+.4f})"
    rows = [[name, value] for name, value in {**plain, "gain": gain}.items()]
    console.print_table("retrained", ["what", "value"], rows)
    console.note("the new one wins" if result.bundle else "the new one does not win: it is not served")
