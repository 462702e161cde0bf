"""Planners that any agent can have: proposals, fallback, goal-biased exploration."""

import numpy as np
import pytest
import torch

from planning.planners import FallbackPlanner, GoalBiased, ProposerPlanner, Subgoals

DIM = 5


@pytest.fixture
def decoder(stub):
    """Decodes the first dimensions of a latent as goal features."""
    return stub(lambda z: z[..., :DIM])


@pytest.fixture
def proposer(agent, decoder):
    return ProposerPlanner(agent.encoder, agent.offline.nets['proposer'], decoder)


class PartialPlanner:
    """Has an answer, zeros, for the rows of `found`; retreats in all of them."""

    def __init__(self, found):
        self.found = np.array(found)
        self.was_reset = None

    def initial_state(self, batch_size):
        return 'first'

    def reset(self, state, rows):
        self.was_reset = rows
        return state

    def step(self, states, goals, state):
        return Subgoals(torch.zeros_like(states), self.found, torch.ones_like(states)), state


def latents(agent, states, goals):
    return agent.encoder.encode_features(states), agent.encoder.encode_features(goals)


@torch.no_grad()
def test_proposer_planner_decodes_the_proposal_of_every_row(agent, proposer, states):
    s, g = torch.from_numpy(states(4)), torch.from_numpy(states(4, seed=1))
    subgoals, _ = proposer.step(s, g, proposer.initial_state(4))
    expected = agent.offline.nets['proposer'](*latents(agent, s, g))[:, :DIM]
    torch.testing.assert_close(subgoals.features, expected)
    assert subgoals.found.all() and subgoals.retreat.isnan().all()


@torch.no_grad()
def test_fallback_planner_asks_the_second_planner_for_missing_rows_only(proposer, states):
    s, g = torch.from_numpy(states(3)), torch.from_numpy(states(3, seed=1))
    first = PartialPlanner([True, False, True])
    planner = FallbackPlanner(first, proposer)
    subgoals, state = planner.step(s, g, planner.initial_state(3))
    proposed, _ = proposer.step(s, g, None)
    assert not subgoals.features[[0, 2]].any() and subgoals.found.all()
    assert torch.equal(subgoals.features[1], proposed.features[1])
    assert subgoals.retreat[[0, 2]].eq(1).all() and subgoals.retreat[1].isnan().all()
    assert state[0] == 'first'
    planner.reset(state, np.array([True, False, False]))
    assert first.was_reset.tolist() == [True, False, False]


@torch.no_grad()
def test_fallback_planner_leaves_the_second_planner_alone_without_missing_rows(states):
    s = torch.from_numpy(states(2))
    planner = FallbackPlanner(PartialPlanner([True, True]), None)
    subgoals, _ = planner.step(s, s, ('first', None))
    assert not subgoals.features.any()


@torch.no_grad()
def test_goal_biased_subgoals_lie_on_the_line_to_the_goal(agent, proposer, decoder, states):
    s, g = torch.from_numpy(states(500)), torch.from_numpy(states(500, seed=1))
    z, z_goal = (x[:, :DIM] for x in latents(agent, s, g))
    explorer = GoalBiased(proposer, agent.encoder, decoder, 1.0, np.random.default_rng(0))
    subgoals, _ = explorer.step(s, g, explorer.initial_state(500))
    alpha = ((subgoals.features - z) * (z_goal - z)).sum(-1) / (z_goal - z).square().sum(-1)
    torch.testing.assert_close(subgoals.features, z + alpha[:, None] * (z_goal - z), rtol=1e-4, atol=1e-5)
    assert 0.2 - 1e-4 < alpha.min() < 0.22 and 0.98 < alpha.max() < 1 + 1e-4
    assert explorer.biased.shape == (500,) and explorer.biased.all()


@torch.no_grad()
def test_goal_biased_exploration_replaces_a_share_of_rows(proposer, agent, decoder, states):
    s, g = torch.from_numpy(states(500)), torch.from_numpy(states(500, seed=1))
    plain, _ = proposer.step(s, g, None)
    explorer = GoalBiased(proposer, agent.encoder, decoder, 0.3, np.random.default_rng(0))
    subgoals, _ = explorer.step(s, g, None)
    assert 0.22 < explorer.biased.mean() < 0.38
    changed = (subgoals.features != plain.features).any(1).numpy()
    assert np.array_equal(changed, explorer.biased)


@torch.no_grad()
def test_goal_biased_exploration_without_epsilon_draws_nothing(proposer, agent, decoder, states):
    s = torch.from_numpy(states(5))
    explorer = GoalBiased(proposer, agent.encoder, decoder, 0.0, None)
    subgoals, _ = explorer.step(s, s, None)
    assert torch.equal(subgoals.features, proposer.step(s, s, None)[0].features)
    assert not explorer.biased.any()
