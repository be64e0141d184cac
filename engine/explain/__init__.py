"""Why an item is in a slate: what the user's own history contributes, in numbers and in words."""
