"""Custom environments, and environments that survive a fault."""
