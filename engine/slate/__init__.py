"""From candidates to a slate: the rules of operator and request, and the choice of the items."""
