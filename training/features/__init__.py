"""What is known of users and items besides their ids, as vectors that a model can project."""
