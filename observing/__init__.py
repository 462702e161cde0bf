"""What the agent observes, and what it estimates where observations are dropped."""
