"""What a server tells about itself: metrics, traces, one log line per request. Observers of the chain."""
