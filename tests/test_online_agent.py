"""Acting, inverse dynamics, updates and checkpoints of the online half."""

import copy
import dataclasses

import numpy as np
import pytest
import shrink_checkpoint
import torch

from online_agent import STUCK_STEPS, OnlineAgent, StuckCounter
from planning.graph_planner import StateMap
from support.files import load_checkpoint, save_checkpoint

DIM, ACTION_DIM, CONTEXT, STEPS, D = 5, 3, 12, 4, 32


@pytest.fixture(params=[True, False], ids=['values', 'no_values'])
def train_values(request):
    """Each kind of update."""
    return request.param


@pytest.fixture
def batch(batches):
    return batches.sample(np.random.default_rng(0))


@pytest.fixture
def make_watched(make_online, stub):
    """An agent whose action is 0.01 of what the inverse dynamics is given: `which` is 0 for f(s), 1 for the place of
    z' and 2 for that of z_g. Where a latent lies, its first numbers say."""

    def make(which, memory=False):
        agent = make_online(action_dim=DIM if which else D, memory=memory)
        agent.infer_action = lambda full, states, targets, goals: 0.01 * (full, targets, goals)[which]
        agent.acting['feature_decoder'] = stub(lambda z: z[:, :DIM])
        return agent

    return make


def snapshot(agent):
    return copy.deepcopy({
        'trained': agent.trained.state_dict(), 'acting': agent.acting.state_dict(),
        'offline': agent.offline.nets.state_dict(), 'step': agent.step,
        'targets': agent.offline.targets.state_dict(), 'optimizer': agent.optimizer.state_dict()})


# ---------------------------------------------------------------------------------------------------- acting
def test_actions_are_scaled_before_they_are_clipped(make_online, states):
    full, small_action_prior = make_online(), make_online(action_scale=0.5)
    inferred = torch.tensor([[0.4, -0.6, 3.0]]).expand(4, ACTION_DIM)
    for agent in full, small_action_prior:
        agent.infer_action = lambda *_: inferred
    acted = [agent.act(states(4), states(4, seed=1), agent.initial_state(4))[0] for agent in (full, small_action_prior)]
    np.testing.assert_allclose(acted[0][0], [0.4, -0.6, 1.0], rtol=1e-6)
    np.testing.assert_allclose(acted[1][0], [0.2, -0.3, 1.0], rtol=1e-6)


def test_who_rests_is_told_by_how_long_he_has_stayed():
    rest = StuckCounter(np.full((2, 1), np.nan), np.zeros(2, int))
    steps = []
    for places in ([0.0, 0.0], [0.1, 2.0], [0.1, 4.0], [-0.1, 4.1], [0.3, 4.1]):
        rest = rest.step(np.array(places)[:, None], 0.2)
        steps.append(rest.steps.tolist())
    assert steps == [[0, 0], [1, 0], [2, 0], [3, 1], [0, 2]]
    rest = rest.forget(np.array([False, True]))
    assert rest.step(np.array([[0.3], [4.1]]), 0.2).steps.tolist() == [1, 0]


def test_who_rests_stirs(make_online, make_dataset):
    """One that lies still does the same for a while, and from then on something else at each; who walks on beside it,
    or begins anew, does what he would without it."""
    data = make_dataset((60, 60, 60))
    agents = [make_online(stuck_noise=noise) for noise in (0.5, 0.0)]
    states = []
    for agent in agents:
        agent.build_map(data)
        states.append(agent.initial_state(3))
    goals = data.observations[[59, 59, 59]]

    noise = []
    for t in range(STUCK_STEPS + 30):
        if t == STUCK_STEPS + 10:
            states = [agent.reset_state(state, np.array([False, False, True]))
                      for agent, state in zip(agents, states, strict=True)]
        observations = data.observations[[0, t % 2 * 30, 0]]  # the second one is now here, now there
        acted = []
        for i, agent in enumerate(agents):
            actions, states[i] = agent.act(observations, goals, states[i])
            acted.append(actions)
        noise.append(acted[0] - acted[1])
    noise = np.stack(noise)

    assert not noise[:STUCK_STEPS].any() and not noise[:, 1].any()
    assert noise[STUCK_STEPS:, 0].any(1).all() and 0.2 < noise[STUCK_STEPS:, 0].std() < 0.6
    assert not noise[STUCK_STEPS + 10:, 2].any()
    both = noise[STUCK_STEPS:STUCK_STEPS + 10]
    assert np.array_equal(both[:, 0], both[:, 2]), 'the state and the step draw it'


