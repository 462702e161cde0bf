"""Corrective transitions: states perturbed off the data, labeled with actions that lead back.

Demonstrations show only the states that demonstrators visit, so that imitation does not learn to correct
its own errors (Ross et al. 2011). DART (Laskey et al. 2017) perturbs the demonstrator. Here the data are
given, and states are perturbed by changes that the agent's steps caused in similar poses of the robot. The
labeler infers the action from there to the next state of the data.
"""

from typing import NamedTuple

import numpy as np
import torch

from planning.objects import REST_TOL
from support.tolerances import divisor

PERTURBATION_STEPS = 3  # steps of the agent whose change perturbs a state
CANDIDATES = 64  # random steps of the agent, of which the one in the most similar pose is taken
ROWS_AT_ONCE = 4096


class CorrectiveTransitions(NamedTuple):
    """A perturbed state for each row of a dataset."""

    states: torch.Tensor  # (N, S) raw
    actions: torch.Tensor  # (N, A) in [-1, 1], to the next state of the data
    valid: np.ndarray  # (N,) bool, false where objects move, since a perturbation would move them, too


def find_corrective_transitions(data, online_data, scale, label, rng):
    """Perturb the states of a dataset and label the way back.

    Args:
        data: `TrajectoryDataset` of N offline states.
        online_data: `TrajectoryDataset` of the agent's steps.
        scale: (S,), zero in dimensions that belong to no object.
        label: function, raw pairs of states (n, 2, S) -> actions (n, A) in [-1, 1].
        rng: numpy Generator.

    Returns:
        `CorrectiveTransitions`; None if the agent has no steps in which all objects rest.
    """
    observations = data.observations[:len(data)]
    online_rows = static_rows(online_data, scale)
    if not len(online_rows):
        return None

    states = torch.from_numpy(_perturb(data, online_data, online_rows, np.flatnonzero(scale == 0), rng))
    next_rows = np.minimum(np.arange(len(states)) + 1, len(states) - 1)
    pairs = torch.stack([states, torch.from_numpy(observations[next_rows])], 1)
    actions = torch.cat([label(some) for some in pairs.split(ROWS_AT_ONCE)])

    # objects rest for PERTURBATION_STEPS before the row and after it
    is_static = np.zeros(len(states), bool)
    is_static[static_rows(data, scale)] = True
    valid = np.zeros(len(states), bool)
    valid[PERTURBATION_STEPS:] = is_static[PERTURBATION_STEPS:] & is_static[:-PERTURBATION_STEPS]
    return CorrectiveTransitions(states, actions, valid)


def _perturb(data, online_data, online_rows, robot_dims, rng):
    """Add to each state a change that `PERTURBATION_STEPS` steps of the agent caused in a similar pose.

    Args:
        data, online_data: `TrajectoryDataset`.
        online_rows: rows (n,) of online_data at which these steps begin.
        robot_dims: int array, dimensions of the pose.
        rng: numpy Generator.

    Returns:
        raw states (N, S).
    """
    mean, std = (statistic[robot_dims] for statistic in data.statistics())
    std = divisor(std, mean)

    # poses of the agent and the changes that followed
    before = online_data.observations[online_rows][:, robot_dims]
    changes = online_data.observations[online_rows + PERTURBATION_STEPS][:, robot_dims] - before
    online_poses = (before - mean) / std

    states = data.observations[:len(data)].copy()
    for first in range(0, len(states), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        poses = (data.observations[:len(data)][rows, robot_dims] - mean) / std

        # the most similar of some random poses
        candidates = rng.integers(len(online_rows), size=(len(poses), CANDIDATES))
        nearest = np.square(online_poses[candidates] - poses[:, None]).sum(-1).argmin(1)
        chosen = candidates[np.arange(len(poses)), nearest]

        # random signs, so that the mean perturbation is zero
        sign = rng.choice([-1, 1], (len(poses), 1))
        states[rows, robot_dims] += sign * changes[chosen]
    return states


def static_rows(data, scale):
    """Return the rows (n,) after which no object moves for `PERTURBATION_STEPS` steps.

    Args:
        data: `TrajectoryDataset`.
        scale: (S,), zero in dimensions that belong to no object.
    """
    object_dims = np.flatnonzero(scale > 0)
    rows = np.flatnonzero(np.arange(len(data)) + PERTURBATION_STEPS <= data.end_of[:len(data)])
    is_static = np.ones(len(rows), bool)
    start = data.observations[rows][:, object_dims]
    for step in range(1, PERTURBATION_STEPS + 1):
        positions = data.observations[rows + step][:, object_dims]
        change = np.abs(positions - start) * scale[object_dims]
        is_static &= change.max(1, initial=0) < REST_TOL / 2
    return rows[is_static]
