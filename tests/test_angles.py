"""Angles that wrap: found in the data, observed as sine and cosine by data, environment and goals alike."""

import dataclasses
import json

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from observing.observation_models import FULL_STATE, ObservationModel
from ogbench_utils import main, reset_env
from support.steps import find_flips, find_jumps, find_period, find_repetition
from trajectories import load_dataset

COUNT, LENGTH = 20, 150
ENDS = np.arange(1, COUNT + 1) * LENGTH - 1


def wheel(seed=0):
    """Angles (COUNT * LENGTH,) of a wheel that turns without stops; each trajectory begins anywhere."""
    rng = np.random.default_rng(seed)
    speed = rng.uniform(-0.1, 0.1, (COUNT, 1)) + 0.03 * rng.standard_normal((COUNT, LENGTH))
    return (rng.uniform(0, 2 * np.pi, (COUNT, 1)) + speed.cumsum(1)).ravel()


def wrap(angles, first=-np.pi, period=2 * np.pi):
    return (angles - first) % period + first


PERIODIC = {
    'around 0': (wrap(wheel()), 2 * np.pi),
    'from 0': (wrap(wheel(), 0), 2 * np.pi),
    'float32': (wrap(wheel()).astype(np.float32), 2 * np.pi),
    'degrees': (wrap(np.rad2deg(wheel()), -180, 360), 360),
    'degrees from 0': (wrap(np.rad2deg(wheel()), 0, 360), 360),
}


@pytest.mark.parametrize('case', PERIODIC)
def test_an_angle_that_wraps_is_found(case):
    values, period = PERIODIC[case]
    assert find_period(values, ENDS) == period


def teleporting():
    """A position within -pi to pi that a teleporter moves by half of that range at times, or by all of it."""
    rng = np.random.default_rng(1)
    values = wrap(wheel(1))
    return np.where(rng.random(len(values)) < 0.01, rng.uniform(-np.pi, np.pi, len(values)), values)


