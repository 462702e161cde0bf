"""Acting, the policy's updates and checkpoints of the online half."""

import copy

import numpy as np
import pytest
import shrink_checkpoint
import torch

from online_agent import OnlineAgent
from support.files import load_checkpoint, save_checkpoint
from tasks import build_map

DIM, ACTION_DIM, D = 5, 3, 32


@pytest.fixture
def batch(batches):
    return batches.sample(np.random.default_rng(0))


@pytest.fixture
def make_watched(make_online, stub):
    """make_watched(data) -> an agent whose action is 0.01 of the subgoal's goal features."""

    def make(data=None):
        agent = make_online(action_dim=DIM, data=data)
        agent.task.inputs = lambda states, subgoals, goals: [subgoals, goals]
        agent.ema_nets['inverse_dynamics'] = stub(lambda latent, subgoals, goals: 0.01 * subgoals)
        agent.ema_nets['feature_decoder'] = stub(lambda z: z[:, :DIM])
        agent.planner = agent._make_planner()  # with that decoder
        return agent

    return make


def snapshot(agent):
    return copy.deepcopy({
        'nets': agent.nets.state_dict(), 'ema_nets': agent.ema_nets.state_dict(),
        'offline': agent.offline.nets.state_dict(), 'step': agent.step,
        'targets': agent.offline.targets.state_dict(), 'optimizer': agent.optimizer.state_dict()})


def act(agent, observations, goals, state=None, **options):
    """Act once, from the initial state unless another is given -> (actions, state)."""
    state = state or agent.initial_state(len(observations))
    return agent.act(observations, goals, state, **options)


# ---------------------------------------------------------------------------------------------------- acting
def test_actions_are_scaled_before_they_are_clipped(make_online, states, stub):
    acted = []
    for scale in (1.0, 0.5):
        agent = make_online(action_scale=scale)
        predicted = torch.tensor([[0.4, -0.6, 3.0]]).expand(4, ACTION_DIM)
        agent.ema_nets['inverse_dynamics'] = stub(lambda *_, predicted=predicted: predicted)
        acted.append(act(agent, states(4), states(4, seed=1))[0])
    np.testing.assert_allclose(acted[0][0], [0.4, -0.6, 1.0], rtol=1e-6)
    np.testing.assert_allclose(acted[1][0], [0.2, -0.3, 1.0], rtol=1e-6)


def test_acting_is_deterministic_without_noise_and_stays_in_the_action_space(agent, states):
    observations, goals = states(50), states(50, seed=1)
    quiet, _ = act(agent, observations, goals)
    again, _ = act(agent, observations, goals)
    assert quiet.shape == (50, ACTION_DIM) and quiet.dtype == np.float32
    assert np.array_equal(quiet, again)

    runs = [act(agent, observations, goals, noise=0.3, rng=np.random.default_rng(seed))[0] for seed in (1, 1, 2)]
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])
    inside = np.abs(runs[0]) < 1
    assert 0.2 < (runs[0] - quiet)[inside].std() < 0.35
    loud, _ = act(agent, observations, goals, noise=5.0, rng=np.random.default_rng(0))
    assert loud.dtype == np.float32 and loud.min() == -1 and loud.max() == 1


def test_the_policy_reads_the_latent_of_the_present_state(make_online, states, stub):
    """Acting encodes each state as training does, at every step of an episode."""
    agent = make_online(action_dim=D)
    agent.ema_nets['inverse_dynamics'] = stub(lambda latent, *_: 0.01 * latent)
    episode, goals = states(40), states(1, seed=2)
    state = agent.initial_state(1)
    for t in range(40):
        actions, state = agent.act(episode[t:t + 1], goals, state)
        expected = agent.encoder(torch.from_numpy(episode[None, t:t + 1]))[0, -1].detach()
        torch.testing.assert_close(torch.from_numpy(100 * actions[0]), expected, rtol=1e-4, atol=1e-4)