def test_a_checkpoint_from_before_actions_were_scaled_acts_as_it_did(make_online, states):
    agent = make_online()
    state = agent.state_dict()
    del state['config']['action_scale']
    loaded = OnlineAgent.from_state_dict(state)
    assert loaded.config.action_scale == 1
    acted = [a.act(states(4), states(4, seed=1), a.initial_state(4))[0] for a in (agent, loaded)]
    assert np.array_equal(*acted)


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
        proposed = agent.acting['proposer'](z, z_goal)
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


@pytest.mark.parametrize('memory', [False, True])
def test_acting_sees_what_training_sees(make_watched, memory, states):
    """f at every step of an episode of 3 contexts is that of the state, or of a window that ends there and begins up
    to a context before, in a row that was reset as well."""
    agent = make_watched(0, memory)
    episode, other, goals = states(40), states(40, seed=1), states(2, seed=2)
    sequences = [[episode], [other[:17], other[17:]]]  # what belongs together
    state, acted = agent.initial_state(2), []
    for t in range(40):
        if t == 17:
            state = agent.reset_state(state, np.array([False, True]))
        actions, state = agent.act(np.stack([episode[t], other[t]]), goals, state)
        acted.append(100 * actions)

    for row, parts in enumerate(sequences):
        t = 0
        for part in parts:
            for now in range(len(part)):
                begin = 0 if now < CONTEXT else now - (CONTEXT // 2 + now % (CONTEXT // 2))
                window = torch.from_numpy(part[begin if memory else now:now + 1])
                encoder = agent.acting['memory'] if memory else agent.encoder
                expected = encoder(window[None])[0, -1].detach()
                torch.testing.assert_close(torch.from_numpy(acted[t][row]), expected, rtol=1e-4, atol=1e-4)
                t += 1


def test_memory_of_a_batch_is_that_of_its_windows(make_online, make_dataset, make_replay):
    """Each transition's f(s_<=t) has seen its window up to it, and nothing of what comes later."""
    agent = make_online(memory=True, online_share=0.5)
    batches = agent.open_batches(make_dataset(), make_replay((40, 8, 25)))
    batch = batches.sample(np.random.default_rng(0))
    full = agent.remember(batch).detach()
    assert batch.windows.shape == (*batch.positions.shape, DIM) and len(full) == len(batch.rows)

    for i, (window, position) in enumerate(zip(batch.windows.repeat_interleave(CONTEXT, 0),
                                               batch.positions.flatten().tolist(), strict=True)):
        torch.testing.assert_close(window[position], batch.states[i])
        expected = agent.trained['memory'](window[None, :position + 1])[0, -1]
        torch.testing.assert_close(full[i], expected, rtol=1e-4, atol=1e-4)
    assert batch.is_online.sum() == len(full) // 2


def test_memory_learns_more_slowly_and_the_encoder_of_places_rests(make_online, make_batches):
    agent = make_online(memory=True, memory_lr=1e-5, lr=1e-3, ema_rate=0.5)
    batches = make_batches(agent)
    before = copy.deepcopy(agent.trained.state_dict())
    frozen = copy.deepcopy(agent.encoder.state_dict())
    agent.update(batches.sample(np.random.default_rng(0)))

    change = {name: (value - before[name]).abs().max().item() for name, value in agent.trained.state_dict().items()}
    memory = [size for name, size in change.items() if name.startswith('memory') and 'layers' in name]
    assert 0.9e-5 < max(memory) < 1.1e-5 and 0.9e-3 < change['inverse_dynamics.net.0.weight'] < 1.1e-3
    assert all(torch.equal(value, frozen[name]) for name, value in agent.encoder.state_dict().items())
    averaged = agent.acting['memory'].input.weight - before['memory.input.weight']
    torch.testing.assert_close(averaged, 0.5 * (agent.trained['memory'].input.weight - before['memory.input.weight']))


def test_proposals_and_goals_reach_the_inverse_dynamics(make_watched, states):
    observations, goals = states(4), states(4, seed=1)
    agent = make_watched(1)
    state = agent.initial_state(4)
    z = agent.encoder.encode_features(torch.from_numpy(observations))
    z_goal = agent.encoder.encode_features(torch.from_numpy(goals))

    actions, _ = agent.act(observations, goals, state)
    expected = 0.01 * agent.acting['proposer'](z, z_goal)[:, :DIM]
    torch.testing.assert_close(torch.from_numpy(actions), expected.detach(), rtol=1e-4, atol=1e-5)

    actions, state = agent.act(observations, goals, state, epsilon=1.0, rng=np.random.default_rng(0))
    alpha = torch.from_numpy(np.random.default_rng(0).uniform(0.2, 1.0, (4, 1))).float()
    expected = 0.01 * (z + alpha * (z_goal - z))[:, :DIM]
    torch.testing.assert_close(torch.from_numpy(actions), expected, rtol=1e-4, atol=1e-5)


def test_a_goal_changed_in_mid_episode_is_seen(make_watched, states):
    agent = make_watched(2)
    goals, state = states(3, seed=1), agent.initial_state(3)
    for t in range(4):
        if t == 2:
            goals[1] = 7  # in the caller's array, as the environments' loop does
        actions, state = agent.act(states(3, seed=t), goals, state)
        expected = 0.01 * agent.encoder.place(torch.from_numpy(goals))
        torch.testing.assert_close(torch.from_numpy(actions), expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ objectives
def test_learning_rates_fall_over_the_second_half(make_online, make_batches):
    agent, rng = make_online(lr=0.5, lr_decay_updates=8), np.random.default_rng(0)
    batches = make_batches(agent)
    rates = []
    for _ in range(10):
        agent.update(batches.sample(rng))
        rates.append([group['lr'] for group in agent.optimizer.param_groups])
    heads, values = zip(*rates, strict=True)
    assert heads == pytest.approx([0.5] * 5 + [0.375, 0.25, 0.125, 0.005, 0.005])
    slow = agent.offline.config.lr
    assert values == pytest.approx([slow] * 5 + [0.75 * slow, 0.5 * slow, 0.25 * slow, 0.01 * slow, 0.01 * slow])

    loaded = OnlineAgent.from_state_dict(agent.state_dict())
    loaded.step = 6
    loaded.update(batches.sample(rng))
    assert loaded.optimizer.param_groups[0]['lr'] == pytest.approx(0.25)


def test_the_agent_starts_from_the_averaged_networks(make_agent, make_online, make_dataset):
    offline = make_agent(target_rate=0.5)
    offline.update(make_dataset().sample(5, np.random.default_rng(0)))
    proposer = copy.deepcopy(offline.nets['proposer'].state_dict())
    averaged = copy.deepcopy(offline.targets.state_dict())
    agent = make_online(offline=offline)
    for name, value in averaged.items():
        assert torch.equal(offline.nets.state_dict()[name], value)
    kept = agent.acting['proposer'].state_dict()
    assert all(torch.equal(kept[name], value) for name, value in proposer.items())


def test_total_loss_is_pure(agent, batch, train_values, assert_same):
    agent.update(batch)
    before = snapshot(agent)
    kept = copy.deepcopy(batch)
    rng = torch.get_rng_state()
    first = agent.total_loss(batch, train_values)
    second = agent.total_loss(batch, train_values)
    first[0].backward()
    assert first[0].item() == second[0].item() == second[1]['total_loss'].item()
    names = {'inverse_dynamics_loss', 'feature_decoder_loss', 'baseline_loss'}
    names |= {'critic_loss', 'value_loss', 'proposer_loss'} if train_values else set()
    assert names == {name for name in first[1] if name.endswith('_loss')} - {'total_loss'}
    assert first[0].item() == pytest.approx(sum(first[1][name].item() for name in names), rel=1e-5)
    assert_same(snapshot(agent), before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert_same(vars(batch), vars(kept))


@pytest.mark.parametrize('interval', [1, 3, 4])
def test_update_freezes_the_encoder_and_moves_the_rest(make_online, make_batches, interval):
    """Inverse dynamics and the feature_decoder in every update; Q, V, the proposer and targets in one of `value_interval`,
    and not even by Adam's momentum in the others."""
    agent, rng = make_online(value_interval=interval), np.random.default_rng(0)
    batches = make_batches(agent)
    heads = {f'{k}.{name}' for k, net in agent.values.items() for name, _ in net.named_parameters()}
    cancels = {f'value.goal.{i}.6.bias' for i in (0, 1)}  # V compares two embeddings, so its last bias drops out
    assert cancels <= heads
    for step in range(5):
        before, batch = snapshot(agent), batches.sample(rng)
        trained, rate = step % interval == 0, agent.offline.config.target_rate
        info = agent.update(batch)
        assert ('value_loss' in info) is trained and agent.step == step + 1
        assert not any(value.requires_grad for value in info.values())
        moved = {name for name, p in agent.offline.nets.named_parameters()
                 if not torch.equal(p, before['offline'][name])}
        assert moved | cancels == heads if trained else not moved
        assert all(not torch.equal(p, before['trained'][name]) for name, p in agent.trained.named_parameters())
        for name, p in agent.acting.named_parameters():  # what acts follows slowly
            learned = agent.values if name.startswith('proposer') else agent.trained
            new = learned.get_parameter(name)
            torch.testing.assert_close(p, before['acting'][name].lerp(new, agent.config.ema_rate))
        for name, p in agent.offline.targets.named_parameters():
            old, new = before['targets'][name], agent.offline.nets.get_parameter(name)
            if name.startswith('encoder') or not trained:
                assert torch.equal(p, old)
            else:
                torch.testing.assert_close(p, old + rate * (new - old), rtol=1e-5, atol=1e-7)
                assert name in cancels or not torch.equal(p, old)


def test_the_heads_keep_the_offline_learning_rate(make_agent, make_online, make_batches):
    """Adam's first step is the learning rate wherever the gradient is not tiny."""
    agent = make_online(offline=make_agent(lr=1e-4), lr=1e-2)
    before = snapshot(agent)
    agent.update(make_batches(agent).sample(np.random.default_rng(0)))
    for kind, nets, lr in (('trained', agent.trained, 1e-2), ('offline', agent.offline.nets, 1e-4)):
        for name in {'trained': nets, 'offline': agent.values}[kind]:
            steps = [(p - before[kind][f'{name}.{key}']).abs().max().item()
                     for key, p in nets[name].named_parameters()]
            assert max(steps) == pytest.approx(lr, rel=0.01), name


@pytest.mark.parametrize('trained', ['inverse_dynamics', 'feature_decoder', 'baseline', 'proposer'])
def test_each_net_has_its_own_loss(agent, batch, trained):
    agent.total_loss(batch, train_values=True)[1][f'{trained}_loss'].backward()
    everything = {**agent.trained, **agent.offline.nets}
    reached = {name for name, net in everything.items()
               if any(p.grad is not None and (p.grad != 0).any() for p in net.parameters())}
    assert reached == {trained}


def test_labels_are_inferred_for_offline_rows_and_real_for_own_ones(agent, batches, stub):
    agent.labeler = stub(lambda steps: steps[:, 1, :ACTION_DIM])
    batches.label_data(agent.label)
    batch = batches.sample(np.random.default_rng(0))
    own = batch.is_online
    assert 0 < own.sum() < len(own)
    data, replay = batches.offline_store.dataset, batches.online_store.dataset
    after = torch.from_numpy(data.observations[batch.rows[~own] + 1])
    torch.testing.assert_close(batch.actions[~own], agent.encoder.normalize(after)[:, :ACTION_DIM])
    assert np.array_equal(batch.actions[own], replay.actions[batch.rows[own]])

    agent.trained['inverse_dynamics'] = stub(lambda full, *_: torch.zeros(len(full), ACTION_DIM))
    error = agent.total_loss(batch)[1]['inverse_dynamics_error']
    assert error.item() == pytest.approx(batch.actions.square().mean().item(), rel=1e-5)


def test_the_labeler_is_told_which_numbers_are_places(agent, batches, monkeypatch):
    told = []
    fit = agent.labeler.fit
    monkeypatch.setattr(agent.labeler, 'fit', lambda *args, **options: told.append(options) or fit(*args, **options))
    agent.encoder.slowness.zero_()
    agent.encoder.slowness[:3] = torch.tensor([0.7, 0.3, 1.0])
    agent.fit_labeler(batches, np.random.default_rng(0))
    assert told[0]['position_dims'].tolist() == [2, 0], 'the slowest first'
    assert told[0]['small_action_prior'] == 0, 'a walker is not small_action_prior'


def test_without_slow_goals_no_number_is_known_to_be_a_place(make_agent, make_online):
    assert len(make_online(offline=make_agent(slow_goals=False)).position_dims()) == 0


def test_true_actions_of_the_data_take_the_place_of_labels(make_online, make_batches, stub):
    agent = make_online(online_share=0.0)
    batches = make_batches(agent)
    data = batches.offline_store.dataset
    data.actions = np.random.default_rng(0).uniform(-1, 1, (len(data), ACTION_DIM)).astype(np.float32)
    batches.label_data(lambda steps: pytest.fail('there is no need'))
    batch = batches.sample(np.random.default_rng(1))
    agent.trained['inverse_dynamics'] = stub(lambda full, *_: torch.zeros(len(full), ACTION_DIM))
    assert np.array_equal(batch.actions, data.actions[batch.rows])
    error = agent.imitation_loss(batch)[1]['inverse_dynamics_error']
    assert error.item() == pytest.approx(np.square(data.actions[batch.rows]).mean(), rel=1e-5)


@pytest.mark.parametrize('memory', [False, True])
def test_imitation_is_of_later_states_weighted_by_progress(make_online, make_batches, stub, memory):
    """I reads directions; weights are min(exp(temperature * progress in standard deviations), 100) over their mean."""
    agent = make_online(memory=memory, progress_steps=3, progress_temperature=2.5, online_share=0.5)
    batches = make_batches(agent)
    batch = batches.sample(np.random.default_rng(0))
    agent.trained['inverse_dynamics'] = stub(
        lambda full, state, ahead, goal_ahead: (ahead + 2 * goal_ahead)[:, :ACTION_DIM])
    usual = agent.usual_progress(batch, agent.acting)
    agent.trained['baseline'].load_state_dict(agent.acting['baseline'].state_dict())
    info = agent.total_loss(batch)[1]

    rows, half = batch.rows.numpy(), len(batch.rows) // 2
    stores = batches.offline_store, batches.online_store
    soon = torch.cat([store.states(np.minimum(at + 3, store.dataset.end_of[at]))
                      for store, at in zip(stores, (rows[:half], rows[half:]), strict=True)])
    place = agent.encoder.place
    now = place(batch.states)
    ahead, soon, goal_ahead = (place(x) - now for x in (batch.subgoal_states, soon, batch.goal_states))
    direction, goal_heading = (x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12) for x in (ahead, goal_ahead))
    error = ((direction + 2 * goal_heading)[:, :ACTION_DIM] - batch.actions).square().mean(-1)
    assert info['inverse_dynamics_error'].item() == pytest.approx(error.mean().item(), rel=1e-4)

    progress = (direction * soon).sum(-1)
    progress = progress / progress.std()
    assert info['baseline_loss'].item() == pytest.approx((usual - progress).square().mean().item(), rel=1e-3)
    beyond = progress - usual
    weight = (2.5 * (beyond - beyond.mean()) / beyond.std()).exp().clamp(max=100)
    assert weight.min() < 0.1 and weight.max() > 10
    assert info['inverse_dynamics_loss'].item() == pytest.approx(
        (weight * error).sum().item() / weight.sum().item(), rel=1e-3)
    one = dataclasses.replace(batch, **{name: getattr(batch, name)[:1]
                                        for name in ('states', 'subgoal_states', 'progress_states')})
    assert agent.imitation_weights(one).item() == 1, 'a single transition has no deviation'


def test_what_is_usual_from_a_state_is_learned_and_what_goes_beyond_it_imitated(make_online, make_batches):
    """Half of the states lie on the ground, where nobody comes anywhere; of the others some walk and some wait."""
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
    agent.acting['baseline'].load_state_dict(agent.trained['baseline'].state_dict())
    weights = agent.imitation_weights(batch)
    walking, waiting, lying = (weights[rows].mean().item() for rows in (~lies & ~waits, waits, lies))
    assert walking > 3 * lying > 9 * waiting


@pytest.mark.parametrize('has_baseline', [True, False])
def test_checkpoints_whose_labeler_was_a_network_act_as_they_did(agent, has_baseline):
    """The oldest have no baseline either."""
    state = agent.state_dict()
    del state['labeler']
    state['config'] |= {'labeler_context': 0, 'labeler_places': None, 'labeler_dropout': 0.3}
    for kind in ('trained', 'acting'):
        state[kind] = {name: value for name, value in state[kind].items()
                       if has_baseline or not name.startswith('baseline.')}
        state[kind]['labeler.net.0.weight'] = torch.ones(32, 2 * DIM)
    older = OnlineAgent.from_state_dict(state)
    assert not older.labeler.is_fitted
    for name, value in state['acting'].items():
        assert name.startswith('labeler.') or torch.equal(older.acting.state_dict()[name], value)


def test_without_progress_all_transitions_weigh_the_same(make_online, make_batches):
    agent = make_online(progress_steps=0)
    info = agent.total_loss(make_batches(agent).sample(np.random.default_rng(0)))[1]
    assert info['inverse_dynamics_loss'].item() == pytest.approx(info['inverse_dynamics_error'].item(), rel=1e-6)


def test_the_inverse_dynamics_reads_directions(agent, stub):
    """How far z' is, is not its business: it walks on as fast as it can."""
    read = {}
    agent.trained['inverse_dynamics'] = stub(lambda *inputs: read.update(inputs=inputs))
    full, states, ahead = torch.randn(6, D), torch.randn(6, DIM), torch.randn(6, DIM)
    place = agent.encoder.place(states)
    agent.infer_action(full, states, place + ahead, place, agent.trained)
    assert torch.equal(read['inputs'][0], full)
    torch.testing.assert_close(read['inputs'][1], (states - agent.encoder.mean) / agent.encoder.std)
    torch.testing.assert_close(read['inputs'][2], ahead / ahead.norm(dim=-1, keepdim=True), rtol=1e-3, atol=1e-4)
    assert not read['inputs'][3].any(), 'whoever is at the goal has no direction to it'


def test_the_inverse_dynamics_reads_states_along_and_across_the_heading(make_agent, make_online, stub):
    agent = make_online(direction_products=True)
    numbers = agent.position_dims().tolist()
    read = {}
    net = agent.trained['inverse_dynamics']
    agent.trained['inverse_dynamics'] = stub(lambda *inputs: read.update(inputs=inputs))
    full, states, ahead = torch.randn(6, D), torch.randn(6, DIM), torch.randn(6, DIM)
    place = agent.encoder.place(states)
    agent.infer_action(full, states, place + ahead, place, agent.trained)
    _, seen, direction, _, products = read['inputs']
    for i in range(DIM):
        for j, number in enumerate(numbers):
            torch.testing.assert_close(products[:, i * len(numbers) + j], seen[:, i] * direction[:, number])
    assert net(*read['inputs']).shape == (6, ACTION_DIM)

    with pytest.raises(ValueError, match='--direction_products: the offline run knows no place'):
        make_online(offline=make_agent(slow_goals=False), direction_products=True)


def test_the_locator_learns_where_latents_lie(agent, batches):
    optimizer = torch.optim.Adam(agent.trained['feature_decoder'].parameters(), 3e-3)
    rng = np.random.default_rng(0)
    for _ in range(400):
        loss, _ = agent.feature_decoder_loss(batches.sample(rng))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    places = agent.encoder.place(batches.sample(rng).states)
    assert loss.item() < 0.05 * places.var(0).mean().item()


@pytest.mark.parametrize('interval', [0, 2])
def test_a_batch_mixes_the_stores_by_their_share(make_online, make_batches, assert_same, interval):
    agent = make_online(online_share=0.25, batch_size=50, progress_steps=0, value_interval=interval)
    batches = make_batches(agent)
    batch = batches.sample(np.random.default_rng(0))
    sizes = {len(value) for value in vars(batch).values() if isinstance(value, torch.Tensor)}
    assert sizes == {50 * CONTEXT}
    missing = {name for name, value in vars(batch).items() if value is None}
    resting = set() if interval else {'latents', 'rewards', 'discounts', 'proposer_near'}
    assert missing == {'progress_states', 'steps_to_subgoal', 'windows', 'positions'} | resting
    assert batch.is_online.sum() == 150
    assert_same(vars(batch), vars(batches.sample(np.random.default_rng(0))))


@pytest.mark.parametrize('low, high', [(-1, 1), (-0.4, 0.4), ([0, -2, 1], [1, 2, 5])])
def test_actions_have_the_bounds_of_the_action_space(make_online, states, low, high):
    """The same networks in other units: what is -1 to 1 inside is low to high outside."""
    low, high = (np.broadcast_to(np.float32(bound), ACTION_DIM) for bound in (low, high))
    unit = make_online()
    agent = OnlineAgent(unit.offline, low, high, unit.config)
    agent.load_state_dict(unit.state_dict())
    observations, goals = states(200), states(200, seed=1)

    def act(agent):
        return agent.act(observations, goals, agent.initial_state(200), noise=2.0, rng=np.random.default_rng(0))[0]

    actions = act(agent)
    np.testing.assert_allclose(actions, (high + low) / 2 + (high - low) / 2 * act(unit), rtol=1e-5, atol=1e-6)
    assert (actions >= low).all() and (actions <= high).all()
    assert (actions == low).any(0).all() and (actions == high).any(0).all()
    np.testing.assert_allclose(agent.scale_to_unit(actions), act(unit), atol=1e-5)
    loaded = OnlineAgent.from_state_dict(agent.state_dict())
    assert np.array_equal(act(loaded), actions)


@pytest.mark.parametrize('high', [[1, np.inf, 1], [1, -1, 1]])
def test_action_spaces_without_bounds_are_refused(make_online, high):
    unit = make_online()
    with pytest.raises(ValueError, match='finite bounds'):
        OnlineAgent(unit.offline, -np.ones(ACTION_DIM), np.array(high), unit.config)


# -------------------------------------------------------------------------------------------------------- plan
@pytest.fixture
def planning(make_watched, make_dataset):
    """An agent whose action says where z' lies, with a map of the random walks."""
    agent = make_watched(1)
    agent.build_map(make_dataset((60, 60, 60)))
    return agent


def heads_for(agent, targets):
    """What `make_watched` makes of direction for the states `targets` (B, S)."""
    return np.clip(0.01 * agent.encoder.place(torch.from_numpy(targets)).numpy(), -1, 1)


def test_hop_says_how_far_ahead_the_map_looks(make_online, make_dataset):
    data = make_dataset((60, 60, 60))
    agent = make_online(hop=20)
    agent.build_map(data)
    assert agent.state_map.hop == 20

    agent.config.hop = 60
    with pytest.raises(ValueError, match='--waypoint_steps 60: the longest trajectory of the data has 59 steps'):
        agent.build_map(data)


def test_plan_is_the_place_of_the_next_node(planning, make_dataset):
    agent = planning
    data = make_dataset((60, 60, 60))
    observations, goals = data.observations[[0, 60]], data.observations[[59, 119]]
    route = agent.state_map.routes(goals)[np.arange(2), agent.state_map.locate(observations)]
    assert (route >= 0).all(), 'a trajectory leads from its start to its end'

    actions, state = agent.act(observations, goals, agent.initial_state(2))
    expected = heads_for(agent, agent.state_map.states[route])
    np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-5)
    again, _ = agent.act(observations, goals, state)  # the goals are known by now
    assert np.array_equal(again, actions)


def test_what_an_episode_heads_for_is_forgotten_with_it(make_watched):
    """A target is kept over steps; a new episode and a new goal begin without one, whatever other rows do."""
    agent = make_watched(1)
    centers = np.zeros((4, DIM), np.float32)
    centers[:, 0] = [0, 1, 5, 9]  # from 1 the way leads back to 0, and from there to 5
    edges = {'sources': np.array([0, 1, 2]), 'targets': np.array([2, 0, 3]), 'costs': np.full(3, 10, np.float32)}
    none = np.zeros(0, int)
    agent.state_map = StateMap(np.zeros(DIM, np.float32), np.ones(DIM, np.float32), centers, centers, 1.0, **edges,
                               near_sources=none, near_targets=none, hop=10)
    goals = centers[[3, 3, 3]]
    back, on = heads_for(agent, centers[[0, 2]])

    actions, begun = agent.act(centers[[0, 0, 0]], goals, agent.initial_state(3))
    np.testing.assert_allclose(actions, [on, on, on], atol=1e-6)

    state = agent.reset_state(begun, np.array([True, False, False]))
    actions, _ = agent.act(centers[[1, 1, 1]], goals, state)
    np.testing.assert_allclose(actions, [back, on, on], atol=1e-6)

    goals[1] += 0.1
    actions, _ = agent.act(centers[[1, 1, 1]], goals, begun)
    np.testing.assert_allclose(actions, [on, back, on], atol=1e-6)


def test_plan_ends_in_the_goal_itself(planning, make_dataset):
    data = make_dataset((60, 60, 60))
    observations = data.observations[[30, 90]]
    goals = observations + np.float32(1e-3)
    actions, _ = planning.act(observations, goals, planning.initial_state(2))
    np.testing.assert_allclose(actions, heads_for(planning, goals), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('where', ['no way', 'state off the map', 'goal off the map', 'switched off'])
def test_without_a_path_the_proposer_decides(planning, make_dataset, where):
    data = make_dataset((60, 60, 60))
    observations, goals = data.observations[[0]], data.observations[[59]]
    if where == 'no way':  # trajectories are walked in one direction
        observations, goals = goals, observations
        assert planning.state_map.routes(goals)[0][planning.state_map.locate(observations)[0]] == -1
    elif where == 'state off the map':
        observations = observations + 1e4
    elif where == 'goal off the map':
        goals = goals + 1e4
    else:
        planning.config.plan = False
    actions, _ = planning.act(observations, goals, planning.initial_state(1))
    z, z_goal = (planning.encoder.encode_features(torch.from_numpy(np.float32(a))) for a in (observations, goals))
    proposed = planning.acting['proposer'](z, z_goal).detach()[:, :DIM].numpy()
    expected = np.clip(0.01 * proposed, -1, 1)
    np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-5)


def test_exploration_biases_plans_as_well(planning, make_dataset):
    data = make_dataset((60, 60, 60))
    observations, goals = data.observations[np.zeros(40, int)], data.observations[np.full(40, 59)]
    plain, _ = planning.act(observations, goals, planning.initial_state(40))
    rng = np.random.default_rng(0)
    actions, state = planning.act(observations, goals, planning.initial_state(40), epsilon=0.5, rng=rng)
    assert 5 < state.biased.sum() < 35
    np.testing.assert_array_equal(np.any(actions != plain, 1), state.biased)


def test_plan_and_map_survive_a_checkpoint(make_online, make_dataset, tmp_path):
    agent = make_online()
    data = make_dataset((60, 60, 60))
    agent.build_map(data)
    save_checkpoint(tmp_path / 'last.pth', {'kind': 'online', 'dataset': '', 'agent': agent.state_dict()})
    loaded = OnlineAgent.from_state_dict(load_checkpoint(tmp_path / 'last.pth', 'online')['agent'])
    assert loaded.plans
    observations, goals = data.observations[[0, 60]], data.observations[[59, 119]]
    assert np.array_equal(*(a.act(observations, goals, a.initial_state(2))[0] for a in (agent, loaded)))
    older = agent.state_dict()
    del older['map']
    assert not OnlineAgent.from_state_dict(older).plans


def test_memory_plans_as_well(make_watched, make_dataset):
    """A node is a place, which needs no past."""
    agent = make_watched(1, memory=True)
    data = make_dataset((60, 60, 60))
    agent.build_map(data)
    observations, goals = data.observations[[0]], data.observations[[59]]
    actions, _ = agent.act(observations, goals, agent.initial_state(1))
    route = agent.state_map.routes(goals)[0, agent.state_map.locate(observations)]
    np.testing.assert_allclose(actions, heads_for(agent, agent.state_map.states[route]), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ checkpoints
def test_the_next_update_after_a_checkpoint_is_bitwise_the_same(
        either_agent, make_batches, states, assert_same, tmp_path):
    agent, rng = either_agent, np.random.default_rng(0)
    batches = make_batches(agent)
    for _ in range(3):
        agent.update(batches.sample(rng))
    save_checkpoint(tmp_path / 'last.pth', {'kind': 'online', 'dataset': '', 'agent': agent.state_dict()})
    torch.manual_seed(99)  # fresh networks must not depend on it
    loaded = OnlineAgent.from_state_dict(load_checkpoint(tmp_path / 'last.pth', 'online')['agent'])
    assert loaded.config == agent.config and loaded.step == 3 and loaded.action_dim == ACTION_DIM
    assert_same(snapshot(loaded), snapshot(agent))
    again = loaded.open_batches(batches.offline_store.dataset, batches.online_store.dataset)
    for seed in (1, 2):  # one update without Q, V and proposer, one with them
        assert_same(agent.update(batches.sample(np.random.default_rng(seed))),
                    loaded.update(again.sample(np.random.default_rng(seed))))
    assert_same(snapshot(loaded), snapshot(agent))
    observations, goals = states(4), states(4, seed=1)
    assert np.array_equal(*(a.act(observations, goals, a.initial_state(4))[0] for a in (agent, loaded)))


def test_a_shrunk_checkpoint_acts_like_the_whole_one(
        either_agent, make_batches, make_replay, states, tmp_path, monkeypatch):
    agent, small = either_agent, tmp_path / 'small.pth'
    batches = make_batches(agent)
    for seed in range(5):  # averages and what they are averages of differ
        agent.update(batches.sample(np.random.default_rng(seed)))
    save_checkpoint(tmp_path / 'last.pth', {'kind': 'online', 'dataset': 'a', 'data': {}, 'agent': agent.state_dict(),
                                            'replay': make_replay((40,)).state_dict()})
    monkeypatch.setattr('sys.argv', ['', '--checkpoint', str(tmp_path / 'last.pth'), '--output', str(small)])
    shrink_checkpoint.main()
    loaded = OnlineAgent.from_state_dict(load_checkpoint(small, 'online')['agent'])
    observations, goals = states(64), states(64, seed=1)
    actions = [a.act(observations, goals, a.initial_state(64))[0] for a in (agent, loaded)]
    np.testing.assert_allclose(*actions, atol=0.01)
    assert actions[0].std() > 0.05
    assert small.stat().st_size < 0.35 * (tmp_path / 'last.pth').stat().st_size


def test_place_is_what_the_proposer_sees(make_agent):
    agent = make_agent()
    encoder = agent.encoder
    states = np.random.default_rng(0).standard_normal((5, encoder.mean.numel())).astype(np.float32)
    expected = (torch.from_numpy(states) - encoder.mean) / encoder.std * encoder.slowness
    mean, scale = agent.goal_feature_affine()
    np.testing.assert_allclose((states - mean) * scale, expected.numpy(), rtol=1e-5)
    torch.testing.assert_close(encoder.place(torch.from_numpy(states)), expected, rtol=1e-5, atol=1e-6)
