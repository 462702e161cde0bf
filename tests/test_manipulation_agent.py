"""The online agent on manipulation data: batches, imitation weights, policy inputs and retreats."""

import numpy as np
import pytest
import torch
from toy_objects import PAUSE, cubes, hand_change, lamp_and_cube, lamps, make, record, with_objects

from offline_agent import OfflineAgent
from planning.objects import find_objects
from tasks import CLIP, Locomotion, Manipulation, build_map


@pytest.fixture
def make_manipulator(make_config, make_online):
    """make_manipulator(kind of objects, **online config) -> (OnlineAgent, data, ReplayBuffer)"""

    def make_one(kind, **options):
        data = make(kind)
        config = make_config(transition_steps=data.transition_steps)
        offline = OfflineAgent(data.observations.shape[1], config)
        offline.set_statistics(*data.statistics(), find_objects(data), has_objects=True)
        agent = make_online(offline=offline, action_dim=2, data=data, **options)
        assert isinstance(agent.task, Manipulation)
        return agent, data, record(data, np.random.default_rng(0))

    return make_one


@pytest.fixture
def manipulator(make_manipulator):
    """Return an OnlineAgent that plans with two cubes, its data and a ReplayBuffer."""
    return make_manipulator(cubes)


def draw(agent, data, replay):
    """Return an OnlineBatch."""
    return agent.open_batches(data, replay).sample(np.random.default_rng(0))


def imitation_weights(agent, batch, baseline=None):
    """Return the task's weights (n,) of a batch; the baseline is 0 unless given."""
    return agent.task.weights(batch, torch.zeros(len(batch.states)) if baseline is None else baseline)


def act_once(agent, observations, goals):
    """Return the actions (B, A) at the first step of episodes."""
    return agent.act(observations, goals, agent.initial_state(len(observations)))[0]


