"""The online agent on manipulation data: batches, imitation weights and acting."""

import numpy as np
import pytest
import torch
from toy_objects import PAUSE, cubes, hand_change, lamp_and_cube, lamps, make, record, with_objects

from offline_agent import OfflineAgent
from planning.objects import find_objects


@pytest.fixture
def make_manipulator(make_config, make_online):
    """make_manipulator(kind of objects, **online config) -> (OnlineAgent, data, ReplayBuffer)"""
    def make_one(kind, **options):
        data = make(kind)
        config = make_config(transition_steps=data.transition_steps)
        offline = OfflineAgent(data.observations.shape[1], config)
        offline.set_statistics(*data.statistics(), find_objects(data), moves_things=True)
        agent = make_online(offline=offline, action_dim=2, online_share=0.0, value_interval=0, **options)
        agent.build_map(data)
        return agent, data, record(data, np.random.default_rng(0))
    return make_one


@pytest.fixture
def manipulator(make_manipulator):
    """An OnlineAgent that plans with two cubes, its data, a ReplayBuffer."""
    return make_manipulator(cubes)


def test_subgoal_states_follow_the_next_move(manipulator):
    agent, data, replay = manipulator
    batch = agent.open_batches(data, replay).sample(np.random.default_rng(0))
    rows = batch.rows.numpy()
    ahead = (rows // PAUSE + 1) * PAUSE
    # all rows but those before a move that leaves its cube where it is
    is_usual = ahead == rows + batch.steps_to_subgoal.numpy()
    assert is_usual.mean() > 0.9
    np.testing.assert_array_equal(batch.subgoal_states[is_usual], data.observations[ahead[is_usual]])
    assert batch.progress_states is None


def test_imitation_weights_prefer_quick_moves(manipulator):
    agent, data, replay = manipulator
    batch = agent.open_batches(data, replay).sample(np.random.default_rng(0))
    agent.usual_progress = lambda batch, networks: torch.zeros(len(batch.states))
    weights = agent.imitation_weights(batch)
    assert weights[batch.steps_to_subgoal < 10].min() > weights[batch.steps_to_subgoal > 50].max()
    assert agent.total_loss(batch)[1]['baseline_loss'] > 0


def test_imitation_weights_of_switch_moves_are_1(make_manipulator):
    agent, data, replay = make_manipulator(lamps)
    batch = agent.open_batches(data, replay).sample(np.random.default_rng(0))
    assert (agent.imitation_weights(batch) == 1).all()
    assert 'baseline_loss' not in agent.total_loss(batch)[1]


def test_imitation_weights_of_switch_moves_are_1_beside_a_cube(make_manipulator):
    """The weights of the cube's moves have mean 1 as well."""
    agent, data, replay = make_manipulator(lamp_and_cube, progress_temperature=1.0)
    assert [len(agent.state_map.switches), len(agent.state_map.movable)] == [1, 1]
    batch = agent.open_batches(data, replay).sample(np.random.default_rng(0))
    weights = agent.imitation_weights(batch)
    is_switch = batch.states[:, 3] != batch.subgoal_states[:, 3]
    assert 0.2 < is_switch.float().mean() < 0.8
    assert (weights[is_switch] == 1).all()
    assert weights[~is_switch].std() > 0.2
    torch.testing.assert_close(weights[~is_switch].mean(), torch.tensor(1.0))


def test_bounded_clamps_states_far_from_the_data(manipulator):
    agent, data, replay = manipulator
    states = torch.from_numpy(data.observations[:3])
    assert torch.allclose(agent.bounded(states), states, atol=1e-5)
    far = states.clone()
    far[:, 0] += 100
    further = states.clone()
    further[:, 0] += 200
    torch.testing.assert_close(agent.bounded(far), agent.bounded(further))
    torch.testing.assert_close(agent.encoder.normalize(agent.bounded(far))[:, 0], torch.full((3,), 4.0))
    goals = data.observations[-3:]
    acted = [agent.act(states.numpy(), goals, agent.initial_state(3))[0] for states in (far, further)]
    np.testing.assert_allclose(*acted, atol=1e-6)


def test_action_scale_is_ignored_for_manipulation(manipulator):
    agent, data, _ = manipulator
    observations, goals = data.observations[:3], data.observations[-3:]
    acted = []
    for scale in 1.0, 0.5:
        agent.config.action_scale = scale
        acted.append(agent.act(observations, goals, agent.initial_state(3))[0])
    assert np.array_equal(*acted) and np.abs(acted[0]).max() > 0


@pytest.mark.parametrize(('field', 'flag'), [('hop', 'waypoint_steps'), ('direction_products',) * 2,
                                             ('stuck_noise',) * 2])
def test_locomotion_flags_are_refused_for_manipulation(make_manipulator, field, flag):
    with pytest.raises(ValueError, match=f'--{flag}: where things are moved'):
        make_manipulator(cubes, **{field: 1})


def test_nodes_are_refused_for_manipulation(manipulator):
    agent, data, _ = manipulator
    with pytest.raises(ValueError, match='--nodes: where things are moved'):
        agent.build_map(data, nodes=20)


def test_imitation_weights_are_1_without_progress_steps(manipulator):
    agent, data, replay = manipulator
    agent.config.progress_steps = 0
    batch = agent.open_batches(data, replay).sample(np.random.default_rng(0))
    assert (agent.imitation_weights(batch) == 1).all()


def test_labels_have_a_small_action_prior(manipulator, monkeypatch):
    agent, data, replay = manipulator
    priors = []
    monkeypatch.setattr(agent.labeler, 'fit',
                        lambda *args, **options: priors.append(options['small_action_prior']))
    agent.fit_labeler(agent.open_batches(data, replay), np.random.default_rng(0))
    assert priors == [0.2]


@pytest.mark.parametrize('point_out', [True, False])
def test_act_shows_the_policy_the_displacement_of_the_next_move(manipulator, stub, point_out):
    """The policy sees the state masked to the moved object as well."""
    agent, data, _ = manipulator
    agent.config.point_out = point_out
    inputs = []
    agent.acting['inverse_dynamics'] = stub(lambda latent, *rest: inputs.append(rest) or latent[:, :2])
    state = with_objects(data, [2.5, 1, 2, 2.5])
    goal = with_objects(data, [1, 1, -1, 0.5])
    agent.act(state[None], goal[None], agent.initial_state(1))
    normalized, displacement, masked = inputs[0]
    scale = agent.encoder.slowness / agent.encoder.std
    expected = torch.tensor([0, 0, 0, -1.5, 0, 0, 0]) * scale
    torch.testing.assert_close(displacement[0], expected, atol=1e-5, rtol=1e-4)
    its_dims = torch.tensor([0, 0, 0, 1, 1, 0, 0])
    torch.testing.assert_close(masked, normalized * its_dims * point_out)


def test_act_retreats_by_actions_of_the_labeler(manipulator, monkeypatch):
    agent, data, _ = manipulator
    agent.state_map.move_timeout = 4
    agent.labeler.points = torch.zeros(1, 14, dtype=torch.float64)  # as if it had been fitted
    monkeypatch.setattr(agent, 'label', hand_change)
    state = with_objects(data, [2.5, 1, 2, 2.5])
    state[:2] = [9, -9]  # no pose of the data is within one step
    goals = np.stack([with_objects(data, [1, 1, -1, 0.5]), state])  # the second episode is at its goal
    observations = np.stack([state, state])

    acting = agent.initial_state(2)
    is_label = []
    for _ in range(7):
        actions, acting = agent.act(observations, goals, acting)
        is_label.append((actions == agent._scale_from_unit(np.array([-1, 1]))).all(1))
    assert np.array(is_label).tolist() == [[False, False]] * 4 + [[True, False]] + [[False, False]] * 2

    agent.labeler.forget()
    for _ in range(2):
        actions, acting = agent.act(observations, goals, acting)
    assert acting.pursuit.plan.retreat_steps_left.any()
    assert not (actions[0] == [-1, 1]).all(), 'an unfitted labeler is not used'


def test_without_slow_goals_there_are_no_objects(make_config, make_online):
    data = make(cubes)
    offline = OfflineAgent(7, make_config(slow_goals=False))
    offline.set_statistics(*data.statistics(), find_objects(data), moves_things=True)
    agent = make_online(offline=offline, action_dim=2)
    agent.build_map(data, nodes=20)
    assert not agent.moves_things


# ------------------------------------------------------------------------------------- corrective transitions
def test_corrective_fraction_of_a_batch_is_perturbed(make_manipulator):
    agent, data, replay = make_manipulator(cubes, corrective_fraction=0.5)
    batches = agent.open_batches(data, replay)
    batches.label_data(hand_change)
    batch = batches.sample(np.random.default_rng(0))

    rows = batch.rows.numpy()
    moved = (batch.states.numpy() != data.observations[rows]).any(1)
    assert 0.3 < moved.mean() < 0.6
    assert batches.corrective.valid[rows[moved]].all()
    assert torch.equal(batch.policy_states, batch.states)
    assert torch.equal(batch.actions[moved], batches.corrective.actions[rows[moved]])
    assert torch.equal(batch.actions[~moved], batches.labels[rows[~moved]])
    torch.testing.assert_close(batch.full, agent.encode_seen(batch.states))

    again = agent.open_batches(data, replay)
    again.label_data(hand_change)
    assert torch.equal(again.corrective.states, batches.corrective.states), 'a resumed run needs these'


def test_corrective_transitions_are_off_by_default(manipulator):
    agent, data, replay = manipulator
    batches = agent.open_batches(data, replay)
    batches.label_data(hand_change)
    assert batches.corrective is None


def test_corrective_fraction_is_refused_with_memory(make_manipulator):
    with pytest.raises(ValueError, match='--corrective_fraction'):
        make_manipulator(cubes, corrective_fraction=0.5, memory=True)
