"""Acting, the two inverse dynamics, batches and checkpoints of the online half."""

import copy

import numpy as np
import pytest
import shrink_checkpoint
import torch

from latents import LatentStore
from model import InverseDynamics
from online_agent import OnlineAgent
from support.files import load_checkpoint, save_checkpoint
from trajectories import TrajectoryDataset

DIM, ACTION_DIM, CONTEXT, STEPS, D = 5, 3, 12, 4, 32


@pytest.fixture(params=[True, False], ids=['values', 'no_values'])
def batch(agent, stores, request):
    """A batch for each kind of update."""
    agent.step = 0 if request.param else 1
    batch = agent.sample(*stores, np.random.default_rng(0))
    assert batch['train_values'] is request.param
    return batch


@pytest.fixture
def make_watched(make_online, make_agent, stub):
    """An agent whose action is 0.1 of what the inverse dynamics reads: `which` is 0 for z, 1 for z' and 2 for
    z_g. V's embedding is z itself, so that nothing is lost on the way."""

    def make(which, memory='state'):
        agent = make_online(action_dim=D, offline=make_agent(head_memory=memory))
        embed_as_is(agent, stub)
        agent.infer_action = lambda z, e_z, e_next, e_goal: 0.1 * (z, e_next[0], e_goal[0])[which]
        return agent

    return make


def embed_as_is(agent, stub):
    """One target embedding, which keeps all of z."""
    agent.offline.targets['value'] = stub(None)
    agent.offline.targets['value'].embed = lambda z: z.unsqueeze(0)


def snapshot(agent):
    return copy.deepcopy({
        'nets': agent.nets.state_dict(), 'averaged': agent.averaged.state_dict(),
        'offline': agent.offline.nets.state_dict(), 'step': agent.step,
        'targets': agent.offline.targets.state_dict(), 'optimizer': agent.optimizer.state_dict()})


# ---------------------------------------------------------------------------------------------------- acting
def test_goal_biased_proposals(agent):
    z, z_goal = torch.randn(500, D), torch.randn(500, D)
    z_next, biased = agent.propose(z, z_goal, epsilon=1.0, rng=np.random.default_rng(0))
    alpha = ((z_next - z) * (z_goal - z)).sum(-1) / (z_goal - z).square().sum(-1)
    torch.testing.assert_close(z_next, z + alpha[:, None] * (z_goal - z), rtol=1e-4, atol=1e-5)
    assert 0.2 - 1e-5 < alpha.min() < 0.22 and 0.98 < alpha.max() < 1 + 1e-5
    assert biased.shape == (500,) and biased.all()


def test_proposals_without_and_with_some_epsilon(agent):
    z, z_goal = torch.randn(500, D), torch.randn(500, D)
    with torch.no_grad():
        proposed = agent.averaged['proposer'](z, z_goal)
        z_next, biased = agent.propose(z, z_goal)
        assert torch.equal(z_next, proposed) and not biased.any()
        z_next, biased = agent.propose(z, z_goal, epsilon=0.3, rng=np.random.default_rng(0))
    assert 0.22 < biased.mean() < 0.38
    assert np.array_equal((z_next != proposed).all(1).numpy(), biased)
    assert torch.equal(z_next[~torch.from_numpy(biased)], proposed[~torch.from_numpy(biased)])


def test_acting_is_deterministic_unless_asked_and_stays_in_the_action_space(agent, states):
    observations, goals = states(50), states(50, seed=1)
    state = agent.initial_state(50)
    quiet, _ = agent.act(observations, goals, state)
    again, _ = agent.act(observations, goals, state)
    assert quiet.shape == (50, ACTION_DIM) and quiet.dtype == np.float32
    assert np.array_equal(quiet, again)
    runs = [agent.act(observations, goals, state, noise=0.3, rng=np.random.default_rng(seed))[0]
            for seed in (1, 1, 2)]
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])
    inside = np.abs(runs[0]) < 1
    assert 0.2 < (runs[0] - quiet)[inside].std() < 0.35
    loud, _ = agent.act(observations, goals, state, noise=5.0, rng=np.random.default_rng(0))
    assert loud.dtype == np.float32 and loud.min() == -1 and loud.max() == 1


