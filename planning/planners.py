"""Planners: from states and goals to subgoals.

The agent uses all planners through one interface, `Planner`.

    GraphPlanner     shortest paths on a graph of the data's states (graph_planner.py)
    ObjectPlanner    shortest sequences of moves of objects (object_planner.py)
    ProposerPlanner  the proposer f_P, decoded to goal features
    FallbackPlanner  the first planner's subgoals, or the second one's if the first has none
    GoalBiased       exploration: sometimes a subgoal between the latents of state and goal

To add a planner, write a class with the three methods of `Planner` and choose it in
`OnlineAgent._make_planner`. A planner that needs a map of the data builds it in `build_map` of tasks.py and
loads it in `load_map` there.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch


class Subgoals(NamedTuple):
    """Subgoals of B episodes."""

    features: torch.Tensor  # (B, S) goal features that the policy heads for
    found: np.ndarray  # (B,) bool; False: the planner has no subgoal for the row
    retreat: torch.Tensor  # (B, S) raw states to return to by one-step labels; NaN rows: no retreat


class Planner(Protocol):
    """Interface of a planner. The agent carries its state and does not look into it."""

    def initial_state(self, batch_size: int) -> Any:
        """Return the state before the first step of `batch_size` episodes."""

    def reset(self, state: Any, rows: np.ndarray) -> Any:
        """Clear the state of the episodes where the bool array rows (B,) is true."""

    def step(self, states: torch.Tensor, goals: torch.Tensor, state: Any) -> tuple[Subgoals, Any]:
        """Return Subgoals for raw states and goals (B, S), and the next state."""


class ProposerPlanner:
    """Propose z' = f_P(z, z_g) and decode it to goal features; every row has a subgoal.

    Args:
        encoder: Encoder. proposer: Proposer.
        decoder: network from z (..., D) to goal features (..., S).
    """

    def __init__(self, encoder, proposer, decoder):
        self.encoder = encoder
        self.proposer = proposer
        self.decoder = decoder

    def initial_state(self, batch_size):
        """Return None: proposals depend on the present state and the goal alone."""
        return None

    def reset(self, state, rows):
        """Return the state unchanged."""
        return state

    def step(self, states, goals, state):
        """Return Subgoals for raw states and goals (B, S), and None."""
        z = self.encoder.encode_features(states)
        z_goal = self.encoder.encode_features(goals)
        features = self.decoder(self.proposer(z, z_goal))
        return Subgoals(features, np.ones(len(states), bool), torch.full_like(states, torch.nan)), None


class FallbackPlanner:
    """Use the first planner's subgoals, and the second one's in rows where the first has none.

    Args:
        first, second: Planner.
    """

    def __init__(self, first, second):
        self.first = first
        self.second = second

    def initial_state(self, batch_size):
        """Return the initial states of both planners, a pair."""
        return self.first.initial_state(batch_size), self.second.initial_state(batch_size)

    def reset(self, state, rows):
        """Clear both states in the episodes where rows (B,) is true."""
        return self.first.reset(state[0], rows), self.second.reset(state[1], rows)

    def step(self, states, goals, state):
        """Return Subgoals for raw states and goals (B, S), and the next states of both planners.

        The second planner runs, for all rows, only if the first one leaves rows without a subgoal.
        """
        subgoals, first = self.first.step(states, goals, state[0])
        if subgoals.found.all():
            return subgoals, (first, state[1])

        # merge both results by row
        others, second = self.second.step(states, goals, state[1])
        rows = torch.as_tensor(subgoals.found, device=states.device).unsqueeze(-1)
        merged = Subgoals(
            features=torch.where(rows, subgoals.features, others.features),
            found=subgoals.found | others.found,
            retreat=torch.where(rows, subgoals.retreat, others.retreat),
        )
        return merged, (first, second)


class GoalBiased:
    """Goal-biased exploration around any planner.

    With probability epsilon a subgoal is decoded from z' = z + alpha (z_g - z), alpha ~ U(0.2, 1).

    Args:
        planner: Planner of the other subgoals.
        encoder: Encoder. decoder: network from z (..., D) to goal features (..., S).
        epsilon: probability. rng: numpy Generator of alpha and of the rows.
    """

    def __init__(self, planner, encoder, decoder, epsilon, rng):
        self.planner = planner
        self.encoder = encoder
        self.decoder = decoder
        self.epsilon = epsilon
        self.rng = rng
        self.biased = None  # (B,) bool, which rows of the last step were goal-biased

    def initial_state(self, batch_size):
        """Return the wrapped planner's state."""
        return self.planner.initial_state(batch_size)

    def reset(self, state, rows):
        """Clear the wrapped planner's state in the episodes where rows (B,) is true."""
        return self.planner.reset(state, rows)

    def step(self, states, goals, state):
        """Return Subgoals for raw states and goals (B, S), some of them goal-biased, and the state."""
        subgoals, state = self.planner.step(states, goals, state)
        self.biased = np.zeros(len(states), bool)
        if self.epsilon == 0:
            return subgoals, state

        # alpha for all rows, then the rows
        z = self.encoder.encode_features(states)
        z_goal = self.encoder.encode_features(goals)
        alpha = torch.as_tensor(self.rng.uniform(0.2, 1.0, (len(z), 1)), dtype=z.dtype, device=z.device)
        self.biased = self.rng.random(len(z)) < self.epsilon

        # replace the subgoals of these rows
        rows = torch.as_tensor(self.biased, device=z.device).unsqueeze(-1)
        toward_goal = self.decoder(z + alpha * (z_goal - z))
        return subgoals._replace(features=torch.where(rows, toward_goal, subgoals.features)), state
