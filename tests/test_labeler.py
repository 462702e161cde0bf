"""The labeler: R2 by number of steps, relevant inputs, priors, masked position inputs and checkpoints."""

import copy

import numpy as np
import pytest
import torch

from labeling import labeler as labeler_module
from labeling.joint_axes import complete, estimate_axes
from labeling.labeler import Labeler, r2_score

DIM, ACTION_DIM = 6, 2
AT_WALL = 1.0


def joint_steps(n, seed, spread=1.0):
    """Return steps of a robot whose two actions move one dimension each; the others change at random.

    The effect of the first action also depends on dimension 2 of the state.
    """
    rng = np.random.default_rng(seed)
    states = spread * rng.standard_normal((n, DIM))
    actions = rng.uniform(-1, 1, (n, ACTION_DIM))
    change = 0.3 * rng.standard_normal((n, DIM))
    change[:, 0] = 0.2 * actions[:, 0] * (1 + 0.5 * np.tanh(states[:, 2]))
    change[:, 1] = 0.2 * actions[:, 1] - 0.1 * states[:, 1]
    return torch.from_numpy(np.stack([states, states + change], 1)).float(), torch.from_numpy(actions).float()


def fitted(n, seed=0, **options):
    labeler = Labeler(DIM, ACTION_DIM)
    labeler.fit(*joint_steps(n, seed, **options), np.random.default_rng(0))
    return labeler


def test_labeler_finds_relevant_inputs_from_few_steps():
    labeler = fitted(200)
    steps, actions = joint_steps(500, seed=1)
    assert r2_score(labeler(steps), actions) > 0.9

    relevance = torch.exp(-labeler.log_length_scale)
    assert {*relevance[0].topk(2).indices.tolist()} == {2, DIM}, 'the inputs that determine the first action'
    changed = steps.clone()
    changed[..., 3:] = torch.randn(500, 2, DIM - 3)
    assert (labeler(changed) - labeler(steps)).abs().mean() < 0.1


def test_labels_improve_with_more_steps():
    steps, actions = joint_steps(500, seed=1)
    few, many = (r2_score(fitted(n)(steps), actions) for n in (40, 1000))
    assert 0.3 < few < many and many > 0.97


def test_fit_returns_r2_of_held_out_steps():
    steps, actions = joint_steps(300, seed=0)
    r2 = Labeler(DIM, ACTION_DIM).fit(steps, actions, np.random.default_rng(0))
    assert 0.9 < r2 < 1
    unrelated = torch.rand(300, ACTION_DIM) * 2 - 1
    assert Labeler(DIM, ACTION_DIM).fit(steps, unrelated, np.random.default_rng(0)) < 0.2
    assert Labeler(DIM, ACTION_DIM).fit(steps[:15], actions[:15], np.random.default_rng(0)) is None


def gripper_steps(n, seed):
    """Return steps of a gripper between open (1) and closed (-1) whose action is its speed."""
    rng = np.random.default_rng(seed)
    opening = np.clip(1.5 * rng.uniform(-1, 1, n), -1, 1)
    actions = rng.uniform(-1, 1, n)
    after = np.clip(opening + 0.2 * actions, -1, 1)
    steps = np.stack([opening, after], 1)[..., None]
    return torch.from_numpy(steps).float(), torch.from_numpy(actions[:, None]).float()


def test_small_action_prior_prefers_the_smaller_of_equivalent_actions():
    small, uniform = Labeler(1, 1), Labeler(1, 1)
    small.fit(*gripper_steps(2000, seed=0), np.random.default_rng(0), small_action_prior=0.2)
    uniform.fit(*gripper_steps(2000, seed=0), np.random.default_rng(0))

    stays_open = torch.ones(1, 2, 1)
    assert uniform(stays_open) > 0.35, 'the mean of all actions that leave it open'
    assert small(stays_open) < 0.25

    moves = torch.tensor([[[0.5], [0.4]], [[0.5], [0.6]]])
    for labeler in small, uniform:
        torch.testing.assert_close(labeler(moves), torch.tensor([[-0.5], [0.5]]), atol=0.08, rtol=0)


