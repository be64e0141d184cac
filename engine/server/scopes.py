"""The scopes that methods ask for and principals are granted: a closed, documented list."""

# A new method takes one of these or adds a row; the authorisation matrix fails for a scope without one.
SCOPES: dict[str, str] = {
    "recommend": "slates for users and items",
    "items:read": "attributes of items",
    "items:write": "which items are served: new ones, and those taken out",
    "explain": "why an item was recommended",
    "feedback:write": "events of users",
    "history:read": "stored histories",
    "history:erase": "erasing what is stored about a user",
    "model:read": "which models and versions are served, and their statistics",
    "model:admin": "loading, activating and removing models: as good as running code on the server",
    "metrics:read": "counters and timings",
    "health": "whether the server serves",
    "reflection": "the description of the API",
}
# Served on the admin address only, and written to the audit log.
ADMIN_SCOPES = frozenset({"model:admin"})
REFLECTION_SCOPE = "reflection"
HEALTH_SCOPE = "health"