def test_the_explorer_biases_subgoals(make_watched, make_dataset):
    data = make_dataset((60, 60, 60))
    agent = make_watched(data)
    observations, goals = data.observations[np.zeros(40, int)], data.observations[np.full(40, 59)]
    plain, _ = act(agent, observations, goals)
    explorer = agent.explorer(0.5, np.random.default_rng(0))
    actions, _ = act(agent, observations, goals, planner=explorer)
    assert 5 < explorer.biased.sum() < 35
    np.testing.assert_array_equal(np.any(actions != plain, 1), explorer.biased)


@pytest.mark.parametrize('low, high', [(-1, 1), (-0.4, 0.4), ([0, -2, 1], [1, 2, 5])])
def test_actions_have_the_bounds_of_the_action_space(make_online, states, low, high):
    """The same networks in other units: -1 to 1 inside is low to high outside."""
    low, high = (np.broadcast_to(np.float32(bound), ACTION_DIM) for bound in (low, high))
    unit = make_online()
    agent = OnlineAgent(unit.offline, low, high, unit.config, unit.data_map)
    agent.load_state_dict(unit.state_dict())
    observations, goals = states(200), states(200, seed=1)

    def noisy(agent):
        return act(agent, observations, goals, noise=2.0, rng=np.random.default_rng(0))[0]

    actions = noisy(agent)
    np.testing.assert_allclose(actions, (high + low) / 2 + (high - low) / 2 * noisy(unit), rtol=1e-5, atol=1e-6)
    assert (actions >= low).all() and (actions <= high).all()
    assert (actions == low).any(0).all() and (actions == high).any(0).all()
    np.testing.assert_allclose(agent.normalize_actions(actions), noisy(unit), atol=1e-5)
    assert np.array_equal(noisy(OnlineAgent.from_state_dict(agent.state_dict())), actions)


@pytest.mark.parametrize('high', [[1, np.inf, 1], [1, -1, 1]])
def test_action_spaces_without_bounds_are_refused(make_online, high):
    unit = make_online()
    with pytest.raises(ValueError, match='finite bounds'):
        OnlineAgent(unit.offline, -np.ones(ACTION_DIM), np.array(high), unit.config, unit.data_map)


# ----------------------------------------------------------------------------------------------------- plans
def subgoal_actions(agent, targets):
    """What `make_watched` does for subgoals at the states `targets` (B, S)."""
    return np.clip(0.01 * agent.encoder.goal_features(torch.from_numpy(targets)).numpy(), -1, 1)


def test_waypoint_steps_set_the_hop_of_the_graph(make_online, make_dataset):
    data = make_dataset((60, 60, 60))
    agent = make_online(data=data, waypoint_steps=20)
    assert agent.data_map.hop == 20

    agent.config.waypoint_steps = 60
    with pytest.raises(ValueError, match='--waypoint_steps 60: the longest trajectory of the data has 59 steps'):
        build_map(agent.offline, agent.config, data)


def test_subgoals_of_a_plan_are_the_next_nodes(make_watched, make_dataset):
    data = make_dataset((60, 60, 60))
    agent = make_watched(data)
    planner = agent.planner.first
    observations, goals = data.observations[[0, 60]], data.observations[[59, 119]]
    route = planner.routes(goals)[np.arange(2), planner.locate(observations)]
    assert (route >= 0).all(), 'a trajectory leads from its start to its end'

    actions, state = act(agent, observations, goals)
    np.testing.assert_allclose(actions, subgoal_actions(agent, agent.data_map.states[route]), rtol=1e-4, atol=1e-5)
    again, _ = agent.act(observations, goals, state)  # with the routes of the step before
    assert np.array_equal(again, actions)


def test_a_goal_of_zeros_gets_a_plan(make_watched, make_dataset):
    """Zeros are a goal like any other, in the first step as well."""
    data = make_dataset((60, 60, 60))
    data.observations -= data.observations[59]  # the goal is all zeros
    agent = make_watched(data)
    actions, _ = act(agent, data.observations[[30]], np.zeros((1, DIM), np.float32))
    planner = agent.planner.first
    route = planner.routes(np.zeros((1, DIM), np.float32))[0, planner.locate(data.observations[[30]])]
    np.testing.assert_allclose(actions, subgoal_actions(agent, agent.data_map.states[route]), rtol=1e-4, atol=1e-5)


