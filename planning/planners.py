"""Where to head next. A planner maps states and goals to subgoals; the agent does not know which planner it
has."""

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch


class Subgoals(NamedTuple):
    """Subgoals of B episodes."""

    features: torch.Tensor  # (B, S) goal features to head for
    found: np.ndarray  # (B,) bool; False: this planner has no answer for the row
    retreat: torch.Tensor  # (B, S) raw states to return to by one-step labels; NaN rows: none


class Planner(Protocol):
    """What the agent asks for subgoals. The state is opaque to the agent."""

    def initial_state(self, batch_size: int) -> Any:
        """Return the state before the first step of `batch_size` episodes."""

    def reset(self, state: Any, rows: np.ndarray) -> Any:
        """Clear the state of the episodes where rows (B,) is true."""

    def step(self, states: torch.Tensor, goals: torch.Tensor, state: Any) -> tuple[Subgoals, Any]:
        """Return Subgoals for states and goals (B, S), raw, and the next state."""
