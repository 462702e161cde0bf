"""Declared goal dimensions: of the environment, of a dictionary with an achieved goal, of a flag."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

import offline_trainer
from environments.custom_env import GoalDict, goal_dims_of
from observing.observation_models import FULL_STATE, ObservationModel


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
    assert goal_dims_of(gymnasium.wrappers.TimeLimit(GoalDict(Reacher(), np.array([2, 3])), 10)) == [0, 1]
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
    with pytest.raises(ValueError, match=f'no dimension {count}'):
        offline_trainer.set_statistics(agent, data, FULL_STATE, [count])
