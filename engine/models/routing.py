"""Who is answered by which version: an immutable route per model, and the hash that assigns callers."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from recserve.engine.models.guard import GuardConfig
from recserve.errors import InvalidRequest, UnknownModel

MAX_ARMS = 16
DEFAULT_ARM = "main"
# Read by the pointer file's validator: a key that nobody knows is an error.
STRICT = {"extra": "forbid"}


def share_of(key: str, salt: str) -> float:
    """Returns the place of ``key`` in [0, 1): stable over processes, versions and machines.

    The first 8 bytes of BLAKE2b (digest size 8) of ``salt``, a zero byte and ``key`` in UTF-8, read as a
    big-endian number, its upper 53 bits divided by 2^53. Another salt shuffles all callers anew.
    """
    text = f"{salt}\0{key}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A share of the callers and what answers them.

    ``weight``: relative to those of the other arms; ``variant``: of the bundle, "" for its default.
    """

    __pydantic_config__ = STRICT

    name: str = DEFAULT_ARM
    version: str
    weight: float = 1.0
    variant: str = ""

    def __post_init__(self) -> None:
        if not self.name or not self.version:
            raise InvalidRequest("arm", found=(self.name, self.version), expected="a name and a version")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise InvalidRequest(f"weight of arm {self.name}", found=self.weight, expected="0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """``share`` (0 to 1) of the answered requests is asked again of ``version``, for comparison only."""

    __pydantic_config__ = STRICT

    version: str
    share: float = 0.1

    def __post_init__(self) -> None:
        if not self.version or not 0 < self.share <= 1:
            raise InvalidRequest("shadow", found=(self.version, self.share), expected="a version and a share")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The arms of one model. ``arms[0]`` is the baseline; a ``guard`` watches the others against it.

    Callers keep their arm while the weights stay. With two arms, raising the weight of the second one
    only adds callers to it.
    """

    __pydantic_config__ = STRICT

    arms: tuple[Arm, ...]
    salt: str = ""
    guard: GuardConfig | None = None
    shadow: Shadow | None = None

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if not 1 <= len(names) <= MAX_ARMS or len(set(names)) < len(names):
            raise InvalidRequest("arms", found=names, expected=f"1 to {MAX_ARMS} different names")
        if not sum(arm.weight for arm in self.arms) > 0:
            raise InvalidRequest("weights", found="all zero", expected="one above zero")
        if self.guard and len(self.arms) < 2:
            raise InvalidRequest("guard", found="without a second arm", expected="an arm to watch")

    @property
    def is_split(self) -> bool:
        """Whether callers are told apart."""
        return len(self.arms) > 1

    @property
    def versions(self) -> tuple[str, ...]:
        """Every version that must be loaded, once each."""
        shadow = (self.shadow.version,) if self.shadow else ()
        return tuple(dict.fromkeys((*(arm.version for arm in self.arms), *shadow)))

    def arm_of(self, key: str) -> Arm:
        """Returns the arm of the caller ``key`` (a user id, or the request's id for nobody we know)."""
        place = share_of(key, self.salt) * sum(arm.weight for arm in self.arms)
        reached = 0.0
        for arm in self.arms:
            reached += arm.weight
            if place < reached:
                return arm
        # Rounding: the sum of the weights may be a bit more than its parts in this order.
        return next(arm for arm in reversed(self.arms) if arm.weight > 0)

    def assign(self, keys: Sequence[str]) -> list[tuple[Arm, list[int]]]:
        """Groups the rows of ``keys`` by arm, in the order of the arms; arms without rows are left out."""
        if not self.is_split:
            return [(self.arms[0], list(range(len(keys))))]
        rows: dict[str, list[int]] = {}
        for i, key in enumerate(keys):
            rows.setdefault(self.arm_of(key).name, []).append(i)
        return [(arm, rows[arm.name]) for arm in self.arms if arm.name in rows]

    def only(self, version: str) -> "Route":
        """Returns the route whose one arm has ``version``; raises :class:`UnknownModel` when none has it."""
        for arm in self.arms:
            if arm.version == version:
                return replace(self, arms=(arm,), guard=None)
        raise UnknownModel(
            "version", found=version, expected=f"one of {', '.join(arm.version for arm in self.arms)}"
        )

    def baseline_only(self) -> "Route":
        """Returns the route that gives everybody to the baseline."""
        return replace(self, arms=(replace(self.arms[0], name=DEFAULT_ARM, weight=1.0),), guard=None)
