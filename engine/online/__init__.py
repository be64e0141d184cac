"""Learning from recorded events while serving: a bounded addition to the scores of candidates."""
