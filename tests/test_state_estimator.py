"""Lost readings: found, foretold, filled in as acting does, and learned from."""

import dataclasses

import measure_estimates
import numpy as np
import pytest
import torch

from observing.observation_models import ObservationModel
from observing.state_estimator import EncoderEstimator, ImputedStates, find_received
from offline_agent import at_positions
from support.files import save_checkpoint

CONTEXT = 12  # of the tiny networks


@pytest.fixture
def lossy_agent(make_agent):
    agent = make_agent()
    agent.has_dropout = True
    return agent


@pytest.fixture
def lossy_data(make_dataset):
    """lossy_data(lengths) -> TrajectoryDataset of random walks, half of whose readings got lost."""

    def make(lengths=(40, 2, 23, 9, 31), drop_rate=0.5):
        data = make_dataset(lengths)
        observation_model = ObservationModel('dropped', drop_rate=drop_rate)
        data.observations = observation_model.observe_trajectories(data.observations, data.starts, data.ends, seed=3)
        return data

    return make


def test_lost_readings_are_those_that_repeat():
    rows = np.array([[1, 2], [1, 2], [1, 3], [1, 3], [1, 3], [4, 4]])
    assert find_received(rows, np.array([0, 4])).tolist() == [True, False, True, False, True, True]


@pytest.mark.parametrize('length', [1, 2, 5, CONTEXT - 1, CONTEXT, CONTEXT + 1, CONTEXT + 7, 2 * CONTEXT, 40])
@pytest.mark.parametrize('context', [CONTEXT, 7, 2, 1])
@pytest.mark.parametrize('remembers', [True, False])
def test_data_are_filled_in_as_acting_fills_them(make_agent, lossy_data, remembers, context, length):
    agent = make_agent(context_length=context)
    agent.has_dropout = True
    readings = lossy_data((length,)).observations
    estimator = EncoderEstimator(agent, remembers)
    expected = estimator.expect(readings)
    received = find_received(readings, np.array([0]))

    belief = estimator.initial_state(2)
    for t, reading in enumerate(readings):
        if t:
            np.testing.assert_allclose(belief.expected[0].detach(), expected[t], rtol=1e-4, atol=1e-4)
        rows = torch.from_numpy(np.stack([reading, -reading]))  # the other environment changes nothing
        estimated, belief = estimator.step(rows, belief)
        right = reading if received[t] or not remembers else expected[t]
        np.testing.assert_allclose(estimated[0].detach(), right, rtol=1e-4, atol=1e-4)
    assert (expected[0] == readings[0]).all()


def test_a_new_episode_forgets_the_one_before(lossy_agent, states):
    estimator = EncoderEstimator(lossy_agent)
    belief = estimator.initial_state(2)
    for t in range(4):
        estimated, belief = estimator.step(torch.from_numpy(states(2, seed=t)), belief)
    belief = belief.reset(torch.tensor([True, False]))
    estimated, belief = estimator.step(belief.reading, belief)  # to one environment its first reading, to the other lost
    assert torch.equal(estimated[0], belief.reading[0]) and not torch.equal(estimated[1], belief.reading[1])


def test_beliefs_of_data_that_come_and_go(lossy_agent, make_replay, states):
    replay, estimator = make_replay((12,), capacity=50), EncoderEstimator(lossy_agent)
    imputed = ImputedStates(replay, estimator)
    for lengths in ((14,), (20, 9), (), (30, 3)):
        dropped = sum(replay.add(states(n, seed=n).repeat(2, 0)[:n], np.zeros((n - 1, 3))) for n in lengths)
        imputed.refresh(dropped)
        scratch = ImputedStates(replay, estimator)
        np.testing.assert_array_equal(imputed.expected, scratch.expected)
        np.testing.assert_array_equal(imputed.received, scratch.received)
        assert len(imputed.expected) == len(replay)


def test_what_is_believed_and_lost_again(lossy_agent, lossy_data):
    data = lossy_data((4000,), drop_rate=0.3)
    imputed = ImputedStates(data, EncoderEstimator(lossy_agent))
    rows = np.arange(len(data))
    estimated = imputed.estimated(rows)
    assert (estimated[imputed.received] == data.observations[imputed.received]).all()
    assert (estimated[~imputed.received] == imputed.expected[~imputed.received]).all()
    np.testing.assert_array_equal(imputed.estimated(slice(5, 9)), estimated[5:9])

    told = imputed.observed_pairs
    received = set(np.flatnonzero(imputed.received))
    assert set(told) == {row for row in rows[:-1] if {row, row + 1} <= received}
    again = imputed.lose(told, np.random.default_rng(0))
    kept = (again == data.observations[told]).all(1)
    assert (again[~kept] == imputed.expected[told][~kept]).all()
    assert abs((~kept).mean() - 0.3) < 0.03


def test_no_whole_step_is_an_error(lossy_agent, lossy_data):
    data = lossy_data((20,))
    data.observations = data.observations.repeat(2, 0)[:20]
    with pytest.raises(ValueError, match='of 19 steps none has both its readings'):
        print(ImputedStates(data, EncoderEstimator(lossy_agent)).observed_pairs)


