"""Puts the parts of security together, as the settings ask."""

import os
import resource
from dataclasses import dataclass

import structlog

from recserve.engine.server.config import ServerConfig
from recserve.engine.server.security.audit import AuditLog
from recserve.engine.server.security.auditor import Auditor
from recserve.engine.server.security.authoriser import Authoriser
from recserve.engine.server.security.caller_limits import CallerLimits
from recserve.engine.server.security.files import Reloaded
from recserve.engine.server.security.policy import read_policy

log = structlog.get_logger("recserve.server")


@dataclass(frozen=True, slots=True)
class Security:
    """Who is let in and how often (None without a policy), and who writes that down (or None)."""

    authoriser: Authoriser
    auditor: Auditor | None
    limits: CallerLimits | None

    def close(self) -> None:
        """Writes what the audit log has only counted."""
        if self.auditor is not None:
            self.auditor.close()


def new_security(config: ServerConfig) -> Security:
    """Reads the policy; raises :class:`ConfigError` when it or a file of its is not good."""
    path = config.policy
    policy_of = Reloaded([path], lambda: read_policy(path)).get if path is not None else None
    auditor = Auditor(AuditLog(config.audit_log)) if config.audit_log is not None else None
    if config.is_exposed:
        log.warning(
            "INSECURE BIND: anybody who reaches the address may read it or ask it",
            host=config.host,
            tls=config.tls is not None,
            authentication=path is not None,
        )
    limits = CallerLimits(lambda: policy_of().limits) if policy_of is not None else None
    return Security(Authoriser(policy_of, auditor), auditor, limits)


def harden_process() -> None:
    """No core dumps (they hold keys and histories), and new files are the owner's own; for programs only."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
