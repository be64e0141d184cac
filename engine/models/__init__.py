"""Many bundles, many versions side by side: load, route, watch and replace them while requests run."""
