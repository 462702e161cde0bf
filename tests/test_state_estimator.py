"""State estimation for dropped observations: detection, prediction, imputation and training."""

import dataclasses

import measure_estimates
import numpy as np
import pytest
import torch

from observing.observation_models import ObservationModel
from observing.state_estimator import EncoderPrediction, ImputedStates, LastObservation, find_received
from offline_agent import at_positions
from support.files import save_checkpoint

CONTEXT = 12  # context length of the tiny networks
LENGTHS = 1, 2, 5, CONTEXT - 1, CONTEXT, CONTEXT + 1, CONTEXT + 7, 2 * CONTEXT, 40  # of trajectories


@pytest.fixture
def dropout_agent(make_agent):
    agent = make_agent()
    agent.has_dropout = True
    return agent


@pytest.fixture
def dropout_data(make_dataset):
    """dropout_data(lengths) -> TrajectoryDataset of random walks, half of whose observations are dropped."""

    def make(lengths=(40, 2, 23, 9, 31), drop_rate=0.5):
        data = make_dataset(lengths)
        model = ObservationModel('dropped', drop_rate=drop_rate)
        data.observations = model.observe_trajectories(data.observations, data.starts, data.ends, seed=3)
        return data

    return make


def test_find_received_rejects_repeated_rows():
    rows = np.array([[1, 2], [1, 2], [1, 3], [1, 3], [1, 3], [4, 4]])
    assert find_received(rows, np.array([0, 4])).tolist() == [True, False, True, False, True, True]


@pytest.mark.parametrize('length', LENGTHS)
@pytest.mark.parametrize('context', [CONTEXT, 7, 2, 1])
def test_encoder_prediction_predicts_trajectories_as_it_steps(make_agent, dropout_data, context, length):
    agent = make_agent(context_length=context)
    agent.has_dropout = True
    observations = dropout_data((length,)).observations
    estimator = EncoderPrediction(agent)
    predicted = estimator.predict(observations)
    received = find_received(observations, np.array([0]))

    state = estimator.initial_state(2)
    for t, observation in enumerate(observations):
        if t:
            np.testing.assert_allclose(state.predicted[0].detach(), predicted[t], rtol=1e-4, atol=1e-4)
        rows = torch.from_numpy(np.stack([observation, -observation]))  # rows are independent of each other
        estimated, state = estimator.step(rows, state)
        expected = observation if received[t] else predicted[t]
        np.testing.assert_allclose(estimated[0].detach(), expected, rtol=1e-4, atol=1e-4)
    assert (predicted[0] == observations[0]).all()


@pytest.mark.parametrize('length', LENGTHS)
def test_last_observation_returns_observations(dropout_data, length):
    observations = dropout_data((length,)).observations
    estimator = LastObservation()
    predicted = estimator.predict(observations)
    assert (predicted[0] == observations[0]).all() and (predicted[1:] == observations[:-1]).all()

    state = estimator.initial_state(2)
    for observation in observations:
        rows = torch.from_numpy(np.stack([observation, -observation]))
        estimated, state = estimator.step(rows, state)
        assert torch.equal(estimated, rows)
        state = estimator.reset(state, np.array([True, False]))


@pytest.mark.parametrize('as_rows', [np.array, torch.tensor])
def test_encoder_prediction_resets_new_episodes_only(dropout_agent, states, as_rows):
    estimator = EncoderPrediction(dropout_agent)
    state = estimator.initial_state(2)
    for t in range(4):
        _, state = estimator.step(torch.from_numpy(states(2, seed=t)), state)
    state = estimator.reset(state, as_rows([True, False]))

    # a repeated observation is the first one of row 0 and dropped in row 1
    observations = state.observations
    estimated, _ = estimator.step(observations, state)
    assert torch.equal(estimated[0], observations[0]) and not torch.equal(estimated[1], observations[1])


def test_imputed_states_follow_a_replay_buffer(dropout_agent, make_replay, states):
    replay, estimator = make_replay((12,), capacity=50), EncoderPrediction(dropout_agent)
    imputed = ImputedStates(replay, estimator)
    for lengths in ((14,), (20, 9), (), (30, 3)):
        episodes = [(states(n, seed=n).repeat(2, 0)[:n], np.zeros((n - 1, 3))) for n in lengths]
        imputed.refresh(sum(replay.add(*episode) for episode in episodes))
        scratch = ImputedStates(replay, estimator)
        np.testing.assert_array_equal(imputed.predicted, scratch.predicted)
        np.testing.assert_array_equal(imputed.received, scratch.received)
        assert len(imputed.predicted) == len(replay)


def test_imputed_states_estimate_and_drop(dropout_agent, dropout_data):
    data = dropout_data((4000,), drop_rate=0.3)
    imputed = ImputedStates(data, EncoderPrediction(dropout_agent))
    rows = np.arange(len(data))
    estimated = imputed.estimated(rows)
    assert (estimated[imputed.received] == data.observations[imputed.received]).all()
    assert (estimated[~imputed.received] == imputed.predicted[~imputed.received]).all()
    np.testing.assert_array_equal(imputed.estimated(slice(5, 9)), estimated[5:9])

    pairs = imputed.observed_pairs
    received = set(np.flatnonzero(imputed.received))
    assert set(pairs) == {row for row in rows[:-1] if {row, row + 1} <= received}

    policy_states = imputed.drop(pairs, np.random.default_rng(0))
    kept = (policy_states == data.observations[pairs]).all(1)
    assert (policy_states[~kept] == imputed.predicted[pairs][~kept]).all()
    assert abs((~kept).mean() - 0.3) < 0.03


