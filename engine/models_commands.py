"""``recserve models``: what a running server answers with, and how that is changed.

RECSERVE_TOKEN in the environment holds the API key or token, RECSERVE_CA the PEM file of the server's
authority (or "system"), which turns TLS on.
"""

import builtins
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Any, TypeAlias

import typer

from recserve import console
from recserve.engine.asking import asking
from recserve.engine.options import JsonOption

ServerOption = Annotated[
    str,
    typer.Option(
        "--server",
        help="HOST:PORT of the admin address. RECSERVE_TOKEN and RECSERVE_CA say who asks, and whom.",
    ),
]
ModelArgument = Annotated[str, typer.Argument(help="Model.")]
TimeoutOption = Annotated[float, typer.Option(help="Seconds to wait for the answer.")]
DEFAULT_SERVER = "127.0.0.1:50052"
# Written so because of the verb ``list`` below.
Arms: TypeAlias = builtins.list[str]
# A load takes as long as it takes.
DEFAULT_TIMEOUT = 600.0


def register(add: Callable[..., Any]) -> None:
    """Adds the verbs below ``recserve models``."""
    for verb in (list, load, unload, activate, rollback, split, shadow):
        add(verb, group="models")


def load(
    model: ModelArgument,
    version: Annotated[str, typer.Argument(help="Version. Default: the newest.")] = "",
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    json: JsonOption = False,
) -> None:
    """Load, check and warm a version without giving it callers."""
    from recserve.proto import admin_pb2 as pb

    with _admin(server, timeout) as ask:
        _show(ask("LoadModel", pb.LoadModelRequest(model=model, version=version)), json=json)


def unload(
    model: ModelArgument,
    version: Annotated[str, typer.Argument(help="Version. Default: the whole model.")] = "",
    server: ServerOption = DEFAULT_SERVER,
    json: JsonOption = False,
) -> None:
    """Free a version that has no callers, or a whole model, which then answers no more."""
    from recserve.proto import admin_pb2 as pb

    with _admin(server, DEFAULT_TIMEOUT) as ask:
        _show(ask("UnloadModel", pb.UnloadModelRequest(model=model, version=version)), json=json)


def activate(
    model: ModelArgument,
    version: Annotated[str, typer.Argument(help="Version. Default: the newest.")] = "",
    variant: Annotated[str, typer.Option(help="A variant of the bundle. Default: the bundle's.")] = "",
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    json: JsonOption = False,
) -> None:
    """Give all callers to one version; what answered before drains and is freed."""
    from recserve.proto import admin_pb2 as pb

    request = pb.ActivateRequest(model=model, version=version, variant=variant)
    with _admin(server, timeout) as ask:
        _show(ask("Activate", request), json=json)


def rollback(
    model: ModelArgument,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    json: JsonOption = False,
) -> None:
    """Go back to the route before the current one."""
    from recserve.proto import admin_pb2 as pb

    with _admin(server, timeout) as ask:
        _show(ask("Rollback", pb.RollbackRequest(model=model)), json=json)


def split(
    model: ModelArgument,
    arms: Annotated[
        Arms,
        typer.Argument(help="VERSION=WEIGHT each, the baseline first; NAME:VERSION=WEIGHT names it."),
    ],
    salt: Annotated[str, typer.Option(help="Another salt assigns all callers anew.")] = "",
    guard: Annotated[
        bool, typer.Option("--guard", help="Take arms back that fail, are slow or lose quality.")
    ] = False,
    min_requests: Annotated[
        int | None, typer.Option(help="Of arm and baseline before the guard judges. Default: 100.")
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    json: JsonOption = False,
) -> None:
    """Divide the callers between versions by a stable hash of the user id (A/B test, canary)."""
    from recserve.proto import admin_pb2 as pb

    watched = pb.Guard(min_requests=min_requests) if guard or min_requests is not None else None
    request = pb.SetSplitRequest(model=model, arms=[_arm(arm) for arm in arms], salt=salt, guard=watched)
    with _admin(server, timeout) as ask:
        _show(ask("SetSplit", request), json=json)


def shadow(
    model: ModelArgument,
    version: Annotated[str, typer.Argument(help="Version that is asked too; none ends it.")] = "",
    share: Annotated[float, typer.Option(help="Share of the requests, above 0 to 1.")] = 0.1,
    server: ServerOption = DEFAULT_SERVER,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,
    json: JsonOption = False,
) -> None:
    """Ask another version a share of the requests too and compare; callers never notice."""
    from recserve.proto import admin_pb2 as pb

    wanted = pb.Shadow(version=version, share=share) if version else None
    with _admin(server, timeout) as ask:
        _show(ask("SetShadow", pb.SetShadowRequest(model=model, shadow=wanted)), json=json)


def list(server: ServerOption = DEFAULT_SERVER, json: JsonOption = False) -> None:
    """List models, versions and their states."""
    from google.protobuf.json_format import MessageToDict

    from recserve.proto import admin_pb2 as pb

    with _admin(server, DEFAULT_TIMEOUT) as ask:
        reply = ask("ListModels", pb.ListModelsRequest())
    if json:
        options: dict[str, Any] = {
            "preserving_proto_field_name": True,
            "always_print_fields_with_no_presence": True,
        }
        console.print_json(MessageToDict(reply, **options))
        return
    rows = []
    for model in reply.models:
        total = sum(arm.weight for arm in model.route.arms) or 1.0
        shares = {arm.version: f"{arm.weight / total:.1%} {arm.name}" for arm in model.route.arms}
        if model.route.HasField("shadow"):
            shadow = model.route.shadow
            shares.setdefault(shadow.version, f"shadow of {shadow.share:.1%}")
        for version in model.versions:
            state = pb.ModelVersion.State.Name(version.state)
            name = f"{model.name} *" if model.is_default else model.name
            note = f"{version.reason}: {version.message}" if version.reason else ""
            rows.append([name, version.version, state, shares.get(version.version, ""), note])
    console.print_table("models (* = default)", ["model", "version", "state", "callers", "why"], rows)


def _arm(text: str) -> Any:
    """Reads ``[NAME:]VERSION=WEIGHT``."""
    from recserve.proto import admin_pb2 as pb

    name, has_name, rest = text.rpartition(":")
    version, _, weight = (rest if has_name else text).rpartition("=")
    try:
        return pb.Arm(name=name, version=version, weight=float(weight))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no arm; expected VERSION=WEIGHT") from None


def _admin(server: str, timeout: float) -> AbstractContextManager[Callable[[str, Any], Any]]:
    from recserve.proto import admin_pb2_grpc

    return asking(server, timeout, admin_pb2_grpc.AdminStub)


def _show(reply: Any, *, json: bool) -> None:
    from google.protobuf.json_format import MessageToDict

    fields = MessageToDict(reply, preserving_proto_field_name=True)
    if json:
        console.print_json(fields)
        return
    for arm in fields.get("arms", [fields] if fields else []):
        console.print_table(
            "done", ["what", "value"], [[name, value] for name, value in arm.items() if value != ""]
        )
    console.note("done")
