"""The chain's authorising hook: credentials → principal → is the method's scope granted?"""

from collections.abc import Callable

from recserve.engine.server.call import Call
from recserve.engine.server.scopes import ADMIN_SCOPES
from recserve.engine.server.security.auditor import Auditor
from recserve.engine.server.security.keys import KEY_PREFIX
from recserve.engine.server.security.policy import Policy
from recserve.engine.server.security.principals import NotAccepted, Principal
from recserve.errors import PermissionDenied, Unauthenticated

AUTHORIZATION = "authorization"
SCHEME = "bearer "
NOBODY = Principal("anonymous", frozenset())


class Authoriser:
    """Refuses what the policy does not grant; without a policy everybody may do everything.

    A caller shows one thing: ``authorization: Bearer <API key or token>``, else its TLS certificate. What it
    shows must hold: a bad token is not made good by a certificate.
    """

    def __init__(self, policy_of: Callable[[], Policy] | None, auditor: Auditor | None) -> None:
        self._policy_of = policy_of
        self._auditor = auditor

    def __call__(self, call: Call, scope: str = "") -> Principal:
        """Returns who calls; raises Unauthenticated or PermissionDenied, in one wording each.

        ``scope``: what is asked for, where that is not the method's.
        """
        scope = scope or call.method.scope
        principal = NOBODY
        rule = "no policy"
        if self._policy_of is not None:
            policy = self._policy_of()
            rule = f"scope {scope}"
            if scope in policy.public:
                return NOBODY
            try:
                principal = _identify(call, policy)
            except NotAccepted as error:
                self._refused(call, "unknown", error.rule)
                raise Unauthenticated(
                    AUTHORIZATION,
                    found="missing or not accepted",
                    expected="a valid API key, token or client certificate",
                ) from None
            if scope not in principal.scopes:
                self._refused(call, principal.name, rule)
                raise PermissionDenied("scope", found="not granted", expected=scope)
        is_audited = scope in ADMIN_SCOPES or (scope == call.method.scope and call.method.is_audited)
        if is_audited and self._auditor is not None:
            self._auditor.permitted(call, principal.name, rule)
        return principal

    def _refused(self, call: Call, principal: str, rule: str) -> None:
        if self._auditor is not None:
            self._auditor.refused(call, principal, rule)


def _identify(call: Call, policy: Policy) -> Principal:
    shown = [value for key, value in call.metadata if key == AUTHORIZATION]
    if not shown:
        if not call.identities:
            raise NotAccepted("no credentials")
        return policy.of_certificate(call.identities)
    text = shown[0]
    if len(shown) > 1 or not isinstance(text, str) or text[: len(SCHEME)].lower() != SCHEME:
        raise NotAccepted("authorization is not one bearer token")
    text = text[len(SCHEME) :].strip()
    if text.startswith(KEY_PREFIX):
        if policy.keys is None:
            raise NotAccepted("no API keys in the policy")
        return policy.keys.principal(text)
    if policy.tokens is None:
        raise NotAccepted("no tokens in the policy")
    return policy.tokens.principal(text)
