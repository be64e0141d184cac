"""Who calls, and why someone is not accepted."""

from dataclasses import dataclass

from recserve.engine.server.scopes import SCOPES
from recserve.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credentials were accepted; ``name`` says how, "key:web", "jwt:backend", "dns:web"."""

    name: str
    scopes: frozenset[str]

    def __str__(self) -> str:
        return self.name


class NotAccepted(Exception):
    """Credentials that do not count. ``rule`` says why: for the audit log, never for the caller."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


def check_scopes(name: str, scopes: object) -> frozenset[str]:
    """Returns a list of known scopes as a set; raises :class:`ConfigError` naming what is wrong."""
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise ConfigError(name, found=scopes, expected='a list of scopes, like ["recommend"]')
    for scope in scopes:
        if scope not in SCOPES:
            cure = nearest(scope, SCOPES) or f"Known: {', '.join(SCOPES)}."
            raise ConfigError(name, found=scope, expected="a known scope", cure=cure)
    return frozenset(scopes)
