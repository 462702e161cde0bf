"""Tasks of gymnasium (environments/gymnasium_tasks.py) and the data of their controllers."""

import numpy as np
import pytest

from environments import gymnasium_tasks
from environments.custom_env import goal_dims_of, open_env
from scripts.data import collect_gymnasium
from support.npz import load_trajectories


@pytest.mark.parametrize('name', collect_gymnasium.ROBOTS)
def test_tasks_meet_the_requirements(name, capsys):
    env = open_env(f'environments.gymnasium_tasks:{name}')
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
