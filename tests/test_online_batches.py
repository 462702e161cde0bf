"""Batches of the online half: which steps they hold, and the latents that come with them."""

import numpy as np
import pytest
import torch

from labeling import online_batches
from labeling.online_batches import OnlineBatches, StateStore

ACTION_DIM, STEPS, D = 3, 4, 32


@pytest.fixture
def large(make_online, make_dataset, make_replay):
    """-> (TrajectoryDataset, OnlineBatches of 3,000 of its steps)."""
    agent = make_online(batch_size=250, progress_steps=3, stay='yes')
    data = make_dataset()
    return data, agent.open_batches(data, make_replay((40, 8, 25)))


def test_steps_of_the_offline_data(large):
    data, batches = large
    batch = batches.offline_steps.draw(3000, np.random.default_rng(0))
    rows = batch.rows.numpy()
    end = data.end_of[rows]
    assert {len(value) for value in vars(batch).values()} == {3000}
    assert set(rows) == set(data.transition_rows) and (rows < end).all()
    assert np.array_equal(batch.states, data.observations[rows])
    assert torch.equal(batch.policy_states, batch.states)
    assert np.array_equal(batch.progress_states, data.observations[np.minimum(rows + 3, end)])
    assert not batch.actions.any() and batch.actions.shape == (3000, ACTION_DIM), 'nothing is labeled yet'


def test_batches_repeat_with_their_generator(large, assert_same):
    _, batches = large
    first, second = (batches.sample(np.random.default_rng(0)) for _ in range(2))
    assert_same(vars(first), vars(second))


def test_batches_hold_steps_of_data_and_replay_equally_often(large):
    data, batches = large
    replay = batches.online_store.dataset
    batch = batches.sample(np.random.default_rng(0))
    assert {len(value) for value in vars(batch).values()} == {3000}

    own = batch.rows.numpy() == -1
    share = len(replay.transition_rows) / (len(replay.transition_rows) + len(data.transition_rows))
    assert own.mean() == pytest.approx(share, abs=0.02)
    assert np.array_equal(batch.states[~own], data.observations[batch.rows[~own]])

    # own steps have the actions that were taken, and latents of their states
    known = {state.tobytes(): action for state, action in zip(replay.observations, replay.actions, strict=True)}
    for state, action in zip(batch.states[own].numpy(), batch.actions[own].numpy(), strict=True):
        assert np.array_equal(known[state.tobytes()], action)
    agent = batches.agent
    torch.testing.assert_close(batch.z, agent.encoder.encode_features(batch.states))
    torch.testing.assert_close(batch.state_latents, agent.encode_policy_states(batch.states))


def test_own_steps_follow_the_replay(large, states):
    data, batches = large
    replay = batches.online_store.dataset
    before = len(batches.own_steps.rows)
    dropped = replay.add(states(50, seed=9), np.ones((49, ACTION_DIM), np.float32))
    batches.refresh(dropped)
    assert len(batches.own_steps.rows) == before + 49
    assert batches.num_steps == len(data.transition_rows) + before + 49


def test_subgoals_lie_3_to_k_steps_ahead_or_at_the_end(large):
    data, batches = large
    batch = batches.offline_steps.draw(3000, np.random.default_rng(0))
    rows = batch.rows.numpy()
    candidates = [data.observations[np.minimum(rows + n, data.end_of[rows])] for n in range(1, STEPS + 2)]
    hits = np.stack([np.all(batch.subgoal_states.numpy() == states, 1) for states in candidates])
    inside = rows + STEPS + 1 <= data.end_of[rows]
    shares = hits[:, inside].mean(1)
    assert shares[[0, 1, -1]].max() == 0, 'nearer than progress is measured, or further than k'
    assert shares[2:STEPS].min() > 0.4 and shares.sum() == 1
    assert hits[:, ~inside].any(0).all()
    later = data.observations[rows + batch.steps_to_subgoal.numpy().astype(int)]
    assert np.array_equal(batch.subgoal_states, later)


def test_online_steps_are_all_pairs_of_states_of_the_replay(large):
    _, batches = large
    replay = batches.online_store.dataset
    steps, actions = batches.online_steps()
    assert len(steps) == 40 + 8 + 25 - 3
    assert np.array_equal(steps, replay.observations[replay.transition_rows[:, None] + np.arange(2)])
    assert np.array_equal(actions, replay.actions[replay.transition_rows])


def test_online_steps_follow_a_replay_that_drops_episodes(agent, make_dataset, make_replay, states):
    replay = make_replay((12,), capacity=60)
    batches = OnlineBatches(agent, make_dataset(), replay)
    for lengths in ((14,), (5, 20), (), (2, 13, 9), (31,), (40, 11)):
        dropped = sum(replay.add(states(n, seed=n), np.zeros((n - 1, ACTION_DIM))) for n in lengths)
        batches.refresh(dropped)
        steps, actions = batches.online_steps()
        assert len(steps) == len(actions) == len(replay.transition_rows)


def test_cached_latents_are_those_computed_for_a_batch(agent, make_dataset, monkeypatch):
    data = make_dataset()
    cached = StateStore(data, agent)
    monkeypatch.setattr(online_batches, 'CACHE_BYTES', 0)
    computed = StateStore(data, agent)
    assert cached.caches_z and cached.caches_state_latents and not computed.caches_z
    rows = np.random.default_rng(0).integers(len(data), size=50)
    states = torch.from_numpy(data.observations[rows])
    for store in cached, computed:
        z = store.z(rows, states)
        torch.testing.assert_close(z, agent.encoder.encode_features(states), rtol=1e-4, atol=1e-5)
        latents = store.state_latents(rows, states)
        torch.testing.assert_close(latents, agent.encode_policy_states(states), rtol=1e-4, atol=1e-5)


def test_batches_without_a_cache_have_the_same_latents(make_online, make_dataset, make_replay, monkeypatch):
    agent, data, replay = make_online(), make_dataset(), make_replay((40, 8, 25))
    cached = agent.open_batches(data, replay).sample(np.random.default_rng(0))
    monkeypatch.setattr(online_batches, 'CACHE_BYTES', 0)
    computed = agent.open_batches(data, replay).sample(np.random.default_rng(0))
    assert torch.equal(cached.rows, computed.rows)
    for name in ('z', 'state_latents'):
        torch.testing.assert_close(getattr(cached, name), getattr(computed, name), rtol=1e-4, atol=1e-5)


def test_large_data_are_not_cached(agent, make_dataset, monkeypatch):
    data = make_dataset()
    size = 4 * D * len(data)
    assert StateStore(data, agent).caches_state_latents
    monkeypatch.setattr(online_batches, 'CACHE_BYTES', size)
    assert StateStore(data, agent).caches_z and not StateStore(data, agent).caches_state_latents
    monkeypatch.setattr(online_batches, 'CACHE_BYTES', size - 1)
    assert not StateStore(data, agent).caches_z


def test_the_encoder_sees_few_sizes_of_batches(agent, make_dataset, monkeypatch):
    """oneDNN compiles a product for each new number of rows, and keeps it."""
    sizes = set()
    encode = agent.encoder.encode_features
    monkeypatch.setattr(agent.encoder, 'encode_features', lambda states: sizes.add(len(states)) or encode(states))
    for lengths in ((2, 40), (77,), (128,), (129,), (200,)):
        StateStore(make_dataset(lengths), agent)
    assert sizes == {128, 256}
