"""Zeros: states, goals and actions that are exactly zero are values like all others."""

import gymnasium
import numpy as np
import pytest
import torch
import toy_objects
from gymnasium.spaces import Box

from labeling.labeler import Labeler
from observing.state_estimator import EncoderPrediction, find_received
from planning.graph_planner import NO_PATH
from rollouts import run_episodes
from trajectories import ReplayBuffer

ZEROS = np.zeros((2, 5), np.float32)


class Home(gymnasium.Env):
    """A robot that rests at zero, which is its goal."""

    observation_space = Box(-1, 1, (3,))
    action_space = Box(-1.0, 1.0, (2,))

    def reset(self, seed=None, options=None):
        self.steps = 0
        return np.zeros(3, np.float32), {'goal': np.zeros(3, np.float32)}

    def step(self, action):
        self.steps += 1
        return np.zeros(3, np.float32), 0.0, False, self.steps == 3, {'success': True}


@pytest.fixture
def agent_at_zero(make_online, make_dataset):
    """An agent whose data contain a state of zeros."""
    data = make_dataset()
    data.observations -= data.observations[20]
    return make_online(data=data)


@pytest.mark.parametrize('explores', [False, True])
def test_a_goal_of_zeros_gets_a_route(agent_at_zero, explores):
    agent = agent_at_zero
    planner = agent.explorer(0.0, np.random.default_rng(0)) if explores else None
    _, state = agent.act(ZEROS, ZEROS, agent.initial_state(2), planner=planner)
    graph_planner = agent.planner.first
    assert graph_planner.locate(ZEROS).min() >= 0
    assert np.array_equal(state.plan[0].routes, graph_planner.routes(ZEROS))
    assert (state.plan[0].routes != NO_PATH).any() and (state.plan[0].goals == 0).all()


def test_episodes_of_zeros_are_whole(constant_agent):
    episodes = list(run_episodes([Home(), Home()], [(1, 0), (1, 1), (1, 2)], constant_agent([0, 0])))
    assert [episode.length for episode in episodes] == [3, 3, 3]
    assert all((episode.observations == 0).all() and episode.success == 1 and not episode.fault
               for episode in episodes)


@pytest.mark.parametrize('positions', [[0.0, 0, 0, 0], [1e-3, 0, 0, 0], [2.0, 0, 0, 0]])
def test_objects_at_zero_have_not_rested_before_the_first_step(positions):
    data = toy_objects.make(toy_objects.cubes, 8)
    planner = toy_objects.make_planner(data)
    states = torch.from_numpy(toy_objects.with_objects(data, positions)[None])
    goals = torch.zeros_like(states)
    state = planner.initial_state(1)
    rests = []
    for _ in range(3):
        _, state = planner.step(states, goals, state)
        rests.append(int(state.plan.steps_at_rest[0]))
    assert rests == [0, 1, 2]
    assert (planner.reset(state, [True]).plan.steps_at_rest == 0).all()


@pytest.mark.parametrize('value', ['zeros', 'mean'])
def test_first_observation_is_received_whatever_it_is(make_agent, value):
    offline = make_agent()
    offline.has_dropout = True
    estimator = EncoderPrediction(offline)
    first = torch.zeros(2, 5) if value == 'zeros' else offline.encoder.mean.expand(2, 5)
    with torch.no_grad():
        estimated, state = estimator.step(first, estimator.initial_state(2))
        again = estimator.step(first, state)[0]
    assert torch.equal(estimated, first) and not torch.equal(again, first)
    assert find_received(np.zeros((4, 2)), [0, 2]).tolist() == [True, False, True, False]


def test_labels_of_zero_actions_and_zero_states_are_zero():
    labeler = Labeler(3, 2)
    rng = np.random.default_rng(0)
    assert labeler.fit(torch.zeros(40, 2, 3), torch.zeros(40, 2), rng, kernel_updates=3) == pytest.approx(1)
    assert labeler.is_fitted and (labeler(torch.randn(5, 2, 3)) == 0).all()


def test_replay_keeps_episodes_of_zeros():
    replay = ReplayBuffer(3, 2, capacity=20, context_length=4)
    for _ in range(3):
        replay.add(np.zeros((6, 3), np.float32), np.zeros((5, 2), np.float32))
    assert len(replay) == 18 and len(replay.transition_rows) == 15
    assert replay.add(np.zeros((6, 3), np.float32), np.zeros((5, 2), np.float32)) == 6
    restored = ReplayBuffer(3, 2, capacity=20, context_length=4)
    restored.load_state_dict(replay.state_dict())
    assert len(restored) == 18 and (restored.observations == 0).all()
