"""Observation models (--observe): data, environments and goals are observed through the same model."""

import dataclasses
import json
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest

import evaluate
import offline_trainer
import online_trainer
from environments.safe_env import open_envs
from observing.observation_models import (
    FULL_STATE,
    EpisodeObserver,
    ObservationModel,
    PartialObservation,
    find_dimensions,
    observation_model_of,
    parse_setting,
)
from ogbench_utils import BUNDLED_NAME, make_env, reset_env
from support.files import load_checkpoint

ANT = 'antmaze-medium-navigate-v0'
HUMANOID = 'humanoidmaze-medium-navigate-v0'
SOCCER = 'antsoccer-arena-navigate-v0'
SETTINGS = ('positions', 'torso', 'dropped:0.5', 'noise:0.3')


@pytest.fixture(scope='module')
def ant():
    return make_env(ANT)


@pytest.fixture
def walk():
    """Two trajectories of ant-sized states: states, starts, ends."""
    states = np.random.default_rng(0).standard_normal((90, 29)).cumsum(0).astype(np.float32)
    return states, np.array([0, 50]), np.array([49, 89])


def ant_model(setting, ant, states):
    return ObservationModel.from_setting(setting, ant).with_noise_scale(states.std(0))


@pytest.mark.parametrize('name, kind, expected', [
    (ANT, 'positions', range(15)),
    (ANT, 'torso', range(7)),
    (HUMANOID, 'positions', range(39)),  # velocities of the centre of mass and of the joints follow
    (HUMANOID, 'torso', [0, 1, 23, 36, 37, 38]),  # xy, height of the head, direction of gravity
    (SOCCER, 'torso', [*range(7), *range(15, 22)]),  # torso and ball
    ('pointmaze-medium-navigate-v0', 'positions', [0, 1]),
])
def test_find_dimensions_probes_mujoco_environments(name, kind, expected):
    assert find_dimensions(make_env(name), kind) == list(expected)


def test_find_dimensions_reads_the_attribute_of_a_custom_environment(ant):
    class Custom(gymnasium.Wrapper):
        observed = {'positions': [3, 1]}

        @property
        def unwrapped(self):
            return self

    assert ObservationModel.from_setting('positions', Custom(ant)).dimensions == (3, 1)
    with pytest.raises(ValueError, match='--observe torso: `observed` of the environment has no'):
        find_dimensions(Custom(ant), 'torso')
    with pytest.raises(ValueError, match='--observe positions: .* attribute `observed`'):
        find_dimensions(gymnasium.make('Pendulum-v1'), 'positions')
    with pytest.raises(ValueError, match='no torso'):
        find_dimensions(make_env('cube-single-play-v0'), 'torso')


@pytest.mark.parametrize('setting', ['velocities', 'dropped', 'dropped:0', 'dropped:1', 'dropped:x',
                                     'noise:-1', 'noise', 'noise:inf', 'full:1', 'torso:2', ''])
def test_parse_setting_refuses_bad_settings(setting):
    with pytest.raises(ValueError, match=f'--observe {setting}: must be full'):
        parse_setting(setting)


def test_full_state_changes_nothing(ant, walk):
    assert not FULL_STATE and ObservationModel.from_setting('full', ant) == FULL_STATE
    assert FULL_STATE.observe_trajectories(*walk, seed=0) is walk[0] and FULL_STATE.wrap(ant) is ant


def test_dropped_observations_repeat_the_last_one(walk):
    states, starts, ends = walk
    model = ObservationModel('dropped:0.5', drop_rate=0.5)
    observations = model.observe_trajectories(states, starts, ends, seed=0)
    assert (observations[starts] == states[starts]).all(), 'the first observation is never dropped'
    received = (observations == states).all(1)
    for row in np.flatnonzero(~received):
        assert (observations[row] == observations[row - 1]).all()
    assert 0.3 < received.mean() < 0.7
    model = ObservationModel('dropped:0.9', drop_rate=0.9)
    observations = model.observe_trajectories(states, starts, ends, seed=0)
    assert (observations == states).all(1).mean() < 0.3


def test_noise_scales_with_the_standard_deviation_of_the_data(ant):
    states = np.random.default_rng(1).standard_normal((20_000, 29)) * np.arange(1, 30)
    model = ant_model('noise:0.3', ant, states)
    observations = model.observe_trajectories(states, np.array([0]), np.array([len(states) - 1]), seed=0)
    np.testing.assert_allclose((observations - states).std(0) / states.std(0), 0.3, rtol=0.05)
    assert model.with_noise_scale(np.ones(29)) == model, 'a checkpoint keeps its noise scale'


