"""Axes of a state along which single actions act, estimated in any basis of the state.

The labeler's length scales need states whose dimensions are joints. If the state is written in other
coordinates, three steps recover the joints from the agent's own steps:

1. Effects. The regression of s_{t+1} - s_t on (s_t, a_t) gives the mean effect of each action on the state. The
   pseudo-inverse of the effects has one row per action that does not respond to the others.
2. Velocities and angles. The change of a joint's angle is proportional to its velocity. From the rows of 1, two
   regressions in turn, of angles and of velocities, find the pairs of rows with this property.
3. Mixing. The angles still contain parts of other joints. The rows are mixed so that the marginal likelihood of
   the labels grows (`Mixing`), which determines the angles precisely.

The remaining rows span the rest of the state; their basis does not matter to the labels.
"""

import torch
from torch import nn

from support.tolerances import varies

ROUNDS = 4  # regressions of angles and velocities
ANGLE_RIDGE = 0.1  # relative to the mean variance of a change, so that an angle is no combination of slow dimensions
VELOCITY_RIDGE = 3e-3  # relative to the mean variance of a state
MIN_NEW = 0.1  # length of the part of a unit row that other rows do not span, below which it is dropped


def estimate_axes(states, changes, actions):
    """Estimate the velocity and the angle of each action as rows that multiply a state.

    Args:
        states: (n, S) centered. changes: (n, S) to the next state. actions: (n, A).

    Returns:
        velocities, angles: (A, S) unit rows.
    """
    # mean effect (A, S) of each action on the state
    inputs = torch.cat([actions, states, torch.ones_like(states[:, :1])], 1)
    effects = torch.linalg.lstsq(inputs, changes, driver='gelsd').solution[:actions.shape[1]]

    # rows that respond to one action each, then pairs of angles and velocities
    velocities = unit_rows(torch.linalg.pinv(effects).T)
    next_states = states + changes
    for _ in range(ROUNDS):
        angles = regress_rows(changes, next_states @ velocities.T, ANGLE_RIDGE)
        velocities = regress_rows(next_states, changes @ angles.T, VELOCITY_RIDGE)
    return velocities, angles


def regress_rows(inputs, targets, ridge):
    """Return unit rows (A, S) whose product with inputs (n, S) predicts targets (n, A), by ridge regression."""
    inputs = inputs - inputs.mean(0)
    gram = inputs.T @ inputs
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return unit_rows(torch.linalg.solve(gram, inputs.T @ (targets - targets.mean(0))).T)


def unit_rows(rows):
    """Return rows (A, S) of length 1, zero rows as they are."""
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


def complete(rows):
    """Return a basis (S, S): independent ones of the rows (R, S) in their order, then orthonormal rows."""
    kept = rows[:0]
    for row in rows:
        rest = row - torch.linalg.lstsq(kept.T, row[:, None]).solution[:, 0] @ kept if len(kept) else row
        if rest.norm() > MIN_NEW:
            kept = torch.cat([kept, row[None]])
    return torch.cat([kept, torch.linalg.svd(kept, full_matrices=True).Vh[len(kept):]])


class Mixing(nn.Module):
    """Learned mixing I + E of the axes of states (S, S), applied to standardized inputs.

    Args:
        state_std, change_std: (S,) of states and changes along the axes. Axes along which states do not vary are
            not mixed.
    """

    final_rate = 0.05  # learning rates at the end of a fit, relative to those at its beginning

    def __init__(self, state_std, change_std):
        super().__init__()
        in_use = varies(state_std, state_std.max()) & varies(change_std, change_std.max())
        self.register_buffer('in_use', in_use[:, None] & in_use)
        self.register_buffer('state_std', torch.where(in_use, state_std, 1))
        self.register_buffer('change_ratio', torch.where(in_use, change_std / self.state_std, 1))
        self.coefficients = nn.Parameter(torch.zeros(len(in_use), len(in_use), dtype=state_std.dtype))

    def matrix(self):
        """Return I + E (S, S) for axes of unit variance."""
        return torch.eye(len(self.in_use), dtype=self.state_std.dtype) + self.in_use * self.coefficients

    def forward(self, inputs):
        """Mix standardized states and changes, inputs (n, 2 S)."""
        states, changes = inputs.chunk(2, 1)
        matrix = self.matrix()
        scaled = matrix * self.change_ratio / self.change_ratio[:, None]
        return torch.cat([states @ matrix.T, changes @ scaled.T], 1)

    @torch.no_grad()
    def mixed(self, axes):
        """Return the rows of axes (S, S) after the mixing."""
        return self.matrix() @ (axes / self.state_std[:, None])


class Unmixed(nn.Identity):
    """The inputs as they are."""

    final_rate = 1.0


UNMIXED = Unmixed()
