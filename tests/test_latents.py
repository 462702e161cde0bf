"""Cached latents: those of acting, kept up to date, and the batches drawn from them."""

import copy

import numpy as np
import pytest
import torch

from latents import LatentStore

ACTION_DIM, STEPS, D = 3, 4, 32


@pytest.mark.parametrize('capacity', [1000, 60])
def test_refreshing_equals_encoding_from_scratch(either_agent, make_replay, capacity, states):
    agent = either_agent
    rng, replay, lost = np.random.default_rng(0), make_replay((), capacity), 0
    store = LatentStore(replay, agent)
    assert len(store.z) == 0
    for lengths in ((14,), (5, 20), (), (2, 13, 9), (31,), (40, 11)):
        dropped = sum(replay.add(states(n, seed=n), rng.uniform(-1, 1, (n - 1, ACTION_DIM))) for n in lengths)
        store.refresh(dropped)
        lost += dropped
        scratch = LatentStore(replay, agent)
        assert len(store.z) == len(store.z_goal) == len(replay)
        torch.testing.assert_close(store.z, scratch.z, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(store.z_goal, scratch.z_goal, rtol=1e-5, atol=1e-5)
        assert (store.z.square().mean(-1) > 0.5).all()  # normalised latents: no row was left out
    assert (lost > 0) == (capacity == 60)


def test_refreshing_after_an_episode_that_came_and_went(either_agent, make_replay, states):
    agent = either_agent
    replay = make_replay((12,), capacity=20)
    store = LatentStore(replay, agent)
    store.refresh(sum(replay.add(states(n, seed=n), np.zeros((n - 1, ACTION_DIM))) for n in (15, 10)))
    scratch = LatentStore(replay, agent)
    torch.testing.assert_close(store.z, scratch.z)
    torch.testing.assert_close(store.z_goal, scratch.z_goal)


def test_lengths_of_episodes_do_not_multiply_the_sizes_of_matrices(make_online, make_replay, monkeypatch, states):
    agent, replay = make_online(), make_replay(())
    store, sizes = LatentStore(replay, agent), set()
    encode_goal = agent.encoder.encode_goal
    monkeypatch.setattr(agent.encoder, 'encode_goal', lambda states: sizes.add(len(states)) or encode_goal(states))
    for n in (2, 40, 77, 128, 129, 200):
        replay.add(states(n, seed=n), np.zeros((n - 1, ACTION_DIM), np.float32))
    store.refresh()
    assert sizes == {128, 256} and len(store.z) == len(replay)


def test_refreshing_encodes_new_rows_only(either_agent, make_replay, monkeypatch, states):
    encoder, replay = either_agent.encoder, make_replay((30, 30))
    store, encoded = LatentStore(replay, either_agent), []

    def watch(function):
        def watched(observations):
            encoded.append(observations.flatten(0, -2))
            return function(observations)
        return watched

    for name in ('forward', 'encode_goal'):
        monkeypatch.setattr(encoder, name, watch(getattr(encoder, name)))
    new = states(20, seed=5)
    replay.add(new, np.zeros((19, ACTION_DIM), np.float32))
    store.refresh()
    rows, padding = {tuple(row) for row in torch.cat(encoded).tolist()}, (0,) * new.shape[1]
    assert rows - {padding} == {tuple(row) for row in new.tolist()}


@pytest.mark.parametrize('context', [12, 7, 3, 2, 1])
def test_cached_histories_are_those_of_steps(make_agent, make_online, make_dataset, context):
    agent = make_online(offline=make_agent(head_memory='history', context_length=context))
    encoder, data = agent.encoder, make_dataset(context_length=context)
    store = LatentStore(data, agent)
    for start, end in zip(data.starts, data.ends, strict=True):
        state = encoder.initial_state(1)
        for row in range(start, end + 1):
            z, state = encoder.step(torch.from_numpy(data.observations[row:row + 1]), state)
            torch.testing.assert_close(store.z[row], z[0], rtol=1e-4, atol=1e-4, msg=f'row {row - start}')


@pytest.fixture(params=['offline', 'own'])
def tagged_store(request, stores):
    """A store whose latents are their row numbers, and 1,000 more as goals."""
    store = stores[request.param == 'own']
    rows = torch.arange(len(store.dataset), dtype=torch.float32)[:, None].expand(-1, D)
    store.z, store.z_goal = rows.clone(), rows + 1000
    return store


def test_samples_are_transitions_of_one_trajectory(tagged_store):
    data, batch = tagged_store.dataset, tagged_store.sample(3000, np.random.default_rng(0))
    rows, later, ahead, goal, proposer_goal = (
        batch[name][:, 0].numpy().astype(int) for name in ('z', 'z_next', 'z_ahead', 'z_goal', 'proposer_goal'))
    end = data.end_of[rows]
    assert set(rows) == set(data.origins)
    assert (rows < end).all() and np.array_equal(batch['states'], data.observations[rows])
    assert np.array_equal(batch['next_states'], data.observations[rows + 1])
    assert (later == np.minimum(rows + STEPS, end)).all()
    assert goal.min() >= 1000 and proposer_goal.min() >= 1000
    future, near = batch['future'].numpy(), batch['proposer_near'].numpy()
    assert (goal[future] - 1000 > rows[future]).all() and (goal[future] - 1000 <= end[future]).all()
    assert (goal[batch['at_goal']] - 1000 == rows[batch['at_goal']]).all()
    is_goal = ahead >= 1000  # the goal comes first, and is what one step of the policy shall reach
    assert 100 < is_goal.sum() < 1500 and near[is_goal].all()
    assert (ahead[is_goal] == proposer_goal[is_goal]).all()
    place = np.where(is_goal, ahead - 1000, ahead)
    assert (rows < place).all() and (place <= np.minimum(rows + STEPS, end)).all()
    assert set((place - rows)[~is_goal]) == set(range(1, STEPS + 1))
    passed = near & ~is_goal  # the goal lies behind z_ahead
    assert passed.sum() > 100 and (proposer_goal[passed] - 1000 > ahead[passed]).all()


def test_samples_have_the_agents_own_actions_only(tagged_store):
    batch, data = tagged_store.sample(200, np.random.default_rng(0)), tagged_store.dataset
    assert batch['own'].dtype == torch.bool and batch['actions'].shape == (200, ACTION_DIM)
    assert batch['actions'].dtype == torch.float32
    if hasattr(data, 'actions'):
        assert batch['own'].all()
        assert np.array_equal(batch['actions'], data.actions[batch['z'][:, 0].int()])
        steps = tagged_store.sample_steps(2000, np.random.default_rng(1))
        row_of = {tuple(state): row for row, state in enumerate(data.observations[:len(data)].tolist())}
        rows = np.array([row_of[tuple(state)] for state in steps['own_states'].tolist()])
        assert set(rows) == set(data.origins) and len(row_of) == len(data)
        assert np.array_equal(steps['own_next_states'], data.observations[rows + 1])
        assert np.array_equal(steps['own_actions'], data.actions[rows])
    else:
        assert not batch['own'].any() and not batch['actions'].any()


def test_cached_embeddings_change_nothing(make_online, make_dataset, make_replay, states):
    """With value_interval 0, V's embeddings come from the store; the loss is that of embedding them anew."""
    agent, replay = make_online(value_interval=0), make_replay((40, 8))
    stores = LatentStore(make_dataset(), agent), LatentStore(replay, agent)
    replay.add(states(30), np.zeros((29, ACTION_DIM), np.float32))
    stores[1].refresh()
    batch = agent.sample(*stores, np.random.default_rng(0))
    cached = [name for name in batch if name.startswith('e_')]
    assert len(cached) == 4 and batch['own'].any() and not batch['train_values']
    loss, info = agent.total_loss(batch)
    again, other = agent.total_loss({name: value for name, value in batch.items() if name not in cached})
    torch.testing.assert_close(loss, again, rtol=1e-5, atol=1e-6)
    assert info.keys() == other.keys()
    before = copy.deepcopy(agent.offline.nets.state_dict())
    agent.update(batch)
    assert all(torch.equal(p, before[name]) for name, p in agent.offline.nets.state_dict().items()
               if not name.startswith('proposer'))
