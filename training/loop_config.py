"""How long and how fast a model is trained."""

from dataclasses import dataclass

from recserve.errors import InvalidRequest

PRECISIONS = ("fp32", "bf16")
LOSSES = ("auto", "softmax", "sampled")
MAX_LEARNING_RATE = 10.0

# Users per step where that is not told: a thirtieth of them within these bounds. Small steps are noise that
# keeps a model of few users from learning them by heart: on 1,090 of Last.fm 32 gave a validation NDCG@10 of
# 0.054 against 0.048 of 128 (one seed), on 943 of ml-100k a test NDCG@10 of 0.096 against 0.095 (two).
SHARE_PER_STEP, LEAST_PER_STEP, MOST_PER_STEP = 30, 32, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """How a model is trained."""

    epochs: int = 60
    batch_size: int | None = None
    """Users (rankers: examples) per step of one process; None: what suits the data."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    patience: int = 4
    """Validations without a better NDCG@10 before training stops."""
    validate_every: int = 5
    """Epochs between validations."""
    seed: int = 0
    loss: str = "auto"
    """softmax over the whole catalogue, sampled (with logQ correction), or auto by catalogue size."""
    n_negatives: int = 4096
    """Sampled items of a step under the sampled loss."""
    epsilon: float = 0.0
    """Above 0: differential privacy of users by DP-SGD (training/private.py); the last epoch counts."""
    delta: float = 1e-5
    """Of (ε, δ): well below 1 by the number of users."""
    max_norm: float = 1.0
    """Of DP-SGD: the length that a user's gradient is clipped to."""

    precision: str = "fp32"
    """bf16: what an encoder computes; its weights, the softmax and the optimiser stay float32."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "validate_every", "n_negatives"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InvalidRequest(name, found=getattr(self, name), expected="1 or more")
        if not 0 < self.learning_rate <= MAX_LEARNING_RATE:
            raise InvalidRequest(
                "learning_rate", found=self.learning_rate, expected=f"above 0, at most {MAX_LEARNING_RATE}"
            )
        if not self.weight_decay >= 0:
            raise InvalidRequest("weight_decay", found=self.weight_decay, expected="0 or more")
        if self.precision not in PRECISIONS:
            raise InvalidRequest(
                "precision", found=self.precision, expected=f"one of {', '.join(PRECISIONS)}"
            )
        if not (0 <= self.epsilon < float("inf") and 0 < self.delta < 1 and self.max_norm > 0):
            raise InvalidRequest(
                "epsilon, delta, max_norm",
                found=f"{self.epsilon:g}, {self.delta:g}, {self.max_norm:g}",
                expected="0 or more, between 0 and 1, above 0",
            )
        if self.loss not in LOSSES:
            raise InvalidRequest("loss", found=self.loss, expected=f"one of {', '.join(LOSSES)}")

    def users_per_step(self, n_users: int) -> int:
        """Returns how many of ``n_users`` a step of a sequence model learns from.

        The noise of a private step is the same for few as for many: it takes many.
        """
        if self.batch_size is not None:
            return self.batch_size
        if self.epsilon:
            return MOST_PER_STEP
        return min(max(n_users // SHARE_PER_STEP, LEAST_PER_STEP), MOST_PER_STEP)