def test_columns_index_the_observation(ant):
    model = ObservationModel('torso', dimensions=(0, 3, 4))
    assert model.columns([4, 0]) == [2, 0] and FULL_STATE.columns(range(2)) == [0, 1]
    with pytest.raises(ValueError, match=r'--observe torso: dimensions \[1\] of the state are not observed'):
        model.columns([0, 1])


@pytest.mark.parametrize('setting', SETTINGS)
def test_episode_observer_observes_single_states_as_it_does_many(ant, walk, setting):
    states = walk[0]
    model = ant_model(setting, ant, states)
    one, other = EpisodeObserver(model, 7), EpisodeObserver(model, 7)
    pieces = [one.observe(states[i:i + 1]) for i in range(30)]
    np.testing.assert_array_equal(np.concatenate(pieces), other.observe(states[:30]))
    np.testing.assert_array_equal(one.observe(states[30:]), other.observe(states[30:]))
    first_trajectory = model.observe_trajectories(*walk, seed=3)[:50]
    assert (first_trajectory == EpisodeObserver(model, [3, 0]).observe(states[:50])).all()


@pytest.mark.parametrize('setting', SETTINGS)
def test_partial_observation_observes_an_episode_as_the_data(ant, walk, setting):
    model = ant_model(setting, ant, walk[0])
    raw_env, env = make_env(ANT), open_envs(ANT, 1, make_env, model)[0]
    state, raw_goal = reset_env(raw_env, 2, 5)
    observation, goal = reset_env(env, 2, 5)
    states, observations = [state], [observation]
    for _ in range(40):
        action = raw_env.action_space.sample()
        states.append(raw_env.step(action)[0])
        observations.append(env.step(action)[0])

    expected = EpisodeObserver(model, 5).observe(np.stack(states))
    np.testing.assert_allclose(np.stack(observations), expected, atol=1e-5)
    assert env.observation_space.shape == goal.shape == observations[0].shape

    exact_goal = model.observe(raw_goal[None], np.random.default_rng(0))[0]
    np.testing.assert_allclose(goal, exact_goal, atol=0 if model.noise is None else 5 * max(model.noise))
    assert model.noise is None or not np.array_equal(goal, exact_goal), 'a goal has its own noise'

    again = [reset_env(env, 2, 5)[0]] + [env.step(np.zeros(8))[0] for _ in range(3)]
    assert (again[0] == observations[0]).all(), 'the seed determines the observations'


def test_observation_model_survives_json(ant, walk):
    for setting in SETTINGS:
        model = ant_model(setting, ant, walk[0]).with_origin(walk[0])
        saved = json.loads(json.dumps(dataclasses.asdict(model)))
        assert ObservationModel.from_dict(saved) == model
    assert isinstance(ObservationModel('torso', dimensions=(0, 1)).wrap(ant), PartialObservation)


@pytest.mark.parametrize('setting', ['torso', 'dropped:0.5', 'noise:0.1'])
@pytest.mark.usefixtures('short_episodes', 'quick_labeler', 'plain_figures')
def test_setting_holds_for_online_training_and_evaluation(tmp_path, monkeypatch, setting):
    """The online trainer checks that its data are those of the offline run."""
    for script in (offline_trainer, online_trainer):
        monkeypatch.setattr(script, 'plot_curves', lambda *_: None)
    monkeypatch.chdir(tmp_path)
    small = ('--d_model 32 --headdim 16 --d_state 8 --hidden_dim 32 --context_length 20 --transition_steps 5 '
             '--batch_size 4 --num_updates 2 --max_trajectories 6')
    offline_trainer.main(['--dataset', BUNDLED_NAME, '--observe', setting, '--save_dir', 'offline',
                          *small.split()])
    short = ('--batch_size 4 --num_envs 2 --random_steps 60 --max_steps 120 --initial_updates 1 '
             '--update_ratio 0.01 --final_eval_episodes 1')
    online_trainer.main(['--dataset', BUNDLED_NAME, '--offline_checkpoint', 'offline/last.pth',
                         '--save_dir', 'online', *short.split()])
    evaluate.main(['--checkpoint', 'online/last.pth', '--episodes_per_task', '1'])

    saved = load_checkpoint('online/last.pth')
    size = 7 if setting == 'torso' else 29
    assert observation_model_of(saved).setting == setting
    assert saved['agent']['offline']['observation_dim'] == size
    assert saved['replay']['observations'].shape[1] == size
    assert Path('online/maze_paths.png').exists() and Path('offline/maze_values.png').exists()


