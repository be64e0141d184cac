"""What more costs: curves of time and memory against every size, and what they say about a fleet."""