def test_inputs_are_clipped_to_the_range_of_the_training_steps():
    labeler = fitted(200)
    steps, _ = joint_steps(50, seed=1)
    steps[:, :, 0] += 30
    further = steps + torch.tensor([50.0] + [0.0] * (DIM - 1))
    torch.testing.assert_close(labeler(further), labeler(steps), rtol=1e-3, atol=1e-3)


def test_constant_inputs_are_ignored():
    steps, actions = joint_steps(200, seed=0)
    steps[..., 5] = 3.0
    labeler = Labeler(DIM, ACTION_DIM)
    labeler.fit(steps, actions, np.random.default_rng(0))
    changed = steps.clone()
    changed[..., 5] = 4.0
    assert torch.equal(labeler(changed), labeler(steps)) and labeler(steps).isfinite().all()


def test_labels_are_exact_without_noise():
    """Kernel matrices stay invertible."""
    rng = np.random.default_rng(0)
    actions = torch.from_numpy(rng.uniform(-1, 1, (400, ACTION_DIM))).float()
    steps = torch.zeros(400, 2, DIM)
    steps[:, 1, :ACTION_DIM] = actions
    labeler = Labeler(DIM, ACTION_DIM)
    assert labeler.fit(steps, actions, rng) > 0.999
    assert labeler.fit(steps[:1], actions[:1], rng) is None and labeler(steps).isfinite().all()


def test_fit_uses_all_steps_with_few_inducing_inputs(monkeypatch):
    steps, actions = joint_steps(1500, seed=0)
    test_steps, test_actions = joint_steps(500, seed=1)
    monkeypatch.setattr(labeler_module, 'MAX_INDUCING_INPUTS', 100)
    r2 = []
    for count in 112, 1500:
        labeler = Labeler(DIM, ACTION_DIM)
        labeler.fit(steps[:count], actions[:count], np.random.default_rng(0))
        r2.append(r2_score(labeler(test_steps), test_actions))
    assert len(labeler.inducing_inputs) == 100 and 1 - r2[1] < 0.5 * (1 - r2[0])


def test_fit_limits_the_number_of_steps(monkeypatch):
    monkeypatch.setattr(labeler_module, 'MAX_TRANSITIONS', 90)
    labeler = Labeler(DIM, ACTION_DIM)
    labeler.fit(*joint_steps(1500, seed=0), np.random.default_rng(0))
    assert len(labeler.inducing_inputs) == 81, 'nine of the 90 are held out'


def exact_labels(labeler, train_steps, train_actions, test_steps):
    """Return K(x, X) (K(X, X) + noise)^-1 y with the kernel in the docstring of the labeler."""
    length_scale = labeler.log_length_scale.exp()[:, None, None]
    linear_scale = labeler.log_linear_scale.exp()[:, None, None]

    def standardize(steps):
        inputs = torch.cat([steps[:, 0], steps[:, 1] - steps[:, 0]], -1).double()
        return (inputs.clamp(labeler.low, labeler.high) - labeler.mean) / labeler.std

    def kernel(x, y):
        squared_distance = ((x[:, None] - y) / length_scale).square().sum(-1)
        linear = (x[:, None] * y * linear_scale.square()).sum(-1)
        return (labeler.log_variance - squared_distance / 2).exp() + linear

    train_inputs = standardize(train_steps)
    noise = labeler.log_noise.exp() + labeler_module.MIN_NOISE_VARIANCE
    covariance = kernel(train_inputs, train_inputs) + noise * torch.eye(len(train_inputs))
    weights = torch.linalg.solve(covariance, train_actions.double().T.unsqueeze(-1))
    labels = kernel(standardize(test_steps), train_inputs) @ weights
    return labels.squeeze(-1).T.float().clamp(-1, 1)


