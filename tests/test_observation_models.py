"""`--observe`: the same observation_model for data, environment and goals."""

import dataclasses
import json
from pathlib import Path

import gymnasium
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
    parse_setting,
)
from ogbench_utils import BUNDLED_NAME, make_env, reset_env
from support.files import load_checkpoint

ANT, HUMANOID, SOCCER = 'antmaze-medium-navigate-v0', 'humanoidmaze-medium-navigate-v0', 'antsoccer-arena-navigate-v0'
SETTINGS = ('positions', 'torso', 'dropped:0.5', 'noise:0.3')


@pytest.fixture(scope='module')
def ant():
    return make_env(ANT)


@pytest.fixture
def walk():
    """Two trajectories of an ant's size: states, starts, ends."""
    states = np.random.default_rng(0).standard_normal((90, 29)).cumsum(0).astype(np.float32)
    return states, np.array([0, 50]), np.array([49, 89])


def senses_of_ant(setting, ant, states):
    return ObservationModel.from_setting(setting, ant).fit(states.std(0))


@pytest.mark.parametrize('name, kind, expected', [
    (ANT, 'positions', range(15)),
    (ANT, 'torso', range(7)),
    (HUMANOID, 'positions', range(39)),  # then the velocities of the centre of mass and of the joints
    (HUMANOID, 'torso', [0, 1, 23, 36, 37, 38]),  # xy, height of the head, which way is up
    (SOCCER, 'torso', [*range(7), *range(15, 22)]),  # the ball as well
    ('pointmaze-medium-navigate-v0', 'positions', [0, 1]),
])
def test_the_environment_says_what_is_what(name, kind, expected):
    assert find_dimensions(make_env(name), kind) == list(expected)


def test_an_own_environment_brings_its_own(ant):
    class Own(gymnasium.Wrapper):
        observed = {'positions': [3, 1]}

        @property
        def unwrapped(self):
            return self

    assert ObservationModel.from_setting('positions', Own(ant)).dimensions == (3, 1)
    with pytest.raises(ValueError, match='--observe torso: `observed` of the environment has no'):
        find_dimensions(Own(ant), 'torso')
    with pytest.raises(ValueError, match='--observe positions: .* attribute `observed`'):
        find_dimensions(gymnasium.make('Pendulum-v1'), 'positions')
    with pytest.raises(ValueError, match='no torso'):
        find_dimensions(make_env('cube-single-play-v0'), 'torso')


@pytest.mark.parametrize('setting', ['velocities', 'dropped', 'dropped:0', 'dropped:1', 'dropped:x', 'noise:-1',
                                     'noise', 'noise:inf', 'full:1', 'torso:2', ''])
def test_bad_settings(setting):
    with pytest.raises(ValueError, match=f'--observe {setting}: must be full'):
        parse_setting(setting)


def test_full_hides_nothing(ant, walk):
    assert not FULL_STATE and ObservationModel.from_setting('full', ant) == FULL_STATE == ObservationModel.from_dict(None)
    assert FULL_STATE.observe_trajectories(*walk, seed=0) is walk[0] and FULL_STATE.wrap(ant) is ant


def test_lost_readings_stay_as_they_were(walk):
    states, starts, ends = walk
    seen = ObservationModel('dropped:0.5', drop_rate=0.5).observe_trajectories(states, starts, ends, seed=0)
    assert (seen[starts] == states[starts]).all(), 'the first reading always arrives'
    fresh = (seen == states).all(1)
    for row in np.flatnonzero(~fresh):
        assert (seen[row] == seen[row - 1]).all()
    assert 0.3 < fresh.mean() < 0.7
    rare = ObservationModel('dropped:0.9', drop_rate=0.9).observe_trajectories(states, starts, ends, seed=0)
    assert (rare == states).all(1).mean() < 0.3


def test_noise_is_in_standard_deviations_of_the_data(ant):
    states = np.random.default_rng(1).standard_normal((20_000, 29)) * np.arange(1, 30)
    observation_model = senses_of_ant('noise:0.3', ant, states)
    seen = observation_model.observe_trajectories(states, np.array([0]), np.array([len(states) - 1]), seed=0)
    np.testing.assert_allclose((seen - states).std(0) / states.std(0), 0.3, rtol=0.05)
    assert observation_model.fit(np.ones(29)) == observation_model, 'a checkpoint keeps its noise, whatever data come later'


