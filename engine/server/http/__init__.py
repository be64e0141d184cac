"""The second port: a JSON gateway over the method table, its description, probes, metrics."""
