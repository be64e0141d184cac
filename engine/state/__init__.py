"""What the server remembers between requests."""
