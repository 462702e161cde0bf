"""What the agent observes of a state, and how it estimates states whose observations are dropped."""
