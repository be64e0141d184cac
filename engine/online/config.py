"""The settings of online learning; checked when made."""

from dataclasses import dataclass
from pathlib import Path

from recserve.errors import ConfigError, nearest

FTRL, LINUCB, THOMPSON = "ftrl", "linucb", "thompson"
ALGORITHMS = (FTRL, LINUCB, THOMPSON)
# The linear models keep a matrix of this many rows and columns.
MAX_LINEAR_SIZE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineConfig:
    """What is learned from recorded impressions and clicks, and how far it may change slates."""

    algorithm: str = ""
    """ftrl (logistic regression: item, query ⊙ item, item × context), linucb or thompson (linear models of
    query ⊙ item that explore by what they do not know). Not set: nothing is learned."""

    strength: float = 0.3
    """The most that a score is moved, either way, as a share of the span of the candidates' scores."""

    candidates: int = 200
    """Items that a slate is chosen from."""

    epsilon: float = 0.0
    """Share of the slates in which one item makes room for a random other candidate (ftrl, linucb)."""

    width: float = 1.0
    """How much uncertainty counts: standard deviations above the mean (linucb) or of the draws (thompson)."""

    learning_rate: float = 0.3
    """Of ftrl: alpha of the paper. Too small ones are worse than the mean click rate for long."""

    l1: float = 0.0
    """Of ftrl: a feature whose evidence is below this has no weight."""

    l2: float = 1.0
    """Pulls weights to zero: ftrl's λ2, and the regulariser of linucb and thompson."""

    recent: int = 20
    """Newest observed items of a user that make the query."""

    impressions_per_hour: int = 200
    """Impressions of one user that count in one hour."""

    clicks_per_hour: int = 20
    """Clicks of one user that count in one hour."""

    click_excess: float = 3.0
    """How many times as often as all users somebody may click in an hour, beyond three clicks, until their
    clicks do not count."""

    max_users: int = 50_000
    """Users whose newest items and slates are in memory; the longest unseen user is forgotten first."""

    drift_tolerance: float = 0.1
    """How much worse, relatively, than the mean click rate predictions may get before slates stop following
    them and the last good state comes back."""

    snapshot_examples: int = 8192
    """Examples between two snapshots."""

    folder: Path | None = None
    """Where snapshots are. Not set: PATH.online beside the log; without a log on disk there are none."""

    def __post_init__(self) -> None:
        if self.algorithm and self.algorithm not in ALGORITHMS:
            raise ConfigError(
                "online.algorithm",
                found=self.algorithm,
                expected=f"one of {', '.join(ALGORITHMS)}",
                cure=nearest(self.algorithm, ALGORITHMS),
            )
        for name in (
            "candidates",
            "recent",
            "impressions_per_hour",
            "clicks_per_hour",
            "max_users",
            "snapshot_examples",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"online.{name}", found=getattr(self, name), expected="1 or more")
        for name, most in (("strength", 10.0), ("epsilon", 1.0), ("width", 100.0), ("drift_tolerance", 10.0)):
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"online.{name}", found=getattr(self, name), expected=f"0 to {most:g}")
        for name in ("learning_rate", "l2", "click_excess"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"online.{name}", found=getattr(self, name), expected="above 0")
        if not 0 <= self.l1 < float("inf"):
            raise ConfigError("online.l1", found=self.l1, expected="0 or more")
        if self.epsilon and self.algorithm == THOMPSON:
            raise ConfigError(
                "online.epsilon", found=self.epsilon, expected="0 with thompson, which explores by itself"
            )
