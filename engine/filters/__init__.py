"""Rules about items in one line, as ``price < 50 and category in ("book", "game")``: read and compiled."""