def test_observed_pairs_refuse_data_without_any(dropout_agent, dropout_data):
    data = dropout_data((20,))
    data.observations = data.observations.repeat(2, 0)[:20]
    with pytest.raises(ValueError, match='none of 19 transitions has both observations'):
        print(ImputedStates(data, EncoderPrediction(dropout_agent)).observed_pairs)


def test_state_loss_excludes_dropped_targets(dropout_agent, dropout_data, stub):
    """Compare with the loss by hand of a network that predicts no change."""
    agent = dropout_agent
    batch = dropout_data().sample(6, np.random.default_rng(0))
    agent.nets['next_state'] = stub(lambda z: torch.zeros(*z.shape[:-1], 5))
    loss = agent.state_loss(agent.encode(batch), batch)[0]

    normal = agent.encoder.normalize(batch.observations)
    change = (normal[:, 1:] - normal[:, :-1]).square().mean(-1)
    counts = batch.valids[:, 1:] & (change > 0)
    everywhere = change[:, :CONTEXT][counts[:, :CONTEXT]].mean()
    at_sampled = at_positions(torch.stack([change, counts.float()], -1), batch.positions)
    sampled = at_sampled[..., 0][at_sampled[..., 1] > 0].mean()
    assert loss.item() == pytest.approx((everywhere + sampled).item() / 2, rel=1e-5)


def test_encoder_with_memory_predicts_oscillations_better_than_mlp(make_agent, make_dataset):
    """Half of the observations are dropped; the direction of motion follows from several of them only."""
    data = make_dataset((200,) * 20)
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 2 * np.pi, (20, 1, 5))
    angle = phase + 0.2 * np.arange(200)[:, None]
    positions = 10 * np.sin(angle).reshape(-1, 5).astype(np.float32)
    model = ObservationModel('', drop_rate=0.5)
    data.observations = model.observe_trajectories(positions, data.starts, data.ends, seed=0)

    errors = {}
    for kind in ('mamba', 'mlp'):
        agent = make_agent(encoder=kind, lr=3e-3)
        agent.set_statistics(*data.statistics(), np.ones(5), has_dropout=True)
        for _ in range(300):
            batch = data.sample(16, rng)
            agent.apply_gradient(agent.state_loss(agent.encode(batch), batch)[0])
        imputed = ImputedStates(data, EncoderPrediction(agent))
        errors[kind] = np.square(imputed.predicted - positions)[~imputed.received].mean()
    assert errors['mamba'] < 0.7 * errors['mlp']


# ---------------------------------------------------------------------------------------------- online agent
def test_batches_use_estimated_states(make_online, dropout_agent, dropout_data, make_replay):
    data = dropout_data()
    agent = make_online(offline=dropout_agent, data=data)
    batches = agent.open_batches(data, make_replay((40, 25)))
    batch = batches.offline_steps.draw(batches.size, np.random.default_rng(0))
    imputed = batches.offline_store.source
    rows = batch.rows.numpy()

    # both observations of a transition were received
    assert imputed.received[rows].all() and imputed.received[rows + 1].all()
    np.testing.assert_array_equal(batch.states, data.observations[rows])

    # the policy sees predictions of half of the states
    is_dropped = (batch.policy_states != batch.states).any(-1).numpy()
    assert 0.3 < is_dropped.mean() < 0.7
    np.testing.assert_array_equal(batch.policy_states[is_dropped], imputed.predicted[rows[is_dropped]])
    assert np.isfinite(agent.update(batch)['total_loss'])


def test_actions_follow_the_chosen_estimator(make_online, dropout_agent, dropout_data):
    """The encoder replaces a repeated observation by a prediction, the last reading does not."""
    data = dropout_data()
    observation, goal = data.observations[:1], data.observations[30:31]
    is_same = {}
    for name in ('encoder', 'last_observation'):
        agent = make_online(offline=dropout_agent, data=data, estimator=name)
        first, state = agent.act(observation, goal, agent.initial_state(1))
        second, _ = agent.act(observation, goal, state)
        is_same[name] = np.array_equal(first, second)
    assert is_same == {'encoder': False, 'last_observation': True}


def test_measure_estimates_scores_predictions(dropout_agent, tmp_path, capsys):
    """With networks that predict the last observation, and the truth."""
    states = np.cumsum(np.random.default_rng(0).standard_normal((60, 5)), 0).astype(np.float32)
    np.savez(tmp_path / 'states.npz', observations=states, terminals=np.arange(60) == 59)
    dropping = ObservationModel('dropped:0.5', drop_rate=0.5)

    def measure(agent, model):
        save_checkpoint(tmp_path / 'last.pth', {'kind': 'offline', 'agent': agent.state_dict(),
                                                'data': {'observation_model': dataclasses.asdict(model)}})
        config = measure_estimates.EstimatesConfig(str(tmp_path / 'last.pth'), str(tmp_path / 'states.npz'))
        return measure_estimates.run(config)

    torch.nn.init.zeros_(dropout_agent.nets['next_state'][-1].weight)
    torch.nn.init.zeros_(dropout_agent.nets['next_state'][-1].bias)
    r2 = measure(dropout_agent, dropping)
    assert list(r2) == [0, 1, 2, 5, 10] and len(set(r2.values())) == 1 and 0 < r2[0] < 1
    assert f'prediction from 5 observations: R2 {r2[5]:.3f}' in capsys.readouterr().out

    with pytest.MonkeyPatch.context() as patch:
        order = np.random.default_rng(0).choice(50, 50, replace=False)
        truth = torch.from_numpy(states[10:][order])
        patch.setattr(measure_estimates.OfflineAgent, 'predict_next',
                      lambda self, latents, observations: self.encoder.normalize(truth))
        assert measure(dropout_agent, dropping)[10] == pytest.approx(1)

    with pytest.raises(ValueError, match='--observe full drops no observations'):
        measure(dropout_agent, ObservationModel())
