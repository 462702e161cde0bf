"""What the policy sees in a task, and how imitation is weighted."""

import dataclasses

import numpy as np
import pytest
import torch

from tasks import STUCK_TRANSITIONS, Staying, StuckNoise, _deviation, saturate

DIM = 5


def features_of(agent, states):
    return agent.encoder.goal_features(states)


def test_locomotion_inputs_are_unit_directions_beyond_reach(make_online):
    """There the distance to a subgoal is not an input: the policy moves at full speed."""
    agent = make_online(stay='yes')
    states, ahead = torch.randn(6, DIM), torch.randn(6, DIM)
    ahead *= 2 * agent.task.reach / ahead.norm(dim=-1, keepdim=True)
    here = features_of(agent, states)
    normalized, direction, goal_direction = agent.task.inputs(states, here + ahead, here)
    torch.testing.assert_close(normalized, (states - agent.encoder.mean) / agent.encoder.std)
    torch.testing.assert_close(direction, ahead / ahead.norm(dim=-1, keepdim=True), rtol=1e-3, atol=1e-4)
    assert not goal_direction.any(), 'at the goal there is no direction'


def test_locomotion_inputs_shrink_to_zero_within_reach(make_online):
    """A policy that sees how near its goal is can stop there."""
    agent = make_online(stay='yes')
    states, ahead = torch.randn(6, DIM), torch.randn(6, DIM)
    ahead *= 0.1 * agent.task.reach / ahead.norm(dim=-1, keepdim=True)
    here = features_of(agent, states)
    _, near, half = agent.task.inputs(states, here + ahead, here + ahead / 2)
    torch.testing.assert_close(near.norm(dim=-1), torch.full((6,), 0.1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(half, near / 2, rtol=1e-3, atol=1e-4)


def test_no_reach_leaves_unit_directions(make_online):
    agent = make_online(stay='no')
    assert agent.task.reach == agent.planner.first.reach == 0
    displacements = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(saturate(displacements, 0.0), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_reach_is_the_displacement_in_a_hop(make_online):
    graph = make_online().data_map
    edges = np.linalg.norm(graph.centers[graph.targets] - graph.centers[graph.sources], axis=1)
    agent = make_online(stay='yes')
    assert agent.task.reach == pytest.approx(np.median(edges)) and edges.min() > 0
    assert agent.planner.first.reach == agent.task.reach


def test_staying_weighs_steps_by_the_progress_that_is_due(make_online, batches):
    """A robot that keeps its pace, brakes early or stays weighs 1 before the mean; one that waits or leaves 0."""
    agent = make_online(stay='yes', progress_steps=5)
    assert isinstance(agent.task, Staying) and agent.task.weighs_progress and not agent.task.has_baseline
    steps = 10
    rows = {  # displacement to the subgoal, in hops, and the share of it that is made in 5 of 10 steps
        'pace': (2.0, 0.5), 'brakes': (2.0, 0.9), 'passes': (2.0, 1.5), 'waits': (2.0, 0.0), 'leaves': (2.0, -0.5),
        'half': (2.0, 0.25), 'most': (2.0, 0.447), 'stays': (0.0, 0.0)}
    n = len(rows)
    length, share = torch.tensor(list(rows.values())).T
    std = agent.encoder.std / agent.encoder.goal_weights.clamp(min=1e-3)
    heaviest = int(agent.encoder.goal_weights.argmax())
    step = torch.zeros(n, DIM)
    step[:, heaviest] = length * agent.task.reach * std[heaviest]
    states = agent.encoder.mean.expand(n, DIM)
    batch = dataclasses.replace(batches.sample(np.random.default_rng(0)), states=states, subgoal_states=states + step,
                                progress_states=states + share[:, None] * step,
                                steps_to_subgoal=torch.full((n,), float(steps)))
    weights = agent.task.weights(batch, None)
    assert weights.mean().item() == pytest.approx(1, rel=1e-5)
    shares = dict(zip(rows, (weights / weights.max()).tolist(), strict=True))
    assert [shares[name] for name in ('pace', 'brakes', 'passes', 'stays')] == pytest.approx([1] * 4)
    assert shares['waits'] == shares['leaves'] == shares['half'] == 0
    assert shares['most'] == pytest.approx((0.9 - 0.7) / 0.3, abs=0.02)


def test_staying_trains_no_baseline(make_online, make_batches):
    agent = make_online(stay='yes')
    info = agent.total_loss(make_batches(agent).sample(np.random.default_rng(0)))[1]
    assert 'baseline_loss' not in info and np.isfinite(info['inverse_dynamics_loss'].item())
    assert make_online(stay='no').task.has_baseline


def test_direction_products_multiply_states_and_directions(make_agent, make_online):
    agent = make_online(direction_products=True)
    dims = agent.offline.position_dims().tolist()
    states, ahead = torch.randn(6, DIM), torch.randn(6, DIM)
    here = features_of(agent, states)
    normalized, direction, _, products = agent.task.inputs(states, here + ahead, here)
    for i in range(DIM):
        for j, dim in enumerate(dims):
            torch.testing.assert_close(products[:, i * len(dims) + j], normalized[:, i] * direction[:, dim])

    with pytest.raises(ValueError, match='--direction_products: the offline run has no position dimensions'):
        make_online(offline=make_agent(slow_goals=False), direction_products=True)


def test_position_dims_are_those_with_large_goal_weights(agent, make_agent):
    agent.encoder.goal_weights.zero_()
    agent.encoder.goal_weights[:3] = torch.tensor([0.7, 0.3, 1.0])
    assert agent.offline.position_dims().tolist() == [2, 0], 'the heaviest first'
    assert len(make_agent(slow_goals=False).position_dims()) == 0


def test_locomotion_weights_are_exponential_in_progress_beyond_the_baseline(make_online, make_batches, stub):
    """min(exp(temperature * advantage in standard deviations), 100) over its mean."""
    agent = make_online(progress_steps=3, progress_temperature=2.5)
    batches = make_batches(agent)
    batch = batches.offline_steps.draw(batches.size, np.random.default_rng(0))
    agent.nets['inverse_dynamics'] = stub(lambda latent, state, ahead, goal: (ahead + 2 * goal)[:, :3])
    usual = agent._baseline(batch, agent.ema_nets)
    agent.nets['baseline'].load_state_dict(agent.ema_nets['baseline'].state_dict())
    info = agent.total_loss(batch)[1]

    data, rows = batches.offline_store.dataset, batch.rows.numpy()
    later = torch.from_numpy(data.observations[np.minimum(rows + 3, data.end_of[rows])])
    now = features_of(agent, batch.states)
    ahead, later, goal = (features_of(agent, x) - now for x in (batch.subgoal_states, later, batch.goal_states))
    direction = ahead / ahead.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    inputs = saturate(ahead, agent.task.reach) + 2 * saturate(goal, agent.task.reach)
    error = (inputs[:, :3] - batch.actions).square().mean(-1)
    assert info['inverse_dynamics_error'] == pytest.approx(error.mean().item(), rel=1e-4)

    progress = (direction * later).sum(-1)
    progress = progress / progress.std()
    baseline_loss = agent.baseline_loss(batch)[0].item()
    assert baseline_loss == pytest.approx((usual - progress).square().mean().item(), rel=1e-3)
    assert info['baseline_loss'] == agent.baseline_loss(batch.first(len(rows) // 4))[0], 'a quarter is enough'
    beyond = progress - usual
    weight = (2.5 * (beyond - beyond.mean()) / beyond.std()).exp().clamp(max=100)
    assert weight.min() < 0.1 and weight.max() > 10
    expected = (weight * error).sum().item() / weight.sum().item()
    assert info['inverse_dynamics_loss'].item() == pytest.approx(expected, rel=1e-3)


def test_a_single_step_has_no_deviation(agent, batches):
    batch = batches.sample(np.random.default_rng(0))
    one = dataclasses.replace(batch, **{name: getattr(batch, name)[:1]
                                        for name in ('states', 'subgoal_states', 'progress_states')})
    assert agent.task.weights(one, torch.zeros(1)).item() == 1
    assert _deviation(torch.zeros(1)) > 0


def test_progress_is_compared_with_the_usual_progress_of_a_state(make_online, make_batches):
    """Half of the states lie on the ground, where progress is impossible; of the others some walk and some wait."""
    agent = make_online(progress_steps=3, lr=0.01, ema_rate=1.0)
    batch = make_batches(agent).sample(np.random.default_rng(0))
    n = 300
    lies = torch.arange(n) < n // 2
    waits = ~lies & (torch.arange(n) % 3 == 0)
    states = torch.zeros(n, DIM)
    states[:, 1] = torch.where(lies, -1.0, 1.0)
    step = torch.zeros(n, DIM)
    step[:, 0] = torch.where(lies | waits, 0.01, 1.0)
    batch = dataclasses.replace(batch, states=states, progress_states=states + step, subgoal_states=states + 2 * step)

    for _ in range(300):
        loss, _ = agent.baseline_loss(batch)
        agent.optimizer.zero_grad()
        loss.backward()
        agent.optimizer.step()
    weights = agent.task.weights(batch, agent._baseline(batch, agent.nets).detach())
    walking, waiting, lying = (weights[rows].mean().item() for rows in (~lies & ~waits, waits, lies))
    assert walking > 3 * lying > 9 * waiting


def test_without_progress_steps_all_steps_weigh_the_same(make_online, make_batches):
    agent = make_online(progress_steps=0)
    info = agent.total_loss(make_batches(agent).sample(np.random.default_rng(0)))[1]
    assert info['inverse_dynamics_loss'].item() == pytest.approx(info['inverse_dynamics_error'].item(), rel=1e-6)
    assert 'baseline_loss' not in info


# ----------------------------------------------------------------------------------------------- stuck noise
@pytest.fixture
def stuck_noise(make_online):
    """Noise of std 0.5 within a ball of radius 0.2 of the goal features."""
    encoder = make_online().encoder
    encoder.set_statistics(np.zeros(DIM), np.ones(DIM), np.eye(DIM)[0])
    return StuckNoise(encoder, np.array([0]), 25, 0.2, 0.5)


def at(*positions):
    states = np.zeros((len(positions), DIM), np.float32)
    states[:, 0] = positions
    return states


def test_stuck_noise_counts_the_steps_within_a_ball(stuck_noise):
    state = stuck_noise.initial_state(2)
    far = torch.from_numpy(at(9.0, 9.0))
    steps = []
    for positions in ([0.0, 0.0], [0.1, 2.0], [0.1, 4.0], [-0.1, 4.1], [0.3, 4.1]):
        states = at(*positions)
        _, state = stuck_noise.step(np.zeros((2, 3)), states, torch.from_numpy(states), far, state)
        steps.append(state.steps.tolist())
    assert steps == [[0, 0], [1, 0], [2, 0], [3, 1], [0, 2]]

    state = stuck_noise.reset(state, np.array([False, True]))
    states = at(0.3, 4.1)
    assert stuck_noise.step(np.zeros((2, 3)), states, torch.from_numpy(states), far, state)[1].steps.tolist() == [1, 0]


def test_a_robot_at_its_goal_is_not_stuck(stuck_noise):
    state = stuck_noise.initial_state(2)
    states, goals = (torch.from_numpy(at(*positions)) for positions in ([0.0, 0.0], [0.1, 0.3]))
    for _ in range(40):
        actions, state = stuck_noise.step(np.zeros((2, 3)), states.numpy(), states, goals, state)
    assert not actions[0].any() and actions[1].all()


def test_stuck_noise_applies_after_the_threshold(make_online, make_dataset):
    """The action of a robot that lies still repeats for a while, then changes at every step. A robot that moves, or
    whose episode begins anew, acts as without noise."""
    data = make_dataset((60, 60, 60))
    agents = [make_online(data=data, stuck_noise=noise) for noise in (0.5, 0.0)]
    states = [agent.initial_state(3) for agent in agents]
    goals = data.observations[[59, 59, 59]]

    first = STUCK_TRANSITIONS * agents[0].offline.config.transition_steps
    noise = []
    for t in range(2 * first + 10):
        if t == first + 10:
            states = [agent.reset_state(state, np.array([False, False, True]))
                      for agent, state in zip(agents, states, strict=True)]
        observations = data.observations[[0, t % 2 * 30, 0]]  # the second robot moves to and fro
        acted = []
        for i, agent in enumerate(agents):
            actions, states[i] = agent.act(observations, goals, states[i])
            acted.append(actions)
        noise.append(acted[0] - acted[1])
    noise = np.stack(noise)

    noise[np.abs(noise) < 1e-6] = 0  # rounding of rows in a batch
    assert not noise[:first].any() and not noise[:, 1].any()
    assert noise[first:, 0].any(1).all() and 0.2 < noise[first:, 0].std() < 0.6
    assert not noise[first + 10:, 2].any()
    both = noise[first:first + 10]
    np.testing.assert_allclose(both[:, 0], both[:, 2], atol=1e-6, err_msg='observation and step determine the noise')
