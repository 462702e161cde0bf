"""Planners: where to head next.

A planner maps states and goals to subgoals, and the agent does not know which one it has.

    GraphPlanner     shortest paths on a graph of the data's states (graph_planner.py)
    ObjectPlanner    shortest sequences of moves of objects (object_planner.py)
    ProposerPlanner  the proposer f_P, decoded to goal features
    FallbackPlanner  the first planner's subgoals, and the second one's where it has none
    GoalBiased       exploration: now and then a subgoal on the straight line to the goal

To add a planner, write a class with the three methods of `Planner` and choose it in `OnlineAgent`.
"""

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


class ProposerPlanner:
    """The state-only policy: z' = f_P(z, z_g), decoded to goal features. It has an answer for every
    row.

    Args:
        encoder: Encoder. proposer: Proposer. decoder: network from z (..., D) to goal features
            (..., S).
    """

    def __init__(self, encoder, proposer, decoder):
        self.encoder = encoder
        self.proposer = proposer
        self.decoder = decoder

    def initial_state(self, batch_size):
        """Return None: proposals depend on the present alone."""
        return None

    def reset(self, state, rows):
        """Return the state unchanged."""
        return state

    def step(self, states, goals, state):
        """Propose a latent for each row and decode it."""
        z = self.encoder.encode_features(states)
        z_goal = self.encoder.encode_features(goals)
        features = self.decoder(self.proposer(z, z_goal))
        return Subgoals(features, np.ones(len(states), bool), torch.full_like(states, torch.nan)), None


class FallbackPlanner:
    """The first planner's subgoals, and the second one's in rows where the first has none."""

    def __init__(self, first, second):
        self.first = first
        self.second = second

    def initial_state(self, batch_size):
        """Return the states of both planners."""
        return self.first.initial_state(batch_size), self.second.initial_state(batch_size)

    def reset(self, state, rows):
        """Clear both states in the episodes where rows (B,) is true."""
        return self.first.reset(state[0], rows), self.second.reset(state[1], rows)

    def step(self, states, goals, state):
        """Ask the second planner only if the first one leaves rows without a subgoal."""
        subgoals, first = self.first.step(states, goals, state[0])
        if subgoals.found.all():
            return subgoals, (first, state[1])

        others, second = self.second.step(states, goals, state[1])
        rows = torch.as_tensor(subgoals.found, device=states.device).unsqueeze(-1)
        merged = Subgoals(
            features=torch.where(rows, subgoals.features, others.features),
            found=subgoals.found | others.found,
            retreat=torch.where(rows, subgoals.retreat, others.retreat),
        )
        return merged, (first, second)


class GoalBiased:
    """Goal-biased exploration around any planner: with probability epsilon the subgoal is decoded from
    z' = z + alpha (z_g - z), alpha ~ U(0.2, 1).

    Args:
        planner: the Planner whose subgoals and state are used otherwise.
        encoder: Encoder. decoder: network from z (..., D) to goal features (..., S).
        epsilon: probability. rng: numpy Generator that draws both.
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
        """Replace a random share of the planner's subgoals."""
        subgoals, state = self.planner.step(states, goals, state)
        self.biased = np.zeros(len(states), bool)
        if self.epsilon == 0:
            return subgoals, state

        # draw alpha before the rows, for all rows alike
        z = self.encoder.encode_features(states)
        z_goal = self.encoder.encode_features(goals)
        alpha = torch.as_tensor(self.rng.uniform(0.2, 1.0, (len(z), 1)), dtype=z.dtype, device=z.device)
        self.biased = self.rng.random(len(z)) < self.epsilon

        rows = torch.as_tensor(self.biased, device=z.device).unsqueeze(-1)
        toward_goal = self.decoder(z + alpha * (z_goal - z))
        return subgoals._replace(features=torch.where(rows, toward_goal, subgoals.features)), state
