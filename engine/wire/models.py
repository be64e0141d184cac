"""Routes and statuses of models ↔ the messages of ``recserve.v1.Admin``."""

from dataclasses import asdict, fields

from recserve.engine.models.guard import ArmStats, GuardConfig
from recserve.engine.models.routing import Arm, Route, Shadow
from recserve.engine.models.shadow import ShadowStats
from recserve.engine.models.states import ModelStatus, VersionStatus
from recserve.proto import admin_pb2 as pb


def route_to_message(route: Route) -> pb.Route:
    """Writes a route."""
    return pb.Route(
        arms=[pb.Arm(**asdict(arm)) for arm in route.arms],
        salt=route.salt,
        guard=pb.Guard(**asdict(route.guard)) if route.guard else None,
        shadow=pb.Shadow(**asdict(route.shadow)) if route.shadow else None,
    )


def route_from_message(message: pb.Route | pb.SetSplitRequest) -> Route:
    """Reads a route; an arm without a name is called as its version. Values are checked by the types."""
    arms = tuple(
        Arm(name=arm.name or arm.version, version=arm.version, weight=arm.weight, variant=arm.variant)
        for arm in message.arms
    )
    guard = guard_from_message(message.guard) if message.HasField("guard") else None
    shadow = None
    if isinstance(message, pb.Route) and message.HasField("shadow"):
        shadow = shadow_from_message(message.shadow)
    return Route(arms=arms, salt=message.salt, guard=guard, shadow=shadow)


def guard_from_message(message: pb.Guard) -> GuardConfig:
    """Reads a guard; what is not set has its default."""
    names = [field.name for field in fields(GuardConfig) if message.HasField(field.name)]  # type: ignore[arg-type]
    return GuardConfig(**{name: getattr(message, name) for name in names})


def shadow_from_message(message: pb.Shadow) -> Shadow:
    """Reads a shadow."""
    return Shadow(version=message.version, share=message.share)


def version_to_message(status: VersionStatus) -> pb.ModelVersion:
    """Writes where a version stands."""
    return pb.ModelVersion(
        version=status.version,
        state=pb.ModelVersion.State.Value(status.state.name),
        reason=status.reason,
        message=status.message,
    )


def model_to_message(
    status: ModelStatus, arm_stats: dict[str, ArmStats], shadow_stats: ShadowStats | None
) -> pb.Model:
    """Writes a model with what its arms did."""
    return pb.Model(
        name=status.name,
        is_default=status.is_default,
        route=route_to_message(status.route) if status.route else None,
        versions=[version_to_message(version) for version in status.versions],
        arm_stats=[
            pb.ArmStats(
                arm=name,
                requests=stats.requests,
                errors=stats.errors,
                by_model=stats.by_model,
                p95_ms=stats.latency(0.95) * 1000,
            )
            for name, stats in arm_stats.items()
        ],
        shadow_stats=pb.ShadowStats(**asdict(shadow_stats)) if shadow_stats else None,
    )
