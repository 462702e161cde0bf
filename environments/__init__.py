"""Custom environments, and environments that are recreated after a fault."""