@pytest.mark.parametrize('memory', ['state', 'history'])
def test_acting_sees_what_the_cached_latents_hold(make_watched, memory, states):
    """z at every step of an episode of 3 contexts is LatentStore's, in a row that was reset as well."""
    agent = make_watched(0, memory)
    episode, other, goals = states(40), states(40, seed=1), states(2, seed=2)
    data = TrajectoryDataset(np.concatenate([episode, other[:17], other[17:]]), np.array([0, 40, 57]),
                             np.array([39, 56, 79]), context_length=CONTEXT, transition_steps=STEPS)
    store = LatentStore(data, agent)
    state, acted = agent.initial_state(2), []
    for t in range(40):
        if t == 17:
            state = agent.reset_state(state, np.array([False, True]))
        actions, state = agent.act(np.stack([episode[t], other[t]]), goals, state)
        acted.append(10 * actions)
    expected = store.z if memory == 'history' else agent.encoder.encode_state(torch.from_numpy(data.observations))
    expected = expected.view(2, 40, D).transpose(0, 1)
    torch.testing.assert_close(torch.from_numpy(np.stack(acted)), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(store.z_goal, agent.encoder.encode_goal(torch.from_numpy(data.observations)),
                               rtol=1e-4, atol=1e-5)
    assert torch.allclose(store.z, store.z_goal, atol=1e-4) == (memory == 'state')


def test_proposals_and_goals_reach_the_inverse_dynamics(make_watched, states):
    observations, goals = states(4), states(4, seed=1)
    agent = make_watched(1)
    state = agent.initial_state(4)
    z = agent.encoder.encode_goal(torch.from_numpy(observations))
    z_goal = agent.encoder.encode_goal(torch.from_numpy(goals))
    actions, _ = agent.act(observations, goals, state)
    expected = (0.1 * agent.averaged['proposer'](z, z_goal)).clamp(-1, 1)
    torch.testing.assert_close(torch.from_numpy(actions), expected.detach(), rtol=1e-4, atol=1e-5)
    actions, state = agent.act(observations, goals, state, epsilon=1.0, rng=np.random.default_rng(0))
    alpha = torch.from_numpy(np.random.default_rng(0).uniform(0.2, 1.0, (4, 1))).float()
    expected = (0.1 * (z + alpha * (z_goal - z))).clamp(-1, 1)
    torch.testing.assert_close(torch.from_numpy(actions), expected, rtol=1e-4, atol=1e-5)


def test_a_goal_changed_in_mid_episode_is_encoded_again(make_watched, states):
    agent = make_watched(2)
    goals, state = states(3, seed=1), agent.initial_state(3)
    for t in range(4):
        if t == 2:
            goals[1] = 7  # in the caller's array, as the environments' loop does
        actions, state = agent.act(states(3, seed=t), goals, state)
        expected = 0.1 * agent.encoder.encode_goal(torch.from_numpy(goals))
        torch.testing.assert_close(torch.from_numpy(actions), expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ objectives
def test_the_agent_starts_from_the_averaged_networks(make_agent, make_online, make_dataset):
    offline = make_agent(target_rate=0.5)
    offline.update(make_dataset().sample(5, np.random.default_rng(0)))
    proposer = copy.deepcopy(offline.nets['proposer'].state_dict())
    averaged = copy.deepcopy(offline.targets.state_dict())
    agent = make_online(offline=offline)
    for name, value in averaged.items():
        assert torch.equal(offline.nets.state_dict()[name], value)
    kept = agent.averaged['proposer'].state_dict()
    assert all(torch.equal(kept[name], value) for name, value in proposer.items())


def test_total_loss_is_pure(agent, batch, assert_same):
    agent.update(batch)
    before, rng, keys = snapshot(agent), torch.get_rng_state(), set(batch)
    first, second = agent.total_loss(batch), agent.total_loss(batch)
    first[0].backward()
    assert first[0].item() == second[0].item() == second[1]['total_loss'].item()
    names = {'labeler_loss', 'inverse_dynamics_loss', 'proposer_loss'}
    names |= {'critic_loss', 'value_loss'} if batch['train_values'] else set()
    assert names == {name for name in first[1] if name.endswith('_loss')} - {'total_loss'}
    assert first[0].item() == pytest.approx(sum(first[1][name].item() for name in names), rel=1e-5)
    assert_same(snapshot(agent), before)
    assert torch.equal(torch.get_rng_state(), rng) and set(batch) == keys


@pytest.mark.parametrize('interval', [1, 3])
def test_update_freezes_the_encoder_and_moves_the_rest(make_online, stores, interval):
    """Both inverse dynamics and the proposer in every update; Q, V and targets in one of `value_interval`, and not
    even by Adam's momentum in the others."""
    agent, rng = make_online(value_interval=interval), np.random.default_rng(0)
    heads = {f'{k}.{name}' for k, net in agent.heads.items() for name, _ in net.named_parameters()}
    cancels = {f'value.goal.{i}.6.bias' for i in (0, 1)}  # V compares two embeddings, so its last bias drops out
    assert cancels <= heads
    for step in range(5):
        before, batch = snapshot(agent), agent.sample(*stores, rng)
        trained, rate = step % interval == 0, agent.offline.config.target_rate
        info = agent.update(batch)
        assert batch['train_values'] is trained and agent.step == step + 1
        assert not any(value.requires_grad for value in info.values())
        moved = {name for name, p in agent.offline.nets.named_parameters()
                 if not name.startswith('proposer') and not torch.equal(p, before['offline'][name])}
        assert moved | cancels == heads if trained else not moved
        assert all(not torch.equal(p, before['nets'][name]) for name, p in agent.nets.named_parameters())
        for name, p in agent.averaged.named_parameters():  # what acts follows slowly
            new = agent.nets.get_parameter(name)
            torch.testing.assert_close(p, before['averaged'][name].lerp(new, agent.config.policy_rate))
        for name, p in agent.offline.targets.named_parameters():
            old, new = before['targets'][name], agent.offline.nets.get_parameter(name)
            if name.startswith('encoder') or not trained:
                assert torch.equal(p, old)
            else:
                torch.testing.assert_close(p, old + rate * (new - old), rtol=1e-5, atol=1e-7)
                assert name in cancels or not torch.equal(p, old)


def test_the_heads_keep_the_offline_learning_rate(make_agent, make_online, stores):
    """Adam's first step is the learning rate wherever the gradient is not tiny."""
    agent = make_online(offline=make_agent(lr=1e-4), lr=1e-2)
    before = snapshot(agent)
    agent.update(agent.sample(*stores, np.random.default_rng(0)))
    for kind, nets, lr in (('nets', agent.nets, 1e-2), ('offline', agent.offline.nets, 1e-4)):
        for name in {'nets': nets, 'offline': agent.heads}[kind]:
            steps = [(p - before[kind][f'{name}.{key}']).abs().max().item()
                     for key, p in nets[name].named_parameters()]
            assert max(steps) == pytest.approx(lr, rel=0.01), name


@pytest.mark.parametrize('trained', ['labeler', 'inverse_dynamics', 'proposer'])
def test_each_net_has_its_own_loss(agent, batch, trained):
    agent.total_loss(batch)[1][f'{trained}_loss'].backward()
    everything = {**agent.nets, **agent.offline.nets}
    reached = {name for name, net in everything.items()
               if any(p.grad is not None and (p.grad != 0).any() for p in net.parameters())}
    assert reached == {trained}


def test_labels_are_inferred_for_offline_rows_and_real_for_own_ones(agent, batch, stub):
    agent.nets['labeler'] = stub(lambda s, change, **_: s[:, :ACTION_DIM] + 2 * change[:, :ACTION_DIM])
    agent.nets['inverse_dynamics'] = stub(lambda z, ahead, goal_ahead: torch.zeros(len(z), ACTION_DIM))
    mean, std = agent.encoder.mean, agent.encoder.std  # the labeler reads states as the encoder does
    labels = ((2 * batch['next_states'] - batch['states'] - mean) / std)[:, :ACTION_DIM]
    torch.testing.assert_close(agent.label(batch['states'], batch['next_states']), labels, rtol=1e-4, atol=1e-5)
    assert (labels.abs() > 1).any() and 0 < batch['own'].sum() < len(labels)
    actions = torch.where(batch['own'][:, None], batch['actions'], labels.clamp(-1, 1))
    error = agent.total_loss(batch)[1]['inverse_dynamics_error']
    assert error.item() == pytest.approx(actions.square().mean().item(), rel=1e-5)


def test_the_policy_imitates_from_real_and_proposed_latents_by_advantage(agent, batch, stub):
    """z' is z_ahead or the proposer's; weights are min(exp(20 A), 100) over their mean."""
    embed_as_is(agent, stub)
    agent.nets['labeler'] = stub(lambda s, change, **_: torch.zeros(len(s), ACTION_DIM))
    agent.nets['inverse_dynamics'] = stub(lambda z, ahead, goal_ahead: (ahead + 2 * goal_ahead)[:, :ACTION_DIM])
    z, z_next, goal = batch['z'], batch['z_next'], batch['proposer_goal']
    with torch.no_grad():
        proposed = agent.averaged['proposer'](z, goal)
        z_target = torch.where(batch['use_proposal'][:, None], proposed, batch['z_ahead'])
        error = (((z_target - z) + 2 * (goal - z))[:, :ACTION_DIM] - batch['actions']).square().mean(-1)
        advantage = (goal - z).norm(dim=-1) - (goal - z_next).norm(dim=-1)
        info = agent.total_loss(batch)[1]
    weight = (20 * advantage).exp().clamp(max=100)
    assert weight.max() == 100 and weight.min() < 0.5 and 0 < batch['use_proposal'].sum() < len(z)
    assert info['inverse_dynamics_error'].item() == pytest.approx(error.mean().item(), rel=1e-4)
    assert info['inverse_dynamics_loss'].item() == pytest.approx(
        (weight * error).sum().item() / weight.sum().item(), rel=1e-3)


@pytest.mark.parametrize('memory, interval', [('state', 0), ('state', 1), ('history', 0)])
def test_the_policy_can_weigh_by_progress_toward_the_latent_that_it_is_given(
        make_online, make_agent, make_stores, memory, interval):
    """How much nearer to z' than now the trajectory is `progress_steps` on, in standard deviations, or at its end."""
    agent = make_online(offline=make_agent(head_memory=memory), value_interval=interval, progress_steps=3,
                        progress_temperature=2.5, online_share=0.5)
    stores = make_stores(agent)
    batch, given = agent.sample(*stores, np.random.default_rng(0)), {}
    rows, half = batch['rows'].numpy(), len(batch['rows']) // 2
    soon = torch.cat([store.z[np.minimum(at + 3, store.dataset.end_of[at])]
                      for store, at in zip(stores, (rows[:half], rows[half:]), strict=True)])
    original = agent.policy_weight
    agent.policy_weight = lambda latents, e_next: given.update(
        e_next=e_next, weight=original(latents, e_next)) or given['weight']
    agent.total_loss(batch)
    with torch.no_grad():
        e_z, e_soon = agent.offline.targets['value'].embed(torch.stack([batch['z'], soon])).unbind(1)
        progress = ((e_z - given['e_next']).norm(dim=-1) - (e_soon - given['e_next']).norm(dim=-1)).mean(0)
    weight = (2.5 * (progress - progress.mean()) / progress.std()).exp().clamp(max=100)
    torch.testing.assert_close(given['weight'], weight / weight.mean(), rtol=0.02, atol=1e-4)
    assert given['weight'].min() < 0.1 and given['weight'].max() > 3
    one = {'e_z': torch.zeros(2, 1, 4), 'e_z_soon': torch.ones(2, 1, 4)}
    assert original(one, torch.ones(2, 1, 4)).item() == 1, 'a single transition has no deviation'


def test_the_inverse_dynamics_reads_embeddings_relative_to_now(agent, batch, stub):
    read = {}
    agent.nets['inverse_dynamics'] = stub(lambda *inputs: read.update(inputs=inputs))
    z, z_next, z_goal = batch['z'], batch['z_next'], batch['z_goal']
    embedded = [agent.offline.targets['value'].embed(latent) for latent in (z, z_next, z_goal)]
    agent.infer_action(z, *embedded, averaged=False)
    e_z, e_next, e_goal = (torch.cat([*e], -1) for e in embedded)  # members side by side
    for got, expected in zip(read['inputs'], (z, e_next - e_z, e_goal - e_z), strict=True):
        torch.testing.assert_close(got, expected)
    assert e_z.shape[-1] == agent.offline.embedding_dim


def test_the_labeler_learns_linear_dynamics(make_online, make_replay):
    """Twenty episodes of s' = s + M a are enough to tell the actions of episodes that it has not seen."""
    agent, rng = make_online(), np.random.default_rng(0)
    M = rng.standard_normal((ACTION_DIM, DIM))

    def make_store(count):
        replay = make_replay(())
        for _ in range(count):
            actions = rng.uniform(-1, 1, (30, ACTION_DIM)).astype(np.float32)
            walk = np.concatenate([rng.standard_normal((1, DIM)), actions @ M]).cumsum(0)
            replay.add(walk.astype(np.float32), actions)
        return LatentStore(replay, agent)

    train, test = make_store(20), make_store(5)
    optimizer = torch.optim.Adam(agent.nets.parameters(), 3e-3)
    for _ in range(300):
        loss, _ = agent.labeler_loss(train.sample_steps(256, rng))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    steps = test.sample_steps(1000, rng)
    labels = agent.label(steps['own_states'], steps['own_next_states'])
    error = (labels - steps['own_actions']).square().mean()
    assert error.item() < 0.2 / 3  # R2 above 0.8: the variance of uniform actions is 1/3


def test_dropout_is_decided_by_the_batch_and_for_training_only(make_online, stores, assert_same):
    agent, plain = make_online(labeler_dropout=0.5), make_online(labeler_dropout=0.0)
    assert_same(snapshot(agent), snapshot(plain))
    steps = stores[1].sample_steps(50, np.random.default_rng(0))
    rng = torch.get_rng_state()
    losses = [agent.labeler_loss(steps | {'dropout_seed': seed})[0].item() for seed in (1, 1, *range(2, 100))]
    assert losses[0] == losses[1] != losses[2] and torch.equal(torch.get_rng_state(), rng)
    states, next_states = steps['own_states'], steps['own_next_states']
    labels = agent.label(states, next_states)
    for other in (agent, plain):
        assert torch.equal(labels, other.label(states, next_states))
    assert plain.labeler_loss(steps)[0].item() == (labels - steps['own_actions']).square().mean().item()
    net, seen = InverseDynamics(2, 1, 4000), []
    net.net[3].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for options in ({'dropout': 0.25, 'generator': torch.Generator().manual_seed(0)}, {}):
        net(torch.ones(1, 2), **options)
    kept = seen[0] != 0
    assert 2900 < kept.sum() < 3100
    torch.testing.assert_close(seen[0][kept], seen[1][kept] / 0.75)


def test_a_batch_mixes_the_stores_by_their_share(make_online, stores, assert_same):
    agent = make_online(online_share=0.25, proposal_share=0.7, batch_size=50)
    batch = agent.sample(*stores, np.random.default_rng(0))
    assert batch.keys() == {
        'z', 'z_next', 'z_goal', 'z_ahead', 'proposer_goal', 'states', 'next_states', 'rewards', 'discounts',
        'at_goal', 'future', 'proposer_near', 'own', 'actions', 'use_proposal', 'train_values', 'own_states',
        'own_next_states', 'own_actions', 'rows', 'next_rows', 'goal_rows', 'proposer_goal_rows', 'own_rows',
        'dropout_seed'}
    sizes = {len(value) for name, value in batch.items() if name not in ('train_values', 'dropout_seed')}
    assert sizes == {50 * CONTEXT}
    assert batch['own'].sum() == 150
    sizes = {int(agent.sample(*stores, np.random.default_rng(i))['use_proposal'].sum()) for i in range(5)}
    assert sizes == {round(0.7 * 50 * CONTEXT)}, 'matrices of other sizes would be compiled anew'
    assert {1, 0} == set(batch['use_proposal'][:20].tolist()), 'in random order'
    again = agent.sample(*stores, np.random.default_rng(0))
    assert_same(batch, again)


@pytest.mark.parametrize('interval, trained', [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (4, [0, 4])])
def test_values_are_trained_in_one_update_of_value_interval(make_online, stores, interval, trained):
    agent, marked = make_online(value_interval=interval), []
    for agent.step in range(7):
        marked.append(agent.sample(*stores, np.random.default_rng(0))['train_values'])
    assert marked == [step in trained for step in range(7)]


# ------------------------------------------------------------------------------------------------ checkpoints
def test_the_next_update_after_a_checkpoint_is_bitwise_the_same(
        either_agent, make_stores, states, assert_same, tmp_path):
    agent, rng = either_agent, np.random.default_rng(0)
    stores = make_stores(agent)
    for _ in range(3):
        agent.update(agent.sample(*stores, rng))
    save_checkpoint(tmp_path / 'last.pth', {'kind': 'online', 'dataset': '', 'agent': agent.checkpoint()})
    torch.manual_seed(99)  # fresh networks must not depend on it
    loaded = OnlineAgent.from_checkpoint(load_checkpoint(tmp_path / 'last.pth', 'online')['agent'])
    assert loaded.config == agent.config and loaded.step == 3 and loaded.action_dim == ACTION_DIM
    assert_same(snapshot(loaded), snapshot(agent))
    again = [LatentStore(store.dataset, loaded) for store in stores]
    for seed in (1, 2):  # one update without Q, V and proposer, one with them
        assert_same(agent.update(agent.sample(*stores, np.random.default_rng(seed))),
                    loaded.update(loaded.sample(*again, np.random.default_rng(seed))))
    assert_same(snapshot(loaded), snapshot(agent))
    observations, goals = states(4), states(4, seed=1)
    assert np.array_equal(*(a.act(observations, goals, a.initial_state(4))[0] for a in (agent, loaded)))


def test_a_shrunk_checkpoint_acts_like_the_whole_one(
        either_agent, make_stores, make_replay, states, tmp_path, monkeypatch):
    agent, small = either_agent, tmp_path / 'small.pth'
    stores = make_stores(agent)
    for seed in range(5):  # averages and what they are averages of differ
        agent.update(agent.sample(*stores, np.random.default_rng(seed)))
    save_checkpoint(tmp_path / 'last.pth', {'kind': 'online', 'dataset': 'a', 'agent': agent.checkpoint(),
                                            'replay': make_replay((40,)).content()})
    monkeypatch.setattr('sys.argv', ['', '--checkpoint', str(tmp_path / 'last.pth'), '--output', str(small)])
    shrink_checkpoint.main()
    loaded = OnlineAgent.from_checkpoint(load_checkpoint(small, 'online')['agent'])
    observations, goals = states(64), states(64, seed=1)
    actions = [a.act(observations, goals, a.initial_state(64))[0] for a in (agent, loaded)]
    np.testing.assert_allclose(*actions, atol=0.01)
    assert actions[0].std() > 0.05
    assert small.stat().st_size < 0.35 * (tmp_path / 'last.pth').stat().st_size
