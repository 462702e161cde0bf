"""Data and environment are compared: units, offset, order, control rate; agreement prints nothing."""

import numpy as np
import pytest

import offline_trainer
from docs.own_robot import Arm, make_env
from environments.agreement import compare_states, compare_steps, warn_of_states
from ogbench_utils import reset_env
from trajectories import ReplayBuffer, TrajectoryDataset


def rollouts(episodes, steps, amplitude, seed):
    """States (episodes, steps + 1, 2), actions in [-1, 1] and goals of the arm with random walks of actions."""
    rng, arm, states, actions, goals = np.random.default_rng(seed), Arm(), [], [], []
    for episode in range(episodes):
        state, info = arm.reset(seed=1000 * seed + episode)
        states.append([state])
        goals.append(info['goal'])
        for _ in range(steps):
            actions.append(np.clip(rng.uniform(-1, 1, 2) * amplitude, -1, 1))
            states[-1].append(arm.step(0.05 * actions[-1])[0])
    return np.array(states), np.array(actions).reshape(episodes, steps, 2), np.array(goals)


def dataset(states):
    """TrajectoryDataset of states (episodes, steps, 2)."""
    count, steps, size = states.shape
    ends = np.arange(1, count + 1) * steps - 1
    return TrajectoryDataset(states.reshape(-1, size).astype(np.float32), ends - steps + 1, ends)


@pytest.fixture(scope='module')
def recorded():
    return rollouts(20, 100, 0.8, seed=0)[0]


@pytest.fixture(scope='module')
def own():
    states, actions, goals = rollouts(5, 60, 1.5, seed=1)
    replay = ReplayBuffer(2, 2)
    for episode in zip(states, actions, strict=True):
        replay.add(*map(np.float32, episode))
    return replay, goals


SPACE = Arm.observation_space.low, Arm.observation_space.high
CHANGES = {  # of the data, and what the line says
    'degrees': (np.rad2deg, 'radians and degrees'),
    'radians': (np.deg2rad, 'radians and degrees'),
    'millimetres': (lambda states: 1000 * states, 'thousandths'),
    'offset': (lambda states: states + 100, 'an offset of about 1'),
}


@pytest.mark.parametrize('change', CHANGES)
def test_units_and_offsets_differ(recorded, own, change):
    function, cause = CHANGES[change]
    states, goals = (np.stack(values) for values in
                     zip(*(reset_env(make_env(), 1, seed) for seed in range(4)), strict=True))
    changed = dataset(function(recorded))
    for line in (compare_states(changed, states, goals, *SPACE), compare_steps(changed, *own)):
        assert line.startswith('dimensions 0, 1: the environment has ') and cause in line and '\n' not in line


def test_the_unit_of_one_dimension_shows_in_the_steps(recorded, own):
    line = compare_steps(dataset(recorded * [1, 180 / np.pi]), *own)
    assert line.startswith('dimension 1: ') and 'radians and degrees' in line


@pytest.mark.parametrize('rate', [1, 4, 8])
def test_a_lower_control_rate_needs_larger_actions(own, rate):
    """Straight lines at 0.8 of the largest action, recorded at 1 / rate of the control rate."""
    ends = np.random.default_rng(0).uniform(-2, 2, (30, 2, 2))
    count = int(np.abs(np.diff(ends, axis=1)).max() / 0.04)
    lines = ends[:, :1] + np.linspace(0, 1, count)[None, ::rate, None] * np.diff(ends, axis=1)
    assert ('as if recorded at a lower rate' in compare_steps(dataset(lines), *own)) == (rate > 1)


def test_another_order_is_named(own):
    rng = np.random.default_rng(0)
    data = dataset(rng.uniform([0, -1, 50], [20, 1, 60], (5, 40, 3)))
    states = rng.uniform([-1, 50, 0], [1, 60, 20], (4, 3))
    line = compare_states(data, states, states)
    assert line.startswith('dimensions 1, 2: ') and 'in another order of the dimensions they would agree' in line


@pytest.mark.parametrize('count', [20, 3, 1])
def test_agreement_is_silent(recorded, own, capsys, count):
    data = dataset(recorded[:count])
    warn_of_states(data, make_env())
    assert compare_steps(data, *own) == '' and capsys.readouterr().err == ''


def test_what_rests_and_what_never_varies_is_no_difference(recorded, own):
    """An object that random actions do not move, and a constant that differs."""
    replay, goals = own
    rng = np.random.default_rng(0)
    moved = np.repeat(rng.uniform(-1, 1, (20, 1, 1)), 101, 1) + np.linspace(0, 1, 101)[None, :, None]
    data = dataset(np.concatenate([recorded, moved, np.ones((20, 101, 1))], 2))

    jitter = 1e-6 * rng.standard_normal((len(replay), 1))
    wider = ReplayBuffer(4, 2)
    wider.add(np.float32(np.concatenate([replay.observations, jitter, 0 * jitter], 1)), replay.actions[1:])
    assert compare_steps(data, wider, np.pad(goals, ((0, 0), (0, 2)))) == ''


def test_the_generator_of_numpy_stays_as_it_is(recorded):
    np.random.seed(3)
    warn_of_states(dataset(recorded), make_env())
    drawn = np.random.random()
    np.random.seed(3)
    assert drawn == np.random.random()


def test_the_offline_trainer_says_it_before_training(recorded, tmp_path, capsys):
    states = np.rad2deg(recorded.astype(np.float32)).reshape(-1, 2)
    np.savez(tmp_path / 'deg.npz', observations=states, terminals=np.arange(len(states)) % 101 == 100)
    config = offline_trainer.OfflineTrainConfig(env='docs.own_robot:make_env', batch_size=1,
                                                dataset_path=str(tmp_path / 'deg.npz'))
    offline_trainer.load_data(config, offline_trainer.OfflineConfig(context_length=20))
    error = capsys.readouterr().err
    assert error.count('warning: data and environment differ: ') == 1 and 'radians and degrees' in error


def test_a_few_recordings_that_overlap_with_the_environment_are_no_difference(recorded):
    """Of an angle that two recordings show on one side only, as in scene-play."""
    rng = np.random.default_rng(0)
    data = dataset(np.concatenate([recorded, -np.abs(np.tanh(recorded))[:, :, :1]], 2))
    states = np.concatenate([recorded[:4, 0], rng.uniform(0.9, 1, (4, 1))], 1)
    states[0, 2] = -0.9
    assert compare_states(data, states, states) == ''
    states[0, 2] = 0.9
    assert compare_states(data, states + [0, 0, 100], states).startswith('dimension 2: ')
