"""The load generator: a schedule of requests, processes that send them, and what is read off the answers."""