OTHERS = {
    'no wrap': wheel(),
    'within its ends': 3 * np.sin(wheel()),
    'one revolution': np.linspace(-np.pi, np.pi, COUNT * LENGTH),
    'teleporter': teleporting(),
    'another range': wrap(wheel(), 0, 5.0),
    'noise': np.random.default_rng(0).uniform(-np.pi, np.pi, COUNT * LENGTH),
    'switch': np.repeat(np.arange(COUNT * LENGTH / 30) % 2 * 2 * np.pi, 30),
    'constant': np.zeros(COUNT * LENGTH),
    'two values': np.tile([0.0, 2 * np.pi], COUNT * LENGTH // 2),
    'wraps between trajectories': np.tile(np.linspace(-np.pi, np.pi, LENGTH), COUNT),
}


@pytest.mark.parametrize('case', OTHERS)
def test_other_dimensions_are_no_angles(case):
    assert find_period(OTHERS[case], ENDS) is None


# -------------------------------------------------------------------------------------- the observation model
@pytest.fixture
def states():
    """A position, an angle, a velocity, an angle in degrees: (N, 4) float32."""
    rng = np.random.default_rng(3)
    columns = [rng.standard_normal(len(wheel())).cumsum(), wrap(wheel()), wheel(4) / 9,
               wrap(np.rad2deg(wheel(2)), 0, 360)]
    return np.stack(columns, 1).astype(np.float32)


@pytest.fixture
def model(states):
    return FULL_STATE.with_angles(states, ENDS)


def expected(states):
    phases = np.stack([states[:, 1], np.deg2rad(states[:, 3])], 1)
    columns = [states[:, 0], np.sin(phases[:, 0]), states[:, 2], np.sin(phases[:, 1]), *np.cos(phases).T]
    return np.stack(columns, 1)


def test_data_environment_and_goal_have_sine_and_cosine(states, model):
    class Env(gymnasium.Env):
        observation_space, action_space = Box(-np.inf, np.inf, (4,)), Box(-1, 1, (1,))

        def reset(self, seed=None, options=None):
            return states[5], {'goal': states[8]}

    starts = ENDS - LENGTH + 1
    observed = model.observe_trajectories(states, starts, ENDS, 0)
    np.testing.assert_allclose(observed, expected(states), atol=1e-5)
    assert observed.dtype == np.float32 and states[:, 1].max() > 3  # the states are as they were

    env = model.wrap(Env())
    start, goal = reset_env(env, 1, 0)
    assert env.observation_space.shape == (6,)
    np.testing.assert_array_equal(start, observed[5])
    np.testing.assert_array_equal(goal, observed[8])


def test_nan_in_a_goal_is_nan_in_sine_and_cosine(states, model):
    goal = states[3].copy()
    goal[1] = np.nan
    assert np.flatnonzero(np.isnan(model.observe(goal[None], None)[0])).tolist() == [1, 4]


def test_a_wrap_is_no_step(states, model):
    observed = model.observe(states, None)
    rows = np.setdiff1d(np.arange(len(states) - 1), ENDS)
    raw, inside = (np.abs(np.diff(values, axis=0)[rows]) for values in (states, observed))
    assert raw[:, 1].max() > 6 and inside[:, [1, 3, 4, 5]].max() < 0.3


def test_declared_dimensions_map_to_sine_and_cosine(model):
    assert model.columns([0, 3]) == [0, 3, 5] and model.columns([1]) == [1, 4]
    assert model.note == 'dimensions 1, 3 are angles that wrap: sine and cosine are used'


def test_it_survives_a_checkpoint(states, model):
    restored = ObservationModel.from_dict(json.loads(json.dumps(dataclasses.asdict(model))))
    np.testing.assert_array_equal(restored.observe(states, None), model.observe(states, None))
    assert restored.with_angles(np.zeros_like(states), ENDS).angles == model.angles and bool(restored)


def test_a_checkpoint_without_angles_stays_without(states):
    saved = dataclasses.asdict(FULL_STATE)
    del saved['angles']
    assert not ObservationModel.from_dict(saved).with_angles(states, ENDS)


@pytest.mark.parametrize('angles', [((0, 1),), ((0, 1, 0.0),), ((0, 1, 6),), ((-1, 1, 6.0),), (3,), (('a', 1, 6.0),)])
def test_a_record_that_is_none_is_refused(angles):
    with pytest.raises(ValueError, match='`angles` of the observation model'):
        ObservationModel.from_dict(dataclasses.asdict(FULL_STATE) | {'angles': angles})


@pytest.mark.parametrize('setting, size', [('full', 6), ('positions', 5), ('dropped:0.3', 6), ('noise:0.1', 6),
                                           ('rotated:3', 6)])
def test_all_settings_observe_angles(states, tmp_path, setting, size):
    class Env(gymnasium.Env):
        observation_space = Box(-np.inf, np.inf, (4,))
        observed = {'positions': [3, 0, 1]}

    np.savez(tmp_path / 'wheels.npz', observations=states, terminals=np.isin(np.arange(len(states)), ENDS))
    given = ObservationModel.from_setting(setting, Env())
    data, val, source = load_dataset('wheels:Env', str(tmp_path / 'wheels.npz'), observation_model=given,
                                     num_dimensions=4, context_length=50)
    assert data.observations.shape[1] == val.observations.shape[1] == size
    assert 'dimensions' in source.observation_model.note


# ------------------------------------------------------------------------------------------------ other steps
def test_a_quaternion_that_flips_is_found(states):
    half = wheel()[:, None] / 2
    quaternion = np.concatenate([np.cos(half), np.zeros_like(half), np.zeros_like(half), np.sin(half)], 1)
    smooth = np.concatenate([states[:, :1], quaternion], 1)
    flipped = smooth.copy()
    flipped[:, 1:] *= np.sign(flipped[:, 1:2])
    assert find_flips(smooth, ENDS) == {} and list(find_flips(flipped, ENDS)) == [1]


def test_jumps_over_missing_borders_are_found():
    smooth = wheel()[:, None].cumsum(0) / 100
    values = np.concatenate([smooth + 20 * (np.arange(len(smooth)) // LENGTH % 3)[:, None], smooth], 1)
    kept = ENDS[[0, 1, 4, 19]]
    values[:, 1] += values[:, 0]
    assert len(find_jumps(values, ENDS)) == 0
    assert find_jumps(values, kept).tolist() == sorted({*ENDS.tolist()} - {*kept.tolist()})


def test_a_collision_is_no_jump():
    speed = np.where(np.arange(COUNT * LENGTH) // 50 % 2, -1, 1) * np.linspace(1, 1.1, COUNT * LENGTH)
    assert len(find_jumps(np.stack([speed.cumsum(), speed], 1), ENDS)) == 0


def test_states_recorded_twice_are_no_rest():
    walk = np.random.default_rng(0).standard_normal((COUNT * LENGTH // 2, 2)).cumsum(0)
    assert find_repetition(np.repeat(walk, 2, axis=0), ENDS) == pytest.approx(2, rel=0.02)
    still = np.repeat(walk[::2], 1 + 3 * (np.arange(len(walk[::2])) % 10 == 0), axis=0)
    assert find_repetition(still, np.array([len(still) - 1])) == 0 == find_repetition(np.ones((99, 2)), [98])


def test_check_reports_irregular_steps(tmp_path, capsys):
    rng = np.random.default_rng(0)
    time = np.arange(LENGTH)[None, :, None]
    place = 20 * rng.standard_normal((COUNT, 1, 2)) + 0.05 * time
    half = rng.uniform(0, 6, (COUNT, 1, 1)) + 0.04 * time
    quaternion = np.concatenate([np.cos(half), np.sin(half), 0 * half, 0 * half], 2) * np.sign(np.cos(half))
    states = np.concatenate([place, quaternion], 2).reshape(-1, 6)

    for name in ('walk', 'teleport-walk'):
        path = tmp_path / f'{name}.npz'
        np.savez(path, observations=states, terminals=np.isin(np.arange(len(states)), ENDS[1::2]))
        main(['check', str(path)])
        lines = capsys.readouterr().out
        assert f'warning: {path}: dimensions 2 to 5 are a quaternion whose sign flips' in lines
        jumps = '10 steps inside trajectories jump (rows 149, 449, 749, …): are the borders'
        assert (jumps in lines) == (name == 'walk')


def test_check_names_angles(tmp_path, capsys, states):
    np.savez(tmp_path / 'wheels.npz', observations=states, terminals=np.isin(np.arange(len(states)), ENDS))
    main(['check', str(tmp_path / 'wheels.npz')])
    assert 'dimensions 1, 3 are angles that wrap: sine and cosine are used\n' in capsys.readouterr().out