def test_a_goal_changed_within_an_episode_is_followed(make_watched, make_dataset):
    data = make_dataset((60, 60, 60))
    agent = make_watched(data)
    goals = data.observations[[59, 59]].copy()
    observations = data.observations[[20, 20]]
    _, state = act(agent, observations, goals)
    goals[1] = data.observations[22]  # in the caller's array, as the environments' loop does
    actions, _ = agent.act(observations, goals, state)
    fresh, _ = act(agent, observations, goals)
    assert np.array_equal(actions, fresh) and (actions[0] != actions[1]).any()


def test_a_plan_ends_at_the_goal_itself(make_watched, make_dataset):
    data = make_dataset((60, 60, 60))
    agent = make_watched(data)
    observations = data.observations[[30, 90]]
    goals = observations + np.float32(1e-3)
    np.testing.assert_allclose(act(agent, observations, goals)[0], subgoal_actions(agent, goals), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('where', ['no way', 'state off the graph', 'goal off the graph', 'switched off'])
def test_the_proposer_stands_in_without_a_path(make_watched, make_dataset, where):
    data = make_dataset((60, 60, 60))
    agent = make_watched(data)
    observations, goals = data.observations[[0]], data.observations[[59]]
    if where == 'no way':  # trajectories lead in one direction
        observations, goals = goals, observations
        planner = agent.planner.first
        assert planner.routes(goals)[0][planner.locate(observations)[0]] == -1
    elif where == 'state off the graph':
        observations = observations + 1e4
    elif where == 'goal off the graph':
        goals = goals + 1e4
    else:
        agent.config.plan = False
        agent.planner = agent._make_planner()

    actions, _ = act(agent, observations, goals)
    z, z_goal = (agent.encoder.encode_features(torch.from_numpy(np.float32(a))) for a in (observations, goals))
    proposed = agent.offline.nets['proposer'](z, z_goal).detach()[:, :DIM].numpy()
    np.testing.assert_allclose(actions, np.clip(0.01 * proposed, -1, 1), rtol=1e-4, atol=1e-5)


def test_plan_and_graph_survive_a_checkpoint(make_online, make_dataset, tmp_path):
    data = make_dataset((60, 60, 60))
    agent = make_online(data=data)
    save_checkpoint(tmp_path / 'last.pth', {'kind': 'online', 'dataset': '', 'agent': agent.state_dict()})
    loaded = OnlineAgent.from_state_dict(load_checkpoint(tmp_path / 'last.pth', 'online')['agent'])
    observations, goals = data.observations[[0, 60]], data.observations[[59, 119]]
    assert np.array_equal(*(act(a, observations, goals)[0] for a in (agent, loaded)))


# ------------------------------------------------------------------------------------------------ objectives
def test_the_learning_rate_rises_and_falls(make_online, make_batches, monkeypatch):
    monkeypatch.setattr('online_agent.WARMUP_UPDATES', 2)
    agent, rng = make_online(lr=0.5, lr_decay_updates=8), np.random.default_rng(0)
    batches = make_batches(agent)
    rates = []
    for _ in range(10):
        agent.update(batches.sample(rng))
        rates.append(agent.optimizer.param_groups[0]['lr'])
    cosine = 0.25 + 0.25 * np.cos(np.pi * np.arange(8) / 8)
    assert rates == pytest.approx([0.25, *cosine[1:], 0.005, 0.005])

    loaded = OnlineAgent.from_state_dict(agent.state_dict())
    loaded.step = 4
    loaded.update(batches.sample(rng))
    assert loaded.optimizer.param_groups[0]['lr'] == pytest.approx(0.25)


def test_the_agent_starts_from_the_averaged_networks(make_agent, make_online, make_dataset):
    offline = make_agent(target_rate=0.5)
    offline.update(make_dataset().sample(5, np.random.default_rng(0)))
    averaged = copy.deepcopy(offline.targets.state_dict())
    make_online(offline=offline)
    for name, value in averaged.items():
        assert torch.equal(offline.nets.state_dict()[name], value)


def test_total_loss_is_pure(agent, batch, assert_same):
    agent.update(batch)
    before = snapshot(agent)
    kept = copy.deepcopy(batch)
    rng = torch.get_rng_state()
    first = agent.total_loss(batch)
    second = agent.total_loss(batch)
    first[0].backward()
    assert first[0].item() == second[0].item() == second[1]['total_loss'].item()
    names = {'inverse_dynamics_loss', 'feature_decoder_loss', 'baseline_loss'}
    assert names == {name for name in first[1] if name.endswith('_loss')} - {'total_loss'}
    assert first[0].item() == pytest.approx(sum(first[1][name].item() for name in names), rel=1e-5)
    assert_same(snapshot(agent), before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert_same(vars(batch), vars(kept))


def test_an_update_moves_the_online_networks_and_nothing_else(agent, batches, assert_same):
    rng = np.random.default_rng(0)
    for step in range(3):
        before = snapshot(agent)
        info = agent.update(batches.sample(rng))
        assert agent.step == step + 1 and all(isinstance(value, float) for value in info.values())
        assert_same(agent.offline.nets.state_dict(), before['offline'])
        assert_same(agent.offline.targets.state_dict(), before['targets'])
        for name, parameter in agent.nets.named_parameters():
            assert not torch.equal(parameter, before['nets'][name])
        for name, average in agent.ema_nets.named_parameters():  # averages follow slowly
            new = agent.nets.get_parameter(name)
            torch.testing.assert_close(average, before['ema_nets'][name].lerp(new, agent.config.ema_rate))


@pytest.mark.parametrize('name', ['inverse_dynamics', 'feature_decoder', 'baseline'])
def test_each_net_has_its_own_loss(agent, batch, name):
    agent.total_loss(batch)[1][f'{name}_loss'].backward()
    everything = {**agent.nets, **agent.offline.nets}
    reached = {key for key, net in everything.items()
               if any(p.grad is not None and (p.grad != 0).any() for p in net.parameters())}
    assert reached == {name}


def test_the_policy_imitates_the_labels_of_offline_steps(agent, batches, stub):
    agent.labeler = stub(lambda steps: steps[:, 1, :ACTION_DIM])
    batches.label_data(agent.label)
    batch = batches.offline_steps.draw(batches.size, np.random.default_rng(0))
    data = batches.offline_store.dataset
    after = torch.from_numpy(data.observations[batch.rows + 1])
    torch.testing.assert_close(batch.actions, agent.encoder.normalize(after)[:, :ACTION_DIM])

    agent.nets['inverse_dynamics'] = stub(lambda latent, *_: torch.zeros(len(latent), ACTION_DIM))
    error = agent.total_loss(batch)[1]['inverse_dynamics_error']
    assert error.item() == pytest.approx(batch.actions.square().mean().item(), rel=1e-5)


def test_the_labeler_learns_the_position_dimensions(agent, batches, monkeypatch):
    given = []
    fit = agent.labeler.fit
    monkeypatch.setattr(agent.labeler, 'fit', lambda *args, **options: given.append(options) or fit(*args, **options))
    agent.encoder.goal_weights.zero_()
    agent.encoder.goal_weights[:3] = torch.tensor([0.7, 0.3, 1.0])
    agent.fit_labeler(batches, np.random.default_rng(0))
    assert given[0]['position_dims'].tolist() == [2, 0], 'the heaviest first'
    assert given[0]['small_action_prior'] == 0, 'locomotion has no such prior'


def test_the_labeler_learns_the_directions_of_a_position_that_is_no_dimension(agent, batches, monkeypatch):
    given = []
    monkeypatch.setattr(agent.labeler, 'fit', lambda *args, **options: given.append(options))
    directions = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0)))[0]
    agent.encoder.goal_directions.copy_(directions)
    agent.encoder.goal_weights.zero_()
    agent.encoder.goal_weights[:3] = torch.tensor([0.7, 0.3, 1.0])
    agent.fit_labeler(batches, np.random.default_rng(0))
    assert torch.equal(given[0]['position_directions'], directions[:, [2, 0]])
    assert 'position_dims' not in given[0]


