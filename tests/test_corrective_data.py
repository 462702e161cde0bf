"""Corrective transitions: perturbed states and the actions that lead back to the data."""

import numpy as np
import pytest
from toy_objects import cubes, hand_change, make, record

from labeling.corrective_data import PERTURBATION_STEPS, find_corrective_transitions
from planning.objects import find_objects
from trajectories import ReplayBuffer


@pytest.fixture
def data():
    return make(cubes)


@pytest.fixture
def scale(data):
    return find_objects(data) / data.statistics()[1]


def test_corrective_transitions_lead_back_to_the_data(data, scale):
    online_data = record(data, np.random.default_rng(0))
    found = find_corrective_transitions(data, online_data, scale, hand_change, np.random.default_rng(0))
    perturbed = found.states.numpy()

    # perturbations of the robot alone, no larger than the agent's changes, with mean zero
    np.testing.assert_array_equal(perturbed[:, 3:], data.observations[:, 3:])
    perturbation = perturbed[:, :2] - data.observations[:, :2]
    hand = online_data.observations[:, :2]
    online_changes = hand[PERTURBATION_STEPS:] - hand[:-PERTURBATION_STEPS]
    assert 0.1 < np.abs(perturbation).max() <= np.abs(online_changes).max() + 1e-6
    assert abs(perturbation.mean()) < 0.05

    back = np.clip(data.observations[1:, :2] - perturbed[:-1, :2], -1, 1)
    np.testing.assert_allclose(found.actions[:-1], back, atol=1e-6)


def test_corrective_transitions_are_invalid_near_moves(data, scale):
    online_data = record(data, np.random.default_rng(0))
    found = find_corrective_transitions(data, online_data, scale, hand_change, np.random.default_rng(0))

    # rows within PERTURBATION_STEPS of a move
    is_move = np.append(np.abs(np.diff(data.observations[:, 3:], axis=0)).max(1) > 0, True)
    window = np.ones(2 * PERTURBATION_STEPS)
    near = np.convolve(is_move, window, 'full')[PERTURBATION_STEPS - 1:][:len(data)] > 0
    assert not found.valid[is_move].any()
    assert found.valid[PERTURBATION_STEPS:][~near[PERTURBATION_STEPS:]].all()
    assert 0.8 < found.valid.mean() < 1
    assert not found.valid[data.ends].any()


def test_corrective_transitions_need_steps_of_the_agent(data, scale):
    empty = ReplayBuffer(data.observations.shape[1], 2, context_length=8)
    assert find_corrective_transitions(data, empty, scale, hand_change, np.random.default_rng(0)) is None


def test_corrective_transitions_depend_on_the_generator_alone(data, scale):
    online_data = record(data, np.random.default_rng(0))
    rngs = [np.random.default_rng(seed) for seed in (3, 3, 4)]
    states = [find_corrective_transitions(data, online_data, scale, hand_change, rng).states for rng in rngs]
    assert (states[0] == states[1]).all()
    assert (states[0] != states[2]).any()
