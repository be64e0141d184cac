"""A new version of what is served, from the log of events: trained, compared, and taken only if it wins."""