def test_lost_readings_are_no_targets_of_prediction(lossy_agent, lossy_data, stub):
    """By hand, with a network that foretells no change."""
    agent = lossy_agent
    batch = lossy_data().sample(6, np.random.default_rng(0))
    agent.nets['next_state'] = stub(lambda z: torch.zeros(*z.shape[:-1], 5))
    loss = agent.state_loss(agent.encode(batch), batch)[0]

    normal = agent.encoder.normalize(batch.observations)
    change = (normal[:, 1:] - normal[:, :-1]).square().mean(-1)
    counts = batch.valids[:, 1:] & (change > 0)
    everywhere = change[:, :CONTEXT][counts[:, :CONTEXT]].mean()
    at_sampled = at_positions(torch.stack([change, counts.float()], -1), batch.positions)
    sampled = at_sampled[..., 0][at_sampled[..., 1] > 0].mean()
    assert loss.item() == pytest.approx((everywhere + sampled).item() / 2, rel=1e-5)


def test_memory_foretells_what_was_lost(make_agent, make_dataset):
    """Points that swing, half of whose readings are lost: only memory can tell which way one is going."""
    data = make_dataset((200,) * 20)
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 2 * np.pi, (20, 1, 5))
    angle = phase + 0.2 * np.arange(200)[:, None]
    places = 10 * np.sin(angle).reshape(-1, 5).astype(np.float32)
    data.observations = ObservationModel('', drop_rate=0.5).observe_trajectories(places, data.starts, data.ends, seed=0)

    errors = {}
    for kind in ('mamba', 'mlp'):
        agent = make_agent(encoder=kind, lr=3e-3)
        agent.set_statistics(*data.statistics(), np.ones(5), has_dropout=True)
        for _ in range(300):
            batch = data.sample(16, rng)
            agent.apply_gradient(agent.state_loss(agent.encode(batch), batch)[0])
        imputed = ImputedStates(data, EncoderEstimator(agent))
        errors[kind] = np.square(imputed.expected - places)[~imputed.received].mean()
    assert errors['mamba'] < 0.7 * errors['mlp']


def test_acting_and_batches_see_beliefs(make_online, lossy_agent, lossy_data, make_replay):
    agent = make_online(offline=lossy_agent, value_interval=0, online_share=0.0)
    data = lossy_data()
    agent.build_map(data)
    batches = agent.open_batches(data, make_replay((40, 25)))
    batch = batches.sample(np.random.default_rng(0))
    imputed = batches.offline_store.imputed
    rows = batch.rows.numpy()
    assert imputed.received[rows].all() and imputed.received[rows + 1].all()
    np.testing.assert_array_equal(batch.states, data.observations[rows])
    lost = (batch.policy_states != batch.states).any(-1).numpy()
    assert 0.3 < lost.mean() < 0.7
    np.testing.assert_array_equal(batch.policy_states[lost], imputed.expected[rows[lost]])
    assert agent.update(batch)['total_loss'].isfinite()

    # a reading that repeats is not what acting goes by
    reading, goal = data.observations[:1], data.observations[30:31]
    first, state = agent.act(reading, goal, agent.initial_state(1))
    second, state = agent.act(reading, goal, state)
    assert not np.array_equal(first, second)

    holding = make_online(offline=lossy_agent, remember_lost=False, value_interval=0, online_share=0.0)
    first, state = holding.act(reading, goal, holding.initial_state(1))
    np.testing.assert_array_equal(first, holding.act(reading, goal, state)[0])


def test_i_has_no_second_memory(make_online, lossy_agent):
    with pytest.raises(ValueError, match='--memory: where readings get lost'):
        make_online(offline=lossy_agent, memory=True)


def test_how_well_readings_are_foretold(lossy_agent, tmp_path, capsys):
    """By networks that foretell the last reading, and then the truth."""
    states = np.cumsum(np.random.default_rng(0).standard_normal((60, 5)), 0).astype(np.float32)
    np.savez(tmp_path / 'states.npz', observations=states, terminals=np.arange(60) == 59)
    observation_model = dataclasses.asdict(ObservationModel('dropped:0.5', drop_rate=0.5))

    def measure(agent, observation_model):
        save_checkpoint(tmp_path / 'last.pth', {'kind': 'offline', 'agent': agent.state_dict(),
                                                'data': {'observation_model': observation_model}})
        config = measure_estimates.BeliefConfig(str(tmp_path / 'last.pth'), str(tmp_path / 'states.npz'))
        return measure_estimates.run(config)

    torch.nn.init.zeros_(lossy_agent.nets['next_state'][-1].weight)
    torch.nn.init.zeros_(lossy_agent.nets['next_state'][-1].bias)
    r2 = measure(lossy_agent, observation_model)
    assert list(r2) == [0, 1, 2, 5, 10] and len(set(r2.values())) == 1 and 0 < r2[0] < 1
    assert f'expected from 5 readings: R2 {r2[5]:.3f}' in capsys.readouterr().out

    with pytest.MonkeyPatch.context() as patch:
        order = np.random.default_rng(0).choice(50, 50, replace=False)
        truth = torch.from_numpy(states[10:][order])
        patch.setattr(measure_estimates.OfflineAgent, 'predict_next',
                      lambda self, latents, readings: self.encoder.normalize(truth))
        assert measure(lossy_agent, observation_model)[10] == pytest.approx(1)

    with pytest.raises(ValueError, match='nothing gets lost with --observe full'):
        measure(lossy_agent, dataclasses.asdict(ObservationModel()))