def test_offline_trainer_refuses_a_bad_setting_before_loading_data(monkeypatch):
    monkeypatch.setattr(offline_trainer, 'load_dataset', lambda *_, **options: pytest.fail('data loaded'))
    with pytest.raises(ValueError, match='--observe nothing: must be'):
        offline_trainer.main(['--observe', 'nothing'])


def fitted(setting, states):
    return ObservationModel.from_setting(setting, None).with_transform(states.mean(0), states.std(0))


def test_rotated_states_are_standardised_and_turned(walk):
    states, starts, ends = walk
    model = fitted('rotated:5', states)
    observations = model.observe_trajectories(states, starts, ends, seed=0)
    standardised = (states - states.mean(0)) / states.std(0)
    np.testing.assert_allclose(observations @ observations.T, standardised @ standardised.T, atol=1e-3)
    assert np.abs(np.corrcoef(standardised[:, 0], observations.T)[0, 1:]).max() < 0.95


def test_units_differ_by_orders_of_magnitude(walk):
    states, starts, ends = walk
    observations = fitted('units:5', states).observe_trajectories(states, starts, ends, seed=0)
    factors = observations.std(0) / states.std(0)
    np.testing.assert_allclose(observations, states * factors, rtol=1e-4)
    assert factors.min() < 0.01 and factors.max() > 100


def test_lifted_states_have_twice_as_many_numbers_of_any_unit(walk):
    states = walk[0].astype(float)
    observations = fitted('lifted:5', states).observe(states, None)
    assert observations.shape == (90, 58) and np.abs(observations).max() < 1
    assert observations.std(0).min() > 0.05, 'no number is saturated'
    other = fitted('lifted:5', 1000 * states + 7).observe(1000 * states + 7, None)
    np.testing.assert_allclose(other, observations, atol=1e-5)


def test_markers_follow_the_geoms_of_the_robot(ant):
    model = ObservationModel.from_setting('markers', ant)
    env = model.wrap(ant)
    info = env.reset(seed=3)[1]
    model, data = ant.unwrapped.model, ant.unwrapped.data
    state = env.step(env.action_space.sample())[0]
    mujoco.mj_kinematics(model, data)  # a step leaves positions of its last substep
    assert state.shape == env.observation_space.shape == info['goal'].shape == (39,)
    np.testing.assert_allclose(state[:3], data.geom_xpos[model.geom('torso_geom').id], atol=1e-5)
    leg = model.geom('left_ankle_geom').id
    distances = np.linalg.norm(state.reshape(-1, 3) - data.geom_xpos[leg], axis=1)
    assert distances.min() < 1e-5, 'angles of ankles are visible'


def test_markers_need_a_pose_or_an_attribute(ant):
    class Custom(gymnasium.Wrapper):
        observed = {'markers': [3, 1]}

    assert ObservationModel.from_setting('markers', Custom(ant)).dimensions == (3, 1)
    for env in (gymnasium.make('Pendulum-v1'), make_env(HUMANOID)):
        with pytest.raises(ValueError, match='--observe markers: only for registered MuJoCo environments'):
            ObservationModel.from_setting('markers', env)


@pytest.mark.parametrize('setting', ['units:5', 'rotated:5', 'lifted:5', 'markers'])
def test_other_coordinates_survive_a_checkpoint(walk, ant, setting):
    states = walk[0]
    model = ObservationModel.from_setting(setting, ant).with_transform(states.mean(0), states.std(0))
    saved = json.loads(json.dumps(dataclasses.asdict(model)))
    restored = ObservationModel.from_dict(saved)
    assert restored.transform == model.transform
    np.testing.assert_array_equal(restored.observe(states, None), model.observe(states, None))
    with pytest.raises(ValueError, match='no dimension of the state is observed by itself'):
        restored.columns([0, 1])

    # a set transform is kept; a damaged one is refused
    assert model.with_transform(np.zeros(29), np.ones(29)) == model
    for name in saved['transform']:
        with pytest.raises(ValueError, match='of the observation model|of the markers'):
            ObservationModel.from_dict(saved | {'transform': saved['transform'] | {name: ['1']}})
    with pytest.raises(ValueError, match='has no `transform`'):
        ObservationModel.from_dict(saved | {'transform': None})


@pytest.mark.parametrize('setting', ['rotated', 'rotated:', 'rotated:-1', 'lifted:0.5', 'lifted:x', 'markers:1'])
def test_random_coordinates_need_a_seed(setting):
    with pytest.raises(ValueError, match='units:SEED, rotated:SEED, lifted:SEED, or markers'):
        parse_setting(setting)