# ----------------------------------------------------------------------------- batches and imitation weights
def test_subgoal_states_follow_the_next_move(manipulator):
    agent, data, replay = manipulator
    batch = draw(agent, data, replay)
    rows = batch.rows.numpy()
    ahead = (rows // PAUSE + 1) * PAUSE
    # all rows but those before a move that leaves its cube in place
    is_usual = ahead == rows + batch.steps_to_subgoal.numpy()
    assert is_usual.mean() > 0.9
    np.testing.assert_array_equal(batch.subgoal_states[is_usual], data.observations[ahead[is_usual]])


def test_imitation_weights_prefer_quick_moves(manipulator):
    agent, data, replay = manipulator
    batch = draw(agent, data, replay)
    weights = imitation_weights(agent, batch)
    assert weights[batch.steps_to_subgoal < 10].min() > weights[batch.steps_to_subgoal > 50].max()
    assert agent.total_loss(batch)[1]['baseline_loss'] > 0


def test_imitation_weights_of_switch_moves_are_1(make_manipulator):
    agent, data, replay = make_manipulator(lamps)
    info = agent.total_loss(draw(agent, data, replay))[1]
    assert info['inverse_dynamics_loss'].item() == pytest.approx(info['inverse_dynamics_error'].item())
    assert 'baseline_loss' not in info


def test_imitation_weights_of_switch_moves_are_1_beside_a_cube(make_manipulator):
    """The weights of the cube's moves have mean 1 as well."""
    agent, data, replay = make_manipulator(lamp_and_cube, progress_temperature=1.0)
    assert [len(agent.data_map.switches), len(agent.data_map.movable)] == [1, 1]
    batch = draw(agent, data, replay)
    with torch.no_grad():
        weights = imitation_weights(agent, batch, agent._baseline(batch, agent.ema_nets))
    is_switch = batch.states[:, 3] != batch.subgoal_states[:, 3]
    assert 0.2 < is_switch.float().mean() < 0.8
    assert (weights[is_switch] == 1).all()
    assert weights[~is_switch].std() > 0.2
    torch.testing.assert_close(weights[~is_switch].mean(), torch.tensor(1.0))


def test_imitation_weights_are_1_without_progress_steps(make_manipulator):
    agent, data, replay = make_manipulator(cubes, progress_steps=0)
    info = agent.total_loss(draw(agent, data, replay))[1]
    assert info['inverse_dynamics_loss'].item() == pytest.approx(info['inverse_dynamics_error'].item())
    assert 'baseline_loss' not in info


def test_labels_have_a_small_action_prior(manipulator, monkeypatch):
    agent, data, replay = manipulator
    priors = []
    monkeypatch.setattr(agent.labeler, 'fit',
                        lambda *args, **options: priors.append(options['small_action_prior']))
    agent.fit_labeler(agent.open_batches(data, replay), np.random.default_rng(0))
    assert priors == [0.2]


# ---------------------------------------------------------------------------------------------------- acting
def test_states_far_from_the_data_are_clipped(manipulator):
    agent, data, _ = manipulator
    clip = agent.task.clip
    states = torch.from_numpy(data.observations[:3])
    assert torch.allclose(clip(states), states, atol=1e-5)

    far, farther = states.clone(), states.clone()
    far[:, 0] += 100
    farther[:, 0] += 200
    torch.testing.assert_close(clip(far), clip(farther))
    torch.testing.assert_close(agent.encoder.normalize(clip(far))[:, 0], torch.full((3,), CLIP))

    goals = data.observations[-3:]
    actions = [act_once(agent, moved.numpy(), goals) for moved in (far, farther)]
    np.testing.assert_allclose(*actions, atol=1e-6)


def test_action_scale_is_ignored_for_manipulation(make_manipulator):
    actions = []
    for scale in (1.0, 0.5):
        torch.manual_seed(0)  # of the offline networks
        agent, data, _ = make_manipulator(cubes, action_scale=scale)
        actions.append(act_once(agent, data.observations[:3], data.observations[-3:]))
    assert np.array_equal(*actions) and np.abs(actions[0]).max() > 0


@pytest.mark.parametrize('flag', ['waypoint_steps', 'direction_products', 'stuck_noise'])
def test_locomotion_flags_are_refused_for_manipulation(make_manipulator, flag):
    with pytest.raises(ValueError, match=f'--{flag}: not available for data with objects'):
        make_manipulator(cubes, **{flag: 1})


def test_nodes_are_refused_for_manipulation(manipulator):
    agent, data, _ = manipulator
    with pytest.raises(ValueError, match='--nodes: not available for data with objects'):
        build_map(agent.offline, agent.config, data, nodes=20)


def test_policy_inputs_show_the_displacement_of_the_next_move(manipulator, stub):
    """The policy sees the state masked to the moved object as well."""
    agent, data, _ = manipulator
    inputs = []
    agent.ema_nets['inverse_dynamics'] = stub(lambda latent, *rest: inputs.append(rest) or latent[:, :2])
    state = with_objects(data, [2.5, 1, 2, 2.5])
    goal = with_objects(data, [1, 1, -1, 0.5])
    act_once(agent, state[None], goal[None])

    normalized, displacement, masked = inputs[0]
    scale = agent.encoder.goal_weights / agent.encoder.std
    expected = torch.tensor([0, 0, 0, -1.5, 0, 0, 0]) * scale
    torch.testing.assert_close(displacement[0], expected, atol=1e-5, rtol=1e-4)
    is_dim_of_object = torch.tensor([0, 0, 0, 1, 1, 0, 0])
    torch.testing.assert_close(masked, normalized * is_dim_of_object)


def test_act_retreats_by_actions_of_the_labeler(manipulator, monkeypatch):
    agent, data, _ = manipulator
    agent.data_map.move_timeout = 4
    agent.labeler.inducing_inputs = torch.zeros(1, 14, dtype=torch.float64)  # as if it had been fitted
    assert agent.labeler.is_fitted
    monkeypatch.setattr(agent, 'label', hand_change)
    state = with_objects(data, [2.5, 1, 2, 2.5])
    state[:2] = [9, -9]  # no pose of the data is within one step
    goals = np.stack([with_objects(data, [1, 1, -1, 0.5]), state])  # the second episode is at its goal
    observations = np.stack([state, state])

    act_state = agent.initial_state(2)
    is_label = []
    for _ in range(7):
        actions, act_state = agent.act(observations, goals, act_state)
        is_label.append((actions == [-1, 1]).all(1))
    assert np.array(is_label).tolist() == [[False, False]] * 4 + [[True, False]] + [[False, False]] * 2

    # an unfitted labeler is not used
    agent.labeler.reset()
    for _ in range(2):
        actions, act_state = agent.act(observations, goals, act_state)
    object_plan = act_state.plan[0].plan
    assert object_plan.retreat_steps_left.any()
    assert not (actions[0] == [-1, 1]).all()


def test_objects_are_ignored_without_slow_goals(make_config, make_online):
    data = make(cubes)
    offline = OfflineAgent(7, make_config(slow_goals=False))
    offline.set_statistics(*data.statistics(), find_objects(data), has_objects=True)
    assert not offline.has_objects
    agent = make_online(offline=offline, action_dim=2, data=data)
    assert isinstance(agent.task, Locomotion)


# ------------------------------------------------------------------------------------- corrective transitions
def test_corrective_fraction_of_a_batch_is_perturbed(make_manipulator):
    agent, data, replay = make_manipulator(cubes, corrective_fraction=0.5)
    replay.observations[:, 3:] += np.random.default_rng(1).normal(0, 1e-3, replay.observations[:, 3:].shape)
    batches = agent.open_batches(data, replay)
    batches.label_data(hand_change)
    batch = batches.offline_steps.draw(batches.size, np.random.default_rng(0))
    batches._perturb(batch, np.random.default_rng(0))

    rows = batch.rows.numpy()
    moved = (batch.states.numpy() != data.observations[rows]).any(1)
    assert 0.3 < moved.mean() < 0.6
    assert batches.corrective.valid[rows[moved]].all()
    assert torch.equal(batch.policy_states, batch.states)
    assert torch.equal(batch.actions[moved], batches.corrective.actions[rows[moved]])
    # perturbations leave objects, and so goal features and z, as they are, though resting objects jitter
    torch.testing.assert_close(batch.z, agent.encoder.encode_features(batch.states))
    assert torch.equal(batch.actions[~moved], batches.offline_steps.labels[rows[~moved]])
    torch.testing.assert_close(batch.state_latents, agent.encode_policy_states(batch.states))

    again = agent.open_batches(data, replay)
    again.label_data(hand_change)
    assert torch.equal(again.corrective.states, batches.corrective.states), 'a resumed run draws the same'


def test_corrective_transitions_are_off_by_default(manipulator):
    agent, data, replay = manipulator
    batches = agent.open_batches(data, replay)
    batches.label_data(hand_change)
    assert batches.corrective is None


def test_corrective_fraction_is_refused_with_dropped_observations(make_config, make_online):
    data = make(cubes)
    offline = OfflineAgent(7, make_config())
    offline.set_statistics(*data.statistics(), find_objects(data), has_objects=True, has_dropout=True)
    with pytest.raises(ValueError, match='--corrective_fraction .*--observe dropped:P'):
        make_online(offline=offline, action_dim=2, data=data, corrective_fraction=0.5)
