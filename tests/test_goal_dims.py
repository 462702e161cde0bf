"""Declared goal dimensions: of the environment, of a dictionary with an achieved goal, of a flag. NaN in goals."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

import offline_trainer
from environments.custom_env import GoalDict, goal_dims_of
from environments.safe_env import open_envs
from observing.observation_models import FULL_STATE, ObservationModel
from rollouts import run_episodes


class Reacher(gymnasium.Env):
    """Observations are a dictionary; the goal is the position of the hand."""

    observation_space = Dict({name: Box(-1, 1, (n,)) for name, n in
                              (('observation', 4), ('achieved_goal', 2), ('desired_goal', 2))})
    action_space = Box(-1, 1, (2,))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        state = self.np_random.standard_normal(4)
        return {'observation': state, 'achieved_goal': state[:2], 'desired_goal': np.ones(2)}, {}


class Declared(gymnasium.Env):
    observation_space = action_space = Box(-1, 1, (4,))
    goal_dims = (3, 1)


def test_an_environment_declares_its_goal_dims():
    assert goal_dims_of(Declared()) == [3, 1]
    assert goal_dims_of(gymnasium.wrappers.TimeLimit(Declared(), 10)) == [3, 1]
    assert goal_dims_of(gymnasium.wrappers.TimeLimit(GoalDict(Reacher(), np.arange(2, 4)), 10)) == [0, 1]
    assert goal_dims_of(Reacher()) == []


@pytest.mark.parametrize('text', ['0;1', '-1', 'x', '1.5', '1,', ' '])
def test_goal_dims_must_be_a_list_of_dimensions(text):
    with pytest.raises(ValueError, match='--goal_dims .*must be dimensions of a state'):
        offline_trainer.parse_goal_dims(text)


def test_goal_dims_are_parsed():
    assert offline_trainer.parse_goal_dims('0, 2,11') == [0, 2, 11]
    assert offline_trainer.parse_goal_dims('') == []


def test_declared_dimensions_weigh_one_and_the_others_as_before(make_agent, make_dataset):
    agent, data = make_agent(), make_dataset()
    before = agent.encoder.goal_weights.clone()
    fast = int(before.argmin())
    line = offline_trainer.set_statistics(agent, data, FULL_STATE, [fast])
    assert f'declared: {fast}' in line
    assert agent.encoder.goal_weights[fast] == 1
    others = np.delete(np.arange(len(before)), fast)
    np.testing.assert_allclose(agent.encoder.goal_weights[others], before[others], rtol=1e-5)


def test_declared_dimensions_are_those_of_the_raw_state(make_agent, make_dataset):
    agent, data = make_agent(), make_dataset()
    count = data.observations.shape[1]
    shifted = ObservationModel('positions', dimensions=tuple(range(2, count + 2)))
    offline_trainer.set_statistics(agent, data, shifted, [2])
    assert agent.encoder.goal_weights[0] == 1
    with pytest.raises(ValueError, match='are not observed'):
        offline_trainer.set_statistics(agent, data, shifted, [0])


def test_a_declared_dimension_must_exist():
    assert offline_trainer.declared_dims('0,3', Declared()) == [0, 3]
    assert offline_trainer.declared_dims('', Declared()) == [3, 1]
    with pytest.raises(ValueError, match='--goal_dims 1,4: there is no dimension 4; .* 0 to 3'):
        offline_trainer.declared_dims('1,4', Declared())


# ---------------------------------------------------------------------------------------------- NaN and far goals
def test_nan_in_a_goal_takes_the_value_of_the_nearest_state(agent):
    known = agent.data_map.known_states
    goal = known[7].copy()
    goal[[1, 3]] = np.nan
    np.testing.assert_array_equal(agent.read_goal(goal), known[7])
    np.testing.assert_array_equal(agent.read_goal(known[7]), known[7])


def test_a_goal_needs_a_number(agent):
    with pytest.raises(ValueError, match='a goal is NaN in all observed dimensions'):
        agent.read_goal(np.full(5, np.nan, np.float32))


def test_a_goal_far_outside_the_data_is_reported_once(agent, capsys):
    known = agent.data_map.known_states
    dim = int(agent.encoder.goal_weights.argmax())
    inside, outside = known[3].copy(), known[3].copy()
    inside[dim] = known[:, dim].max() + 0.5 * np.ptp(known[:, dim])
    outside[dim] = known[:, dim].max() + 1.5 * np.ptp(known[:, dim])
    agent.read_goal(inside)
    assert capsys.readouterr().err == ''
    agent.read_goal(outside)
    agent.read_goal(outside + 1)
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and f'a goal lies far outside the data: dimension {dim} is ' in error


def test_episodes_have_goals_without_nan(agent):
    class Partial(gymnasium.Env):
        observation_space, action_space = Box(-1, 1, (5,)), Box(-1, 1, (3,))

        def reset(self, seed=None, options=None):
            return np.zeros(5, np.float32), {'goal': np.array([np.nan, 1, 2, np.nan, 3])}

        def step(self, action):
            return np.zeros(5, np.float32), 0.0, False, True, {'success': False}

    envs = open_envs('', 2, lambda _: Partial())
    for episode in run_episodes(envs, [(1, 0), (1, 1)], agent):
        assert np.isfinite(episode.goal).all() and episode.goal[[1, 2, 4]].tolist() == [1, 2, 3]