@pytest.mark.parametrize('count', [60, 300])
def test_labels_are_those_of_the_exact_gp_if_all_steps_are_inducing_inputs(count):
    labeler = fitted(count)
    rows = np.sort(np.random.default_rng(0).permutation(count)[int(0.1 * count):])  # of the training steps
    train_steps, train_actions = (values[rows] for values in joint_steps(count, seed=0))
    test_steps, _ = joint_steps(20, seed=1)
    assert len(labeler.inducing_inputs) == len(rows)

    with torch.no_grad():
        expected = exact_labels(labeler, train_steps, train_actions, test_steps)
    torch.testing.assert_close(labeler(test_steps), expected, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------- position inputs
def maze_steps(n, seed, wall=0.0):
    """Return steps of a point whose position is dimensions 0 and 1.

    A fraction `wall` of the steps is at a wall that limits dimension 1. The others are not near its
    coordinate.
    """
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((n, DIM))
    states[:, :2] = rng.uniform(-3, 3, (n, 2))
    states[:, 1] += np.sign(states[:, 1] - AT_WALL)
    actions = rng.uniform(-1, 1, (n, ACTION_DIM))
    after = states + 0.3 * rng.standard_normal((n, DIM))
    after[:, :2] = states[:, :2] + 0.2 * actions

    count = int(wall * n)
    states[:count, 1] = AT_WALL - 0.01 * rng.random(count)
    after[:count, 1] = np.minimum(states[:count, 1] + 0.2 * actions[:count, 1], AT_WALL)
    return torch.from_numpy(np.stack([states, after], 1)).float(), torch.from_numpy(actions).float()


def car_steps(n, seed):
    """Return steps whose direction depends on the sign of dimension 1, like that of a car on its yaw."""
    steps, actions = maze_steps(n, seed)
    steps[:, 1, :2] = steps[:, 0, :2] + 0.2 * actions * torch.sign(steps[:, 0, 1:])[:, :1]
    return steps, actions


@pytest.fixture(scope='module')
def masked():
    """Fit a labeler to steps in a maze; it masks the position."""
    labeler = Labeler(DIM, ACTION_DIM)
    labeler.fit(*maze_steps(400, seed=0, wall=0.3), np.random.default_rng(0), position_dims=[1, 0])
    return labeler


def test_position_is_masked_if_it_does_not_generalize(masked):
    steps, actions = maze_steps(400, seed=0, wall=0.3)
    unmasked = Labeler(DIM, ACTION_DIM)
    unmasked.fit(steps, actions, np.random.default_rng(0))
    assert masked.input_mask.tolist() == [False, False] + [True] * (DIM - 2)

    # the coordinate of the wall, without a wall
    steps, actions = maze_steps(400, seed=1)
    steps[..., 1] += AT_WALL - steps[:, :1, 1]
    r2 = [r2_score(labeler(steps)[:, 1:], actions[:, 1:]) for labeler in (masked, unmasked)]
    assert r2[0] > 0.95
    assert r2[1] < 0.93, 'the wall must matter for this test'


def test_position_is_an_input_if_the_physics_depend_on_it():
    steps, actions = car_steps(600, seed=0)
    labeler = Labeler(DIM, ACTION_DIM)
    labeler.fit(steps, actions, np.random.default_rng(0), position_dims=[1, 0])
    assert labeler.input_mask.all()
    assert r2_score(labeler(steps), actions) > 0.9


def test_generalization_is_not_tested_if_the_kernel_ignores_position(monkeypatch):
    monkeypatch.setattr(labeler_module, 'position_generalizes', None)  # a call would fail
    steps, actions = joint_steps(300, seed=0)
    with_dims, without_dims = (Labeler(DIM, ACTION_DIM) for _ in range(2))
    with_dims.fit(steps, actions, np.random.default_rng(0), position_dims=[4, 5])
    without_dims.fit(steps, actions, np.random.default_rng(0))
    assert torch.equal(with_dims(steps), without_dims(steps)) and with_dims.input_mask.all()


def test_only_the_first_fit_decides_about_position(masked, monkeypatch):
    steps, actions = maze_steps(400, seed=0, wall=0.3)
    labeler = copy.deepcopy(masked)
    monkeypatch.setattr(labeler_module, 'position_generalizes', None)
    labeler.fit(steps, actions, np.random.default_rng(0), position_dims=[1, 0])
    assert not labeler.input_mask[:2].any()

    restored = Labeler(DIM, ACTION_DIM)
    restored.load_state_dict(labeler.state_dict())
    moved = steps + 5 * (torch.arange(DIM) < 2)
    torch.testing.assert_close(restored(moved), labeler(steps), rtol=1e-3, atol=1e-3)


def test_position_generalizes_if_it_is_constant():
    steps, actions = joint_steps(100, seed=0)
    steps[..., 4] = 1.0
    assert labeler_module.position_generalizes(steps, actions, torch.eye(DIM)[:, [4]],
                                               np.random.default_rng(0))


# -------------------------------------------------------------------------------------- state of the labeler
def test_labels_survive_large_weights_of_opposite_signs():
    labeler, steps = fitted(300), joint_steps(50, seed=9)[0]
    expected = labeler(steps)
    first = labeler.inducing_inputs[:1]
    labeler.inducing_inputs = torch.cat([labeler.inducing_inputs, first, first])
    large = torch.full((len(labeler.inducing_weights), 1, 1), 1e9, dtype=torch.float64)
    labeler.inducing_weights = torch.cat([labeler.inducing_weights, large, -large], 1)
    torch.testing.assert_close(labeler(steps), expected, atol=1e-4, rtol=0)


def test_labels_are_zero_before_a_fit_and_equal_after_loading():
    steps, _ = joint_steps(5, seed=1)
    empty, labeler = Labeler(DIM, ACTION_DIM), fitted(100)
    assert not empty.is_fitted and (empty(steps) == 0).all()
    empty.load_state_dict(copy.deepcopy(labeler.state_dict()))
    assert empty.is_fitted and torch.equal(empty(steps), labeler(steps))


def test_reset_undoes_fit_and_mask():
    labeler = fitted(100)
    labeler.mask_dims([0])
    labeler.reset()
    steps, _ = joint_steps(5, seed=1)
    assert not labeler.is_fitted and labeler.input_mask.all() and (labeler(steps) == 0).all()


def test_fit_ignores_an_empty_set_of_steps():
    labeler = Labeler(DIM, ACTION_DIM)
    assert labeler.fit(torch.zeros(0, 2, DIM), torch.zeros(0, ACTION_DIM), np.random.default_rng(0)) is None
    assert not labeler.is_fitted


def test_fit_is_deterministic_given_the_generator():
    steps, actions = joint_steps(100, seed=0)
    labelers = [Labeler(DIM, ACTION_DIM) for _ in range(2)]
    for labeler in labelers:
        labeler.fit(steps, actions, np.random.default_rng(3))
    assert torch.equal(*(labeler(steps) for labeler in labelers))


def test_r2_score():
    actions = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    assert r2_score(actions, actions) == 1
    assert r2_score(actions.mean(0).expand(40, 3), actions) == pytest.approx(0, abs=1e-6)


def turned(steps, inverse=False):
    """Return steps in which no dimension of the state is a joint."""
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(3)))[0]
    return steps @ (turn.T if inverse else turn)


