"""Cached latents: those of acting, kept up to date, and the batches drawn from them."""

import copy

import numpy as np
import pytest
import torch

import online_batches
from online_batches import OnlineBatches

ACTION_DIM, STEPS, D = 3, 4, 32


@pytest.mark.parametrize('capacity', [1000, 60])
def test_refreshing_equals_encoding_from_scratch(either_agent, make_replay, capacity, states):
    agent = either_agent
    rng, replay, lost = np.random.default_rng(0), make_replay((), capacity), 0
    store = agent.latent_store(replay)
    assert len(store.z) == 0
    for lengths in ((14,), (5, 20), (), (2, 13, 9), (31,), (40, 11)):
        dropped = sum(replay.add(states(n, seed=n), rng.uniform(-1, 1, (n - 1, ACTION_DIM))) for n in lengths)
        store.refresh(dropped)
        lost += dropped
        scratch = agent.latent_store(replay)
        assert len(store.z) == len(replay)
        torch.testing.assert_close(store.z, scratch.z, rtol=1e-5, atol=1e-5)
        assert (store.z.square().mean(-1) > 0.5).all()  # normalised latents: no row was left out
    assert (lost > 0) == (capacity == 60)


def test_refreshing_after_an_episode_that_came_and_went(either_agent, make_replay, states):
    agent = either_agent
    replay = make_replay((12,), capacity=20)
    store = agent.latent_store(replay)
    store.refresh(sum(replay.add(states(n, seed=n), np.zeros((n - 1, ACTION_DIM))) for n in (15, 10)))
    scratch = agent.latent_store(replay)
    torch.testing.assert_close(store.z, scratch.z)


def test_lengths_of_episodes_do_not_multiply_the_sizes_of_matrices(make_online, make_replay, monkeypatch, states):
    agent, replay = make_online(), make_replay(())
    store, sizes = agent.latent_store(replay), set()
    encode_features = agent.encoder.encode_features
    monkeypatch.setattr(agent.encoder, 'encode_features', lambda states: sizes.add(len(states)) or encode_features(states))
    for n in (2, 40, 77, 128, 129, 200):
        replay.add(states(n, seed=n), np.zeros((n - 1, ACTION_DIM), np.float32))
    store.refresh()
    assert sizes == {128, 256} and len(store.z) == len(replay)


def test_refreshing_encodes_new_rows_only(either_agent, make_replay, monkeypatch, states):
    encoder, replay = either_agent.encoder, make_replay((30, 30))
    store, encoded = either_agent.latent_store(replay), []

    def watch(function):
        def watched(observations):
            encoded.append(observations.flatten(0, -2))
            return function(observations)
        return watched

    for name in ('forward', 'encode_features'):
        monkeypatch.setattr(encoder, name, watch(getattr(encoder, name)))
    new = states(20, seed=5)
    replay.add(new, np.zeros((19, ACTION_DIM), np.float32))
    store.refresh()
    rows, padding = {tuple(row) for row in torch.cat(encoded).tolist()}, (0,) * new.shape[1]
    assert rows - {padding} == {tuple(row) for row in new.tolist()}


class TaggedStore:
    """Latents are row numbers."""

    device = torch.device('cpu')

    def __init__(self, dataset):
        self.dataset = dataset

    def states(self, rows):
        return torch.from_numpy(self.dataset.observations[rows])

    steps = online_batches.LatentStore.steps
    policy_states = online_batches.LatentStore.policy_states
    transition_rows = online_batches.LatentStore.transition_rows
    observed_pairs = online_batches.LatentStore.observed_pairs
    imputed = None
    next_rest = None

    def read(self, rows):
        return torch.from_numpy(rows).float()[:, None]

    read_state_latents = read
    keeps_state_latents = True


@pytest.fixture(params=[0.0, 1.0], ids=['offline', 'online'])
def tagged(request, make_dataset, make_replay):
    """-> (the dataset that all of a batch comes from, OnlineBatches of 3,000 of its transitions)."""
    stores = TaggedStore(make_dataset()), TaggedStore(make_replay((40, 8, 25)))
    batches = OnlineBatches(*stores, size=3000, action_dim=ACTION_DIM, online_share=request.param, progress_steps=3,
                            embed=lambda z: z[None])
    return stores[int(request.param)].dataset, batches


def test_samples_are_transitions_of_one_trajectory(tagged):
    data, batches = tagged
    batch = batches.sample(np.random.default_rng(0))
    latents = batch.latents
    rows, later, goal, proposer_goal = (
        value[:, 0].numpy().astype(int)
        for value in (batch.z, latents.z_next, latents.z_goal, latents.proposer_goal))
    end = data.end_of[rows]
    assert set(rows) == set(data.transition_rows) and np.array_equal(batch.rows, rows)
    assert (rows < end).all() and np.array_equal(batch.states, data.observations[rows])
    assert (later == np.minimum(rows + STEPS, end)).all()
    assert np.array_equal(batch.progress_states, data.observations[np.minimum(rows + 3, end)])
    assert len(set(goal)) > 1 and np.array_equal(batch.goal_states, data.observations[proposer_goal])

    assert latents.z is batch.z and latents.target_z is batch.z
    for name in ('z', 'z_next', 'z_goal', 'proposer_goal'):
        assert torch.equal(getattr(latents, f'e_{name}')[0], getattr(latents, name))


