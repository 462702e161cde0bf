"""States beside the data, and the way back: what whoever strays must know, and no demonstrator shows.

Who imitates sees only states that demonstrators came to. A hand three centimetres beside them comes down beside the
cube, since nobody ever was there and went back (Ross et al. 2011). DART (Laskey et al. 2017) disturbs the demonstrator
while he shows. Here nobody can be asked, but the labeler knows physics: a state of the data is displaced as a few own
steps displaced the robot in a similar posture, and the action is the labeler's, from there to the demonstrator's next
state.
"""

from typing import NamedTuple

import numpy as np
import torch

from planning.objects import STILL

PERTURBATION_STEPS = 3  # own steps by which states are displaced
CANDIDATES = 64  # own steps of which the one in the most similar posture is taken
ROWS_AT_ONCE = 4096


class CorrectiveTransitions(NamedTuple):
    """For each row of a dataset a state beside it."""

    states: torch.Tensor  # (N, S) raw
    actions: torch.Tensor  # (N, A) in [-1, 1], which lead back
    known: np.ndarray  # (N,) bool; where a thing is being moved none is: nobody knows what a nudge does there


def find_corrective_transitions(data, own, scale, label, rng):
    """data: `TrajectoryDataset` of the offline data; own: that of own steps; scale (S,): the places of things are
    states * scale, where that is not 0; label: function, raw pairs of states (n, 2, S) -> actions (n, A) in [-1, 1];
    rng: numpy Generator -> CorrectiveTransitions, None where no own steps tell how one strays."""
    observations = data.observations[:len(data)]
    robot = np.flatnonzero(scale == 0)
    mean, std = (statistic[robot] for statistic in data.statistics())
    std = np.where(std > 1e-6, std, 1)

    begins = static_rows(own, scale)
    if not len(begins):
        return None
    changes = own.observations[begins + PERTURBATION_STEPS][:, robot] - own.observations[begins][:, robot]
    postures = (own.observations[begins][:, robot] - mean) / std

    states = observations.copy()
    for first in range(0, len(states), ROWS_AT_ONCE):
        some = slice(first, first + ROWS_AT_ONCE)
        here = (observations[some, robot] - mean) / std
        tried = rng.integers(len(begins), size=(len(here), CANDIDATES))
        nearest = np.square(postures[tried] - here[:, None]).sum(-1).argmin(1)
        taken = tried[np.arange(len(here)), nearest]
        sign = rng.choice([-1, 1], (len(here), 1))  # there or back: else all would stray as own steps lead
        states[some, robot] += sign * changes[taken]

    quiet = np.zeros(len(states), bool)
    quiet[static_rows(data, scale)] = True
    known = np.zeros(len(states), bool)
    known[PERTURBATION_STEPS:] = quiet[PERTURBATION_STEPS:] & quiet[:-PERTURBATION_STEPS]  # things rest before it as well

    states = torch.from_numpy(states)
    after = torch.from_numpy(observations[np.minimum(np.arange(len(states)) + 1, len(states) - 1)])
    pairs = torch.stack([states, after], 1)
    actions = torch.cat([label(some) for some in pairs.split(ROWS_AT_ONCE)])
    return CorrectiveTransitions(states, actions, known)


def static_rows(data, scale):
    """-> rows (n,) of a `TrajectoryDataset` from which on no thing moves for `PERTURBATION_STEPS` steps of its trajectory."""
    rows = np.flatnonzero(np.arange(len(data)) + PERTURBATION_STEPS <= data.end_of[:len(data)])
    quiet = np.ones(len(rows), bool)
    things = np.flatnonzero(scale > 0)
    here = data.observations[rows][:, things]
    for step in range(1, PERTURBATION_STEPS + 1):
        there = data.observations[rows + step][:, things]
        quiet &= (np.abs(there - here) * scale[things]).max(1, initial=0) < STILL / 2
    return rows[quiet]
