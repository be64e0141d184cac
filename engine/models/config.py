"""The settings of a model repository; checked when made."""

from dataclasses import dataclass

from recserve.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryConfig:
    """Where the models are and how their folder is watched."""

    folder: str = ""
    """Folder of models, MODEL/BUNDLE/manifest.json. Empty: one plain bundle is served."""

    default_model: str = ""
    """The model that answers requests that name none. Empty: the only one, if there is one at the start."""

    source: str = ""
    """Folder or object-store prefix (s3://, gs://, ...; the extra [object-store]) that new bundles are copied
    from, laid out as the repository. Empty: only the repository itself is watched."""

    poll_seconds: float = 2.0
    """How often repository and source are looked at."""

    activate_new: bool = True
    """Whether a new bundle that is newer than the one that answers takes its place by itself. It never does
    while callers are divided between versions."""

    max_bundle_bytes: int = 64 << 30
    """Largest bundle that is copied from the source."""

    trial: bool = True
    """Whether a process of its own tries a version first, in time that nobody else wants: it checks the files
    and prepares the index, so that a load costs callers no time, and a crash nothing."""

    trial_seconds: float = 60.0
    """Processor time that a trial may take; by the clock ten times as long, on a busy machine."""

    trial_idle_seconds: float = 20.0
    """How long, by the clock, a trial gets only time that nobody else wants. Then it begins again at a low
    priority, with a thirtieth of the time of who has the usual one. 0: it begins so."""

    def __post_init__(self) -> None:
        if not 0 < self.trial_seconds <= 86_400:
            raise ConfigError(
                "repository.trial_seconds", found=self.trial_seconds, expected="above 0, to 86400"
            )
        if not 0 <= self.trial_idle_seconds <= 86_400:
            raise ConfigError(
                "repository.trial_idle_seconds", found=self.trial_idle_seconds, expected="0 to 86400"
            )
        if not 0 < self.poll_seconds < 86_400:
            raise ConfigError("repository.poll_seconds", found=self.poll_seconds, expected="0 to 86400")
        if self.max_bundle_bytes < 1:
            raise ConfigError(
                "repository.max_bundle_bytes", found=self.max_bundle_bytes, expected="1 or more"
            )
        if self.source and not self.folder:
            raise ConfigError("repository.folder", found="empty", expected="where copies of the source go")