def jointed_steps(n, seed):
    """Return steps of three joints, whose torques compete with springs that depend on the angle by a sine."""
    rng = np.random.default_rng(seed)
    angles, velocities = rng.uniform(-1.5, 1.5, (2, n, 3))
    actions = rng.uniform(-1, 1, (n, 3))
    next_velocities = velocities + 0.3 * actions - 0.5 * np.sin(2 * angles)
    next_angles = angles + 0.2 * next_velocities
    steps = np.stack([np.concatenate(pair, 1) for pair in
                      ((angles, velocities), (next_angles, next_velocities))], 1)
    return torch.from_numpy(steps).float(), torch.from_numpy(actions).float()


def alignment(rows):
    """Return the largest share of one dimension in each row, in [0, 1], of rows in turned coordinates."""
    shares = turned(rows.float(), inverse=True).square()
    return (shares / shares.sum(1, keepdim=True)).max(1).values


def test_axes_of_turned_joints_are_estimated():
    steps, actions = jointed_steps(800, seed=0)
    states, changes = turned(steps)[:, 0].double(), turned(steps).diff(dim=1)[:, 0].double()
    velocities, angles = estimate_axes(states - states.mean(0), changes, actions.double())
    assert alignment(velocities).min() > 0.9 and alignment(angles).min() > 0.6
    assert turned(velocities.float(), inverse=True).square().argmax(1).tolist() == [3, 4, 5]
    assert turned(angles.float(), inverse=True).square().argmax(1).tolist() == [0, 1, 2]


