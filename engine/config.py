"""The settings of an embedded engine; checked when made, never read from the environment here."""

from dataclasses import dataclass, field
from pathlib import Path

from recserve.engine.bundle.rules import PipelineConfig
from recserve.engine.bundle.signatures import OFF, SignaturePolicy
from recserve.engine.explain.explanation import EXPLAIN_EXACT, EXPLAIN_LEVELS
from recserve.errors import ConfigError

MAX_CACHE_SECONDS = 3600.0
AUTO, CPU, CUDA, TENSORRT = "auto", "cpu", "cuda", "tensorrt"
PROVIDERS = (AUTO, CPU, CUDA, TENSORRT)
OPTIMISATIONS = ("none", "basic", "extended", "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """How ONNX Runtime runs a graph; the defaults are measured (``recserve.benchmarks.sessions``)."""

    threads: int = 1
    """Threads of one call. One is fastest for single requests; throughput comes from callers."""

    spinning: bool = False
    """Whether threads that wait burn their core, which the batch beside them needs; of threads above 1."""

    arena: bool = False
    """Whether memory of a call is kept for the next: the peak of the largest batch, for ever."""

    memory_pattern: bool = True
    """Whether the memory of a call is planned by the shapes seen before."""

    prepacking: bool = True
    """Whether weights are kept a second time, in the order that the kernels like."""

    io_binding: bool = False
    """Whether inputs and outputs are bound to the device instead of passed; on a CPU that costs some µs."""

    cuda_graph: bool = False
    """Whether what a call launches on a GPU is recorded and then replayed; with provider cuda alone."""

    optimisation: str = "all"
    """What is done to the graph at load: none, basic, extended or all."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError("engine.session.threads", found=self.threads, expected="1 or more")
        if self.optimisation not in OPTIMISATIONS:
            raise ConfigError(
                "engine.session.optimisation",
                found=self.optimisation,
                expected=f"one of {', '.join(OPTIMISATIONS)}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How the engine runs a bundle."""

    provider: str = "auto"
    """Where ONNX graphs run: auto (a GPU, where one works), cpu, cuda or tensorrt (both fail without)."""

    retrieval_device: str = "auto"
    """Where candidates are searched for: auto (the GPU, where graphs run on it and the extra [cuda] is
    installed), cpu or cuda (fails without)."""

    session: SessionConfig = field(default_factory=SessionConfig)
    """The options of ONNX Runtime; the section [engine.session] of a settings file."""

    index_folder: Path | None = None
    """Where the prepared search index is kept and mapped from, shared by processes; none: built in memory."""

    signatures: str = OFF
    """Whether a bundle must be signed: off, warn (load it, log and mark it) or require (refuse it)."""

    trusted_keys: Path | None = None
    """File of public keys (PEM), or folder of such files, that may sign; read at every load."""

    max_k: int = 1000
    """Longest slate that a request may ask for."""

    max_history: int = 1000
    """Most items that a request may bring as its history."""

    max_exclude: int = 10_000
    """Most items that a request may exclude."""

    max_items: int = 1000
    """Most items that one call of get_items may ask for; a slate of max_k must fit."""

    rank_candidates: int = 500
    """Items that retrieval brings for the ranker to order, where a bundle has one; at least k."""

    smaller_variant: str = ""
    """The variant that answers in a brown-out who asks for none, where the bundle has it ("int8", say)."""

    explain: str = EXPLAIN_EXACT
    """The most that a request may ask for: none, fast, or exact, which is as much work as 50 requests."""

    max_requests: int = 256
    """Most requests in one call of recommend_many."""

    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    """The rules of all slates; the section [pipeline] of a settings file."""

    cache_slates: int = 0
    """Answers that are kept for the same request of a user who did nothing since; 0: none."""

    cache_seconds: float = 10.0
    """How long an answer is given again."""

    history_cache_mb: int = 0
    """Memory for what encoders computed of remembered users' histories, so that an event costs one item more;
    of each variant that can (models trained with --incremental). 0: none."""

    max_observed_users: int = 100_000
    """Users whose observed events are kept in memory; the longest unseen user is forgotten first."""

    max_observed_items: int = 1000
    """Observed events that are kept per user, the newest."""

    @property
    def signature_policy(self) -> SignaturePolicy:
        """``signatures`` and ``trusted_keys`` as a bundle is opened with."""
        return SignaturePolicy(self.signatures, self.trusted_keys)

    warmup_trace: Path | None = None
    """Traffic that a server captured (`telemetry.capture`): requests like it are answered while loading."""

    def __post_init__(self) -> None:
        _ = self.signature_policy
        if self.provider not in PROVIDERS:
            raise ConfigError(
                "engine.provider", found=self.provider, expected=f"one of {', '.join(PROVIDERS)}"
            )
        if self.session.cuda_graph and self.provider != CUDA:
            raise ConfigError(
                "engine.session.cuda_graph",
                found=f"true with engine.provider {self.provider}",
                expected=f"engine.provider {CUDA}, or false",
                cure="No other provider records what it launches.",
            )
        if self.retrieval_device not in (AUTO, CPU, CUDA):
            raise ConfigError(
                "engine.retrieval_device", found=self.retrieval_device, expected=f"{AUTO}, {CPU} or {CUDA}"
            )
        if self.explain not in EXPLAIN_LEVELS:
            raise ConfigError(
                "engine.explain", found=self.explain, expected=f"one of {', '.join(EXPLAIN_LEVELS)}"
            )
        for name in (
            "max_k",
            "max_history",
            "max_exclude",
            "max_items",
            "rank_candidates",
            "max_requests",
            "max_observed_users",
            "max_observed_items",
        ):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"engine.{name}", found=value, expected="1 or more")
        for name in ("cache_slates", "history_cache_mb"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"engine.{name}", found=value, expected="0 or more")
        if not 0 < self.cache_seconds <= MAX_CACHE_SECONDS:
            raise ConfigError(
                "engine.cache_seconds",
                found=self.cache_seconds,
                expected=f"above 0, at most {MAX_CACHE_SECONDS:.0f}",
            )
        if self.max_k > self.max_items:
            raise ConfigError(
                "engine.max_k", found=self.max_k, expected=f"at most engine.max_items ({self.max_items})"
            )
