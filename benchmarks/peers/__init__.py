"""Programs that run a peer library in its own virtual environment; they import nothing of recserve."""
