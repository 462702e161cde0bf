"""Small robots (environments/gymnasium_tasks.py, wheeled_robots.py) and the data of their controllers."""

import numpy as np
import pytest

from environments import gymnasium_tasks, wheeled_robots
from environments.custom_env import goal_dims_of, open_env
from scripts.data import collect_gymnasium
from support.npz import load_trajectories


@pytest.mark.parametrize('name', collect_gymnasium.ROBOTS)
def test_tasks_meet_the_requirements(name, capsys):
    module = collect_gymnasium.ROBOTS[name][0]
    env = open_env(f'{module.__name__}:{name}')
    state, info = env.reset(seed=0)
    assert state.shape == info['goal'].shape == env.observation_space.shape
    assert capsys.readouterr().err == ''
    env.close()


def test_goal_of_the_reacher_is_a_state_at_the_target():
    env = gymnasium_tasks.reacher()
    for seed in range(5):
        _, info = env.reset(seed=seed)
        goal = info['goal']
        assert goal_dims_of(env) == [0, 1]

        # the pose of the goal, in the simulator
        robot = env.unwrapped
        angles = np.arctan2(goal[4:6], goal[2:4])
        robot.set_state(np.r_[angles, robot.data.qpos[2:]], np.zeros(4))
        state = env.state(robot._get_obs())
        np.testing.assert_allclose(state, goal, atol=1e-5)
        assert env.success(robot._get_obs())
    env.close()


@pytest.mark.parametrize('name, state, success', [
    ('Pendulum', (np.cos(0.1), np.sin(0.1), 0.5), True),
    ('Pendulum', (np.cos(0.1), np.sin(0.1), 1.5), False),
    ('Pendulum', (-1, 0, 0), False),
    ('MountainCar', (0.45, 0.01), True),
    ('MountainCar', (0.4, 0.01), False),
])
def test_success_of_states(name, state, success):
    task = getattr(gymnasium_tasks, name)
    assert task.success(None, np.array(state)) == success


def test_the_rover_drives_where_it_looks_and_stops_at_walls():
    env = wheeled_robots.Rover()
    env.reset(seed=0)
    env.state, env.goal = np.array([0.0, 0, np.pi / 2, 0, 0]), np.array([0.0, 2.9])
    for _ in range(60):
        state, _, success, _, _ = env.step(np.ones(2))
        if success:
            break
    assert success and state[1] == pytest.approx(2.6, abs=0.1) and abs(state[0]) < 1e-6
    for _ in range(10):
        state = env.step(np.ones(2))[0]
    assert state[1] == pytest.approx(env.room) and not state[3:].any()
    headings = [env.step(np.array([-0.5, 0.5]))[0][2] for _ in range(20)]
    assert np.ptp(headings) > np.pi, 'the heading wraps'


@pytest.mark.parametrize('name, near', [('two_wheels', 0.15), ('rover', 0.3)])
def test_controllers_of_wheeled_robots_go_from_place_to_place(name, near):
    observations, terminals = collect_gymnasium.collect(name, 10)
    assert terminals.sum() == 10 and len(observations) > 500
    visited = np.unique((observations[:, :2] / (2 * near)).round(), axis=0)
    assert len(visited) > 50


def test_recordings_are_reproducible_state_only_trajectories(tmp_path, capsys):
    path = tmp_path / 'car.npz'
    collect_gymnasium.main(['--robot', 'mountain_car', '--output', str(path), '--episodes', '3'])
    assert f'{path}: 3 trajectories' in capsys.readouterr().out
    observations, starts, ends = load_trajectories(path)
    assert len(starts) == 3 and observations[ends, 0].max() >= 0.45
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays) == {'observations', 'terminals'}
    again, _ = collect_gymnasium.collect('mountain_car', 3)
    np.testing.assert_array_equal(again, observations)