def test_axes_complete_a_basis():
    rows = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0.6, 0.8, 0, 0.01], [0, 0, 0, 0]]).double()
    axes = complete(rows)
    assert axes.shape == (4, 4) and torch.equal(axes[:2], rows[:2])
    assert torch.linalg.cond(axes) < 1.001


def test_axes_label_turned_states(monkeypatch):
    monkeypatch.setattr(labeler_module, 'MIN_AXES_STEPS', 500)
    monkeypatch.setattr(labeler_module, 'AXES_UPDATES', 60)
    monkeypatch.setattr(labeler_module, 'KERNEL_BATCH', 150)
    steps, actions = jointed_steps(600, seed=0)
    labeler, plain = Labeler(DIM, 3), Labeler(DIM, 3)
    monkeypatch.setattr(labeler_module, 'ENOUGH_R2', 0.999)
    labeler.fit(turned(steps), actions, np.random.default_rng(0), kernel_updates=20)
    monkeypatch.setattr(labeler_module, 'ENOUGH_R2', -10)
    plain.fit(turned(steps), actions, np.random.default_rng(0), kernel_updates=20)

    # better labels, by axes of angles and velocities
    assert len(labeler.axes) and not len(plain.axes)
    steps, actions = jointed_steps(500, seed=1)
    before, after = (1 - r2_score(some(turned(steps)), actions) for some in (plain, labeler))
    assert after < 0.4 * before, (before, after)

    # a restored labeler is the same
    restored = Labeler(DIM, 3)
    restored.load_state_dict(labeler.state_dict())
    assert torch.equal(restored(turned(steps)), labeler(turned(steps)))


def test_good_labels_of_dimensions_stay():
    steps, actions = joint_steps(300, seed=0)
    labeler = Labeler(DIM, ACTION_DIM)
    labeler.fit(steps, actions, np.random.default_rng(0))
    assert not len(labeler.axes) and labeler.r2.min() > 0.85


def test_r2_is_reported_for_each_action():
    steps, actions = joint_steps(600, seed=0)
    actions[:, 1] = torch.rand(600, generator=torch.Generator().manual_seed(0)) * 2 - 1  # without effect
    labeler = Labeler(DIM, ACTION_DIM)
    labeler.fit(steps, actions, np.random.default_rng(0), kernel_updates=20)
    assert labeler.r2[0] > 0.85 and labeler.r2[1] < labeler_module.IDLE_R2


def test_a_masked_direction_does_not_change_labels():
    steps, actions = joint_steps(200, seed=0)
    labeler = Labeler(DIM, ACTION_DIM)
    direction = torch.tensor([0, 0, 0, 0.6, 0.8, 0])[:, None]
    labeler.mask(direction)
    labeler.fit(steps, actions, np.random.default_rng(0), kernel_updates=5)
    moved = steps + 5 * direction.T
    torch.testing.assert_close(labeler(moved), labeler(steps), atol=1e-3, rtol=0)
    assert labeler.masks_position