def test_true_actions_of_the_data_replace_labels(make_online, make_dataset, make_replay, stub):
    agent, data = make_online(), make_dataset()
    data.actions = np.random.default_rng(0).uniform(-1, 1, (len(data), ACTION_DIM)).astype(np.float32)
    batches = agent.open_batches(data, make_replay((40, 8, 25)))
    batches.label_data(lambda steps: pytest.fail('nothing to infer'))
    batch = batches.offline_steps.draw(batches.size, np.random.default_rng(1))
    agent.nets['inverse_dynamics'] = stub(lambda latent, *_: torch.zeros(len(latent), ACTION_DIM))
    assert np.array_equal(batch.actions, data.actions[batch.rows])
    error = agent.imitation_loss(batch)[1]['inverse_dynamics_error']
    assert error.item() == pytest.approx(np.square(data.actions[batch.rows]).mean(), rel=1e-5)


def test_the_feature_decoder_learns_goal_features(agent, batches):
    optimizer = torch.optim.Adam(agent.nets['feature_decoder'].parameters(), 3e-3)
    rng = np.random.default_rng(0)
    for _ in range(400):
        loss, _ = agent.feature_decoder_loss(batches.sample(rng))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    features = agent.encoder.goal_features(batches.sample(rng).states)
    assert loss.item() < 0.05 * features.var(0).mean().item()


