"""Places: slow directions in any basis and unit, and slow dimensions that are none."""

import numpy as np
import pytest

from planning.slow_directions import find_places
from trajectories import TrajectoryDataset

TRAJECTORIES, STEPS = 60, 301


def wander(rng, shape, memory):
    """Return a stationary autoregressive process (steps, ...) of variance 1."""
    noise = rng.standard_normal(shape) * np.sqrt(1 - memory ** 2)
    noise[0] /= np.sqrt(1 - memory ** 2)
    for t in range(1, shape[0]):
        noise[t] += memory * noise[t - 1]
    return noise


@pytest.fixture(scope='module')
def robot():
    """States (trajectory, step, dimension) of a robot: x, y, their velocities and four joint angles."""
    rng = np.random.default_rng(0)
    velocity = wander(rng, (STEPS, TRAJECTORIES, 2), 0.9)
    position = np.zeros_like(velocity)
    position[0] = rng.uniform(-10, 10, position[0].shape)
    for t in range(1, STEPS):  # walls turn the robot round
        outside = np.abs(position[t - 1]) > 10
        velocity[t] = np.where(outside, -np.sign(position[t - 1]) * np.abs(velocity[t]), velocity[t])
        position[t] = position[t - 1] + 0.3 * velocity[t]
    joints = wander(rng, (STEPS, TRAJECTORIES, 4), 0.5)
    return np.concatenate([position, velocity, joints], -1).swapaxes(0, 1)


def drifts():
    """Return slow dimensions (trajectory, step) that are no places."""
    rng = np.random.default_rng(1)
    time = np.broadcast_to(np.arange(STEPS), (TRAJECTORIES, STEPS))
    offset = rng.standard_normal((TRAJECTORIES, 1))
    return {
        'battery': 12.6 - 1.5 * time / STEPS + 0.1 * offset + 0.01 * rng.standard_normal(time.shape),
        'clock': 0.05 * time,
        'odometer': np.cumsum(rng.uniform(0, 1, time.shape), 1),
        'temperature': 20 + offset + np.cumsum(0.1 * rng.standard_normal(time.shape), 1),
    }


def places_of(states, **options):
    """Return the Places of states (trajectory, step, dimension)."""
    ends = STEPS * np.arange(1, TRAJECTORIES + 1) - 1
    data = TrajectoryDataset(states.reshape(-1, states.shape[-1]).astype(np.float32), ends - STEPS + 1, ends)
    return find_places(data, **options)


def features_of(states, places):
    """Return the goal features (n, S) of states (trajectory, step, dimension)."""
    states = states.reshape(-1, states.shape[-1])
    return (states - states.mean(0)) / states.std(0) @ places.directions * places.weights


def explained(features, target):
    """Return the share of the variance of `target` that the notable features explain linearly."""
    features = features[:, features.std(0) > 0.05]
    features = features - features.mean(0)
    target = target.ravel() - target.mean()
    error = target - features @ np.linalg.lstsq(features, target, rcond=None)[0]
    return 1 - error.var() / target.var()


def rotated(states, seed=0):
    states = (states - states.mean((0, 1))) / states.std((0, 1))
    return states @ np.linalg.qr(np.random.default_rng(seed).standard_normal(states.shape[-1:] * 2))[0]


def test_dimensions_that_span_the_slow_directions_are_the_places(robot):
    places = places_of(robot)
    assert places.are_dimensions and not places.excluded
    assert places.weights[:2].min() > 0.5 and places.weights[2:].max() < 0.05


def test_units_do_not_matter(robot):
    units = 10.0 ** np.array([3, -4, 2, 0, 5, -5, 0, 1])
    np.testing.assert_allclose(places_of(robot * units).weights, places_of(robot).weights, rtol=1e-3)


def test_a_rotated_state_has_the_same_places(robot):
    places = places_of(rotated(robot))
    assert not places.are_dimensions
    features = features_of(rotated(robot), places)
    assert explained(features, robot[..., 0]) > 0.97 and explained(features, robot[..., 1]) > 0.97
    assert (features.std(0) > 0.3).sum() == 2


@pytest.mark.parametrize('name, reason', [
    ('battery', 'one way'), ('clock', 'one way'), ('odometer', 'one way'), ('temperature', 'do not depend')])
def test_drifts_have_no_weight(robot, name, reason):
    states = np.concatenate([robot, drifts()[name][..., None]], -1)
    places = places_of(states)
    assert places.weights[-1] == 0 and places.weights[:2].min() > 0.5
    assert len(places.excluded) == 1 and 'dimension 8' in places.excluded[0] and reason in places.excluded[0]


def test_several_drifts_have_no_weight(robot):
    states = np.concatenate([robot, np.stack(list(drifts().values()), -1)], -1)
    places = places_of(states)
    assert places.are_dimensions and not places.weights[8:].any() and places.weights[:2].min() > 0.5
    assert len(places.excluded) == 2 and 'dimensions 8, 9, 10: it only' in places.excluded[1]


def test_drifts_have_no_weight_in_a_rotated_state(robot):
    others = drifts()
    states = rotated(np.concatenate([robot, np.stack([others['battery'], others['temperature']], -1)], -1))
    places = places_of(states)
    features = features_of(states, places)
    assert len(places.excluded) == 2
    assert min(explained(features, robot[..., i]) for i in (0, 1)) > 0.95
    assert max(explained(features, others[name]) for name in ('battery', 'temperature')) < 0.15


def test_the_only_slow_dimension_is_a_place_even_if_it_runs_one_way(robot):
    corridor = np.cumsum(0.3 + 0.1 * robot[..., 2:3], 1)
    places = places_of(np.concatenate([corridor, robot[..., 2:]], -1))
    assert places.weights[0] == 1 and not places.excluded


def test_declared_dimensions_keep_the_dimensions(robot):
    assert places_of(rotated(robot), declared=[0]).are_dimensions
    odometer = np.concatenate([robot, drifts()['odometer'][..., None]], -1)
    assert places_of(odometer, declared=[8]).weights[8] > 0


def test_constant_and_repeated_dimensions_do_no_harm(robot):
    states = np.concatenate([robot, robot[..., :1], np.full_like(robot[..., :1], 3)], -1)
    places = places_of(states)
    assert np.isfinite(places.directions).all() and np.isfinite(places.weights).all()
    assert places.weights[9] == 0


def test_short_trajectories_keep_all_dimensions():
    states = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    places = find_places(TrajectoryDataset(states, np.arange(0, 40, 2), np.arange(1, 40, 2)))
    assert places.are_dimensions and (places.weights == 1).all()