def test_what_lies_ahead_is_3_to_k_steps_on_or_the_end(tagged):
    data, batches = tagged
    batch = batches.sample(np.random.default_rng(0))
    rows = batch.rows.numpy()
    candidates = [data.observations[np.minimum(rows + n, data.end_of[rows])] for n in range(1, STEPS + 2)]
    hits = np.stack([np.all(batch.subgoal_states.numpy() == states, 1) for states in candidates])
    inside = rows + STEPS + 1 <= data.end_of[rows]
    shares = hits[:, inside].mean(1)
    assert shares[[0, 1, -1]].max() == 0, 'nearer than progress is measured, or further than k'
    assert shares[2:STEPS].min() > 0.4 and shares.sum() == 1
    assert hits[:, ~inside].any(0).all()


def test_samples_have_the_agents_own_actions_only(tagged):
    data, batches = tagged
    batch = batches.sample(np.random.default_rng(0))
    assert batch.is_online.dtype == torch.bool and batch.actions.shape == (3000, ACTION_DIM)
    assert batch.actions.dtype == torch.float32
    if batches.online_share:
        assert batch.is_online.all() and np.array_equal(batch.actions, data.actions[batch.rows])
    else:
        assert not batch.is_online.any() and not batch.actions.any()


def test_own_steps_are_all_pairs_of_states_of_the_replay(tagged):
    _, batches = tagged
    own = batches.online_store.dataset
    steps, actions = batches.own_steps()
    assert len(steps) == 40 + 8 + 25 - 3
    assert np.array_equal(steps, own.observations[own.transition_rows[:, None] + np.arange(2)])
    assert np.array_equal(actions, own.actions[own.transition_rows])


def test_what_is_kept_changes_nothing(either_agent, make_dataset):
    """Latents from the cache are those that are computed for each batch."""
    data = make_dataset()
    kept, fresh = either_agent.latent_store(data, cached=True), either_agent.latent_store(data, cached=False)
    assert kept.cached and not fresh.cached
    rows = np.random.default_rng(0).integers(len(data), size=50)
    torch.testing.assert_close(kept.read(rows), fresh.read(rows), rtol=1e-4, atol=1e-5)
    states = torch.from_numpy(data.observations[rows])
    torch.testing.assert_close(kept.read(rows), either_agent.encoder.encode_features(states), rtol=1e-4, atol=1e-5)

    if either_agent.config.memory:
        assert kept.read_state_latents(rows) is None and fresh.read_state_latents(rows) is None
        return
    assert kept.keeps_state_latents and not fresh.keeps_state_latents
    for store in kept, fresh:
        torch.testing.assert_close(store.read_state_latents(rows), either_agent.encode_seen(states), rtol=1e-4, atol=1e-5)


def test_an_update_reads_what_is_kept(make_online, make_dataset, make_replay):
    agent = make_online(online_share=0.25)
    batch = agent.open_batches(make_dataset(), make_replay((40, 8, 25))).sample(np.random.default_rng(0))
    assert batch.is_online.any() and not batch.is_online.all()
    torch.testing.assert_close(agent.remember(batch), agent.encode_seen(batch.policy_states), rtol=1e-4, atol=1e-5)


def test_what_is_not_kept_is_computed_where_it_is_read(make_online, make_dataset, make_replay, monkeypatch):
    monkeypatch.setattr(online_batches, 'CACHE_BYTES', 0)
    agent = make_online(online_share=0.25)
    batch = agent.open_batches(make_dataset(), make_replay((40, 8, 25))).sample(np.random.default_rng(0))
    assert batch.full is None
    torch.testing.assert_close(agent.remember(batch), agent.encode_seen(batch.policy_states))


def test_windows_cover_all_transitions(make_dataset, make_replay):
    """All rows that have a next state are drawn, as often on average; windows end where trajectories do."""
    stores = TaggedStore(make_dataset()), TaggedStore(make_replay((40, 8, 25)))
    batches = OnlineBatches(*stores, size=12 * 400, action_dim=ACTION_DIM, window=12)
    batch = batches.sample(np.random.default_rng(0))
    data, rows = stores[0].dataset, batch.rows.numpy()
    assert batch.windows.shape[:2] == batch.positions.shape == (400, 12) and set(rows) == set(data.transition_rows)
    firsts = rows - batch.positions.numpy().ravel()
    assert np.array_equal(data.end_of[firsts], data.end_of[rows])
    assert np.array_equal(batch.windows[:, 0], data.observations[firsts.reshape(400, 12)[:, 0]])
    assert np.array_equal(batch.states, data.observations[rows]) and (rows < data.end_of[rows]).all()


def test_large_data_are_not_kept(make_online, make_dataset, monkeypatch):
    agent, data = make_online(), make_dataset()
    assert agent.latent_store(data).keeps_state_latents
    size = 4 * D * len(data)
    monkeypatch.setattr(online_batches, 'CACHE_BYTES', size)
    assert agent.latent_store(data).cached and not agent.latent_store(data).keeps_state_latents
    monkeypatch.setattr(online_batches, 'CACHE_BYTES', size - 1)
    assert not agent.latent_store(data).cached and not agent.latent_store(data).keeps_state_latents


def test_an_update_with_resting_values_leaves_them(make_online, make_batches):
    agent = make_online(value_interval=0)
    before = copy.deepcopy(agent.offline.nets.state_dict())
    agent.update(make_batches(agent).sample(np.random.default_rng(0)))
    assert all(torch.equal(p, before[name]) for name, p in agent.offline.nets.state_dict().items())
