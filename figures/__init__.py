"""Figures and videos of what an agent has learned and done."""
