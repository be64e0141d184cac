"""Who may ask what: TLS, credentials, the policy, and the audit log.

    transport ─► chain ─► Authoriser: policy (keys, tokens, certificates) → principal → scope of the method
                             └─► Auditor: refusals and admin actions, in a hash-chained file

One authoriser stands in the one chain, so every method on every address passes it; docs/security.md tells
how to turn it on.
"""
