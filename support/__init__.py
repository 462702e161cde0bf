"""Machinery of a training run that knows no latent, maze or environment. Nothing here imports from the root."""
