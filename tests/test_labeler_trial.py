"""Does the labeler's trial tell whether places matter for what actions do?"""

import dataclasses

import numpy as np
import pytest
import torch

from labeler_trial import LabelerTrial, try_labeler
from online_agent import OnlineAgent
from trajectories import ReplayBuffer

DIM, ACTION_DIM = 5, 3
SLOW = [1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.fixture
def make_robot(make_online, make_config):
    """make_robot(moves) -> (OnlineAgent, LatentStore of 20 episodes). moves(place (2,), action (3,)) -> displacement
    (2,), where place 0 and 1 are the slow dimensions of the states and the others are noise."""

    def make(moves, episodes=20, length=40):
        rng = np.random.default_rng(0)
        agent = make_online(labeler_dropout=0.0)
        agent.encoder.slowness.copy_(torch.tensor(SLOW))
        agent.encoder.std.fill_(1.0)

        replay = ReplayBuffer(DIM, ACTION_DIM, 10_000, **make_config().sampling())
        for _ in range(episodes):
            observations = rng.standard_normal((length + 1, DIM)).astype(np.float32)
            observations[0, :2] = rng.uniform(-3, 3, 2)
            actions = rng.uniform(-1, 1, (length, ACTION_DIM)).astype(np.float32)
            for t, action in enumerate(actions):
                observations[t + 1, :2] = observations[t, :2] + moves(observations[t, :2], action)
            replay.add(observations, actions)
        return agent, agent.latent_store(replay, cached=False)

    return make


def same_everywhere(place, action):
    return action[:2]


def turned(place, action):
    """Which way an action leads depends on the second slow number, as on where a car points to."""
    return np.sign(place[1]) * action[:2]


def test_places_are_seen_where_physics_depends_on_them(make_robot):
    agent, store = make_robot(turned)
    trial = agent.prepare_labeler(store, updates=600, seed=0)
    assert trial.places_help and agent.labeler_sees_places
    assert trial.error_without - trial.error_with_places > 0.1
    assert str(trial).startswith('the labeler sees where the robot is')


def test_places_are_not_seen_where_it_does_not(make_robot):
    agent, store = make_robot(same_everywhere)
    trial = agent.prepare_labeler(store, updates=300, seed=0)
    assert not trial.places_help and not agent.labeler_sees_places
    assert str(trial).startswith('the labeler does not see')

    loaded = OnlineAgent.from_state_dict(agent.state_dict())
    steps = store.steps(store.whole_steps[:8], 0)
    assert torch.equal(loaded.label(steps), agent.label(steps))
    elsewhere = steps + torch.tensor([50.0, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(agent.label(elsewhere), agent.label(steps), rtol=1e-3, atol=1e-4)


def test_a_trial_changes_nothing_but_the_decision(make_robot):
    agent, store = make_robot(same_everywhere)
    before = {key: value.clone() for key, value in agent.trained.state_dict().items()}
    random_state = torch.get_rng_state()
    first = try_labeler(agent, store, updates=5, seed=0)
    assert try_labeler(agent, store, updates=5, seed=0) == first
    assert try_labeler(agent, store, updates=5, seed=1) != first
    assert torch.equal(torch.get_rng_state(), random_state)
    for key, value in agent.trained.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize('flag', [True, False])
def test_the_flag_needs_no_trial(make_robot, flag):
    agent, store = make_robot(turned)
    config = dataclasses.replace(agent.config, labeler_places=flag)
    agent = OnlineAgent(agent.offline, agent.action_low, agent.action_high, config)
    assert agent.prepare_labeler(store, updates=5, seed=0) is None
    assert agent.labeler_sees_places == flag


def test_all_places_are_seen_without_slow_goals(make_robot):
    agent, store = make_robot(same_everywhere)
    agent.offline.config.slow_goals = False
    assert agent.prepare_labeler(store, updates=5, seed=0) is None and agent.labeler_sees_places


def test_without_updates_or_steps_elsewhere_places_are_seen(make_robot):
    agent, store = make_robot(same_everywhere)
    assert agent.prepare_labeler(store, updates=0, seed=0) is None and agent.labeler_sees_places
    store.dataset.observations[:, :2] = 1.0  # the slowest number never varies
    assert agent.prepare_labeler(store, updates=5, seed=0) is None and agent.labeler_sees_places


def test_a_checkpoint_from_before_there_were_trials_sees_what_its_flag_says(make_online):
    for flag in True, False:
        agent = make_online(labeler_places=flag)
        state = agent.state_dict()
        del state['labeler_sees_places']
        assert OnlineAgent.from_state_dict(state).labeler_sees_places == flag


def test_the_lower_error_decides():
    assert LabelerTrial(0.2, 0.3).places_help
    assert not LabelerTrial(0.3, 0.3).places_help, 'where both are as good, less is seen'