@pytest.mark.parametrize('setting', SETTINGS)
def test_one_by_one_or_all_at_once(ant, walk, setting):
    states = walk[0]
    observation_model = senses_of_ant(setting, ant, states)
    one, other = EpisodeObserver(observation_model, 7), EpisodeObserver(observation_model, 7)
    pieces = [one.take(states[i:i + 1]) for i in range(30)]
    np.testing.assert_array_equal(np.concatenate(pieces), other.take(states[:30]))
    np.testing.assert_array_equal(one.take(states[30:]), other.take(states[30:]))
    assert (observation_model.observe_trajectories(*walk, seed=3)[:50] == EpisodeObserver(observation_model, [3, 0]).take(states[:50])).all()


@pytest.mark.parametrize('setting', SETTINGS)
def test_the_environment_is_seen_as_the_data_are(ant, walk, setting):
    observation_model = senses_of_ant(setting, ant, walk[0])
    raw_env, env = make_env(ANT), open_envs(ANT, 1, make_env, observation_model)[0]
    raw, raw_goal = reset_env(raw_env, 2, 5)
    seen, goal = reset_env(env, 2, 5)
    raw, seen = [raw], [seen]
    for _ in range(40):
        action = raw_env.action_space.sample()
        raw.append(raw_env.step(action)[0])
        seen.append(env.step(action)[0])

    np.testing.assert_allclose(np.stack(seen), EpisodeObserver(observation_model, 5).take(np.stack(raw)), atol=1e-5)
    assert env.observation_space.shape == goal.shape == seen[0].shape
    exact = observation_model.see(raw_goal[None], np.random.default_rng(0))[0]
    np.testing.assert_allclose(goal, exact, atol=0 if observation_model.noise is None else 5 * max(observation_model.noise))
    assert observation_model.noise is None or not np.array_equal(goal, exact), 'a goal has noise of its own'

    again = [reset_env(env, 2, 5)[0]] + [env.step(np.zeros(8))[0] for _ in range(3)]
    assert (again[0] == seen[0]).all(), 'a seed decides all of it'


def test_a_dict_brings_them_back(ant, walk):
    for setting in SETTINGS:
        observation_model = senses_of_ant(setting, ant, walk[0])
        assert ObservationModel.from_dict(json.loads(json.dumps(dataclasses.asdict(observation_model)))) == observation_model
    assert isinstance(ObservationModel('torso', dimensions=(0, 1)).wrap(ant), PartialObservation)


@pytest.mark.parametrize('setting', ['torso', 'dropped:0.5', 'noise:0.1'])
def test_both_halves_and_evaluation(tmp_path, monkeypatch, make_short_env, setting):
    """The setting is given once, offline; the data of the online half are checked to be the very same."""
    for script in (online_trainer, evaluate):
        monkeypatch.setattr(script, 'make_env', make_short_env)
    monkeypatch.chdir(tmp_path)
    small = ('--d_model 32 --headdim 16 --d_state 8 --hidden_dim 32 --context_length 20 --transition_steps 5 '
             '--batch_size 4 --num_updates 2 --val_batches 1 --max_trajectories 6')
    offline_trainer.main(['--dataset', BUNDLED_NAME, '--observe', setting, '--save_dir', 'offline', *small.split()])
    short = ('--batch_size 4 --num_envs 2 --random_steps 60 --max_steps 120 --labeler_updates 2 --initial_updates 1 '
             '--update_ratio 0.01 --final_eval_episodes 1')
    online_trainer.main(['--dataset', BUNDLED_NAME, '--offline_checkpoint', 'offline/last.pth', '--save_dir', 'online',
                         *short.split()])
    evaluate.main(['--checkpoint', 'online/last.pth', '--episodes_per_task', '1'])

    saved = load_checkpoint('online/last.pth')
    observation_model = ObservationModel.from_dict(saved['data']['observation_model'])
    size = 7 if setting == 'torso' else 29
    assert observation_model.setting == setting and saved['agent']['offline']['observation_dim'] == size
    assert saved['replay']['observations'].shape[1] == size
    assert Path('online/maze_paths.png').exists() and Path('offline/maze_values.png').exists()


def test_the_trainer_refuses_a_bad_setting_at_once(monkeypatch):
    monkeypatch.setattr(offline_trainer, 'load_dataset', lambda *args, **options: pytest.fail('data were loaded'))
    with pytest.raises(ValueError, match='--observe nothing: must be'):
        offline_trainer.main(['--observe', 'nothing'])