# ----------------------------------------------------------------------------------------------- checkpoints
def test_the_next_update_after_a_checkpoint_is_bitwise_the_same(agent, batches, states, assert_same, tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(3):
        agent.update(batches.sample(rng))
    save_checkpoint(tmp_path / 'last.pth', {'kind': 'online', 'dataset': '', 'agent': agent.state_dict()})
    torch.manual_seed(99)  # fresh networks must not depend on it
    loaded = OnlineAgent.from_state_dict(load_checkpoint(tmp_path / 'last.pth', 'online')['agent'])
    assert loaded.config == agent.config and loaded.step == 3 and loaded.action_dim == ACTION_DIM
    # the next update sets its own learning rate
    loaded.optimizer.param_groups[0]['lr'] = agent.optimizer.param_groups[0]['lr']
    assert_same(snapshot(loaded), snapshot(agent))

    again = loaded.open_batches(batches.offline_store.dataset, batches.online_store.dataset)
    for seed in (1, 2):
        assert_same(agent.update(batches.sample(np.random.default_rng(seed))),
                    loaded.update(again.sample(np.random.default_rng(seed))))
    assert_same(snapshot(loaded), snapshot(agent))
    assert np.array_equal(*(act(a, states(4), states(4, seed=1))[0] for a in (agent, loaded)))


def test_a_shrunk_checkpoint_acts_like_the_whole_one(agent, batches, make_replay, states, tmp_path, monkeypatch):
    small = tmp_path / 'small.pth'
    for seed in range(5):  # networks and their averages differ
        agent.update(batches.sample(np.random.default_rng(seed)))
    save_checkpoint(tmp_path / 'last.pth', {'kind': 'online', 'dataset': 'a', 'data': {'path': '/home/a/data.npz'},
                                            'agent': agent.state_dict(),
                                            'replay': make_replay((40,)).state_dict()})
    monkeypatch.setattr('sys.argv', ['', '--checkpoint', str(tmp_path / 'last.pth'), '--output', str(small)])
    shrink_checkpoint.main()
    assert load_checkpoint(small, 'online')['data']['path'] == 'data.npz', 'no path of a machine'
    loaded = OnlineAgent.from_state_dict(load_checkpoint(small, 'online')['agent'])
    actions = [act(a, states(64), states(64, seed=1))[0] for a in (agent, loaded)]
    np.testing.assert_allclose(*actions, atol=0.01)
    assert actions[0].std() > 0.05
    assert small.stat().st_size < 0.5 * (tmp_path / 'last.pth').stat().st_size


def test_goal_feature_affine_equals_goal_features(make_agent):
    agent = make_agent()
    states = np.random.default_rng(0).standard_normal((5, DIM)).astype(np.float32)
    mean, scale = agent.goal_feature_affine()
    features = agent.encoder.goal_features(torch.from_numpy(states))
    np.testing.assert_allclose((states - mean) @ scale, features.numpy(), rtol=1e-5, atol=1e-6)
