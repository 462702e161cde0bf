"""Machinery of a training run that knows no agent, maze or environment; it imports nothing from the root."""
