"""The labeler: what a few own steps tell it, and what it makes of states that they have not shown."""

import copy

import numpy as np
import pytest
import torch

from labeling import labeler as labeler_module
from labeling.labeler import Labeler, explained

DIM, ACTION_DIM = 6, 2
AT_WALL = 1.0


def joints(n, seed, spread=1.0):
    """Steps of a robot each of whose actions moves one number, by how much another one decides; the rest is noise."""
    rng = np.random.default_rng(seed)
    states = spread * rng.standard_normal((n, DIM))
    actions = rng.uniform(-1, 1, (n, ACTION_DIM))
    change = 0.3 * rng.standard_normal((n, DIM))
    change[:, 0] = 0.2 * actions[:, 0] * (1 + 0.5 * np.tanh(states[:, 2]))
    change[:, 1] = 0.2 * actions[:, 1] - 0.1 * states[:, 1]
    return torch.from_numpy(np.stack([states, states + change], 1)).float(), torch.from_numpy(actions).float()


def fitted(n, seed=0, **options):
    labeler = Labeler(DIM, ACTION_DIM)
    labeler.fit(*joints(n, seed, **options), np.random.default_rng(0))
    return labeler


def test_a_few_steps_tell_what_matters():
    labeler = fitted(200)
    steps, actions = joints(500, seed=1)
    assert explained(labeler(steps), actions) > 0.9

    reach = torch.exp(-labeler.log_length)
    assert {*reach[0].topk(2).indices.tolist()} == {2, DIM}, 'what decides the first action'
    others = steps.clone()
    others[..., 3:] = torch.randn(500, 2, DIM - 3)
    assert (labeler(others) - labeler(steps)).abs().mean() < 0.1


def test_more_steps_tell_more():
    steps, actions = joints(500, seed=1)
    few, many = (explained(fitted(n)(steps), actions) for n in (40, 1000))
    assert 0.3 < few < many and many > 0.97


def test_r2_is_of_steps_that_were_held_out():
    steps, actions = joints(300, seed=0)
    r2 = Labeler(DIM, ACTION_DIM).fit(steps, actions, np.random.default_rng(0))
    assert 0.9 < r2 < 1
    unrelated = torch.rand(300, ACTION_DIM) * 2 - 1
    assert Labeler(DIM, ACTION_DIM).fit(steps, unrelated, np.random.default_rng(0)) < 0.2
    assert Labeler(DIM, ACTION_DIM).fit(steps[:15], actions[:15], np.random.default_rng(0)) is None


def hands(n, seed):
    """Steps of a hand that each action opens or closes a little, between open (1) and closed (-1)."""
    rng = np.random.default_rng(seed)
    opening = np.clip(1.5 * rng.uniform(-1, 1, n), -1, 1)
    actions = rng.uniform(-1, 1, n)
    after = np.clip(opening + 0.2 * actions, -1, 1)
    steps = np.stack([opening, after], 1)[..., None]
    return torch.from_numpy(steps).float(), torch.from_numpy(actions[:, None]).float()


def test_of_actions_that_do_the_same_a_gentle_label_is_a_small_one():
    small_action_prior, usual = Labeler(1, 1), Labeler(1, 1)
    for labeler in small_action_prior, usual:
        labeler.fit(*hands(2000, seed=0), np.random.default_rng(0), small_action_prior=0.2 * (labeler is small_action_prior))

    stays_open = torch.ones(1, 2, 1)
    assert usual(stays_open) > 0.35, 'the mean of all that leave it open'
    assert small_action_prior(stays_open) < 0.25

    closing = torch.tensor([[[0.5], [0.4]], [[0.5], [0.6]]])
    for labeler in small_action_prior, usual:
        torch.testing.assert_close(labeler(closing), torch.tensor([[-0.5], [0.5]]), atol=0.08, rtol=0)


def test_nothing_is_taken_for_further_than_own_steps_show():
    labeler = fitted(200)
    steps, _ = joints(50, seed=1)
    steps[:, :, 0] += 30
    further = steps + torch.tensor([50.0] + [0.0] * (DIM - 1))
    torch.testing.assert_close(labeler(further), labeler(steps), rtol=1e-3, atol=1e-3)


def test_what_never_varied_is_not_seen():
    steps, actions = joints(200, seed=0)
    steps[..., 5] = 3.0
    labeler = Labeler(DIM, ACTION_DIM)
    labeler.fit(steps, actions, np.random.default_rng(0))
    elsewhere = steps.clone()
    elsewhere[..., 5] = 4.0
    assert torch.equal(labeler(elsewhere), labeler(steps)) and labeler(steps).isfinite().all()


def test_actions_that_are_a_matter_of_course_are_told_exactly():
    """Without noise, nothing becomes singular."""
    rng = np.random.default_rng(0)
    actions = torch.from_numpy(rng.uniform(-1, 1, (400, ACTION_DIM))).float()
    steps = torch.zeros(400, 2, DIM)
    steps[:, 1, :ACTION_DIM] = actions
    labeler = Labeler(DIM, ACTION_DIM)
    assert labeler.fit(steps, actions, rng) > 0.999
    assert labeler.fit(steps[:1], actions[:1], rng) is None and labeler(steps).isfinite().all()


def test_it_compares_with_few_points_and_learns_from_more(monkeypatch):
    steps, actions = joints(1500, seed=0)
    test_steps, test_actions = joints(500, seed=1)
    monkeypatch.setattr(labeler_module, 'MAX_POINTS', 100)
    r2 = []
    for count in 112, 1500:
        labeler = Labeler(DIM, ACTION_DIM)
        labeler.fit(steps[:count], actions[:count], np.random.default_rng(0))
        r2.append(explained(labeler(test_steps), test_actions))
    assert len(labeler.points) == 100 and 1 - r2[1] < 0.5 * (1 - r2[0])
    monkeypatch.setattr(labeler_module, 'MAX_STEPS', 90)
    labeler.fit(steps, actions, np.random.default_rng(0))
    assert len(labeler.points) == 81


@pytest.mark.parametrize('count', [60, 300])
def test_weights_are_those_of_the_exact_process(count):
    """As long as every own step is a point: K(x, X) (K(X, X) + noise)^-1 y."""
    labeler = fitted(count)
    rows = np.sort(np.random.default_rng(0).permutation(count)[int(0.1 * count):])
    own, actions = (values[rows] for values in joints(count, seed=0))
    steps, _ = joints(20, seed=1)

    def kernel(x, y):
        return labeler._smooth_kernel(x, y) + labeler._linear_kernel(x, y)

    with torch.no_grad():
        x, points = (labeler._standardize(labeler._inputs(some)) for some in (steps, own))
        covariance = kernel(points, points) + labeler._noise() * torch.eye(len(own))
        labels = kernel(x, points) @ torch.linalg.solve(covariance, actions.double().T.unsqueeze(-1))
    torch.testing.assert_close(labeler(steps), labels.squeeze(-1).T.float().clamp(-1, 1), rtol=1e-3, atol=1e-3)


def walks(n, seed, wall=0.0):
    """Steps of a point, whose place is the first two numbers. A share `wall` of them is at one, which stops the second;
    the others are nowhere as far up."""
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


def turned(n, seed):
    """Where an action leads is decided by the second number, as by where a car points to."""
    steps, actions = walks(n, seed)
    steps[:, 1, :2] = steps[:, 0, :2] + 0.2 * actions * torch.sign(steps[:, 0, 1:])[:, :1]
    return steps, actions


def test_what_happened_at_a_wall_is_not_inferred_elsewhere():
    steps, actions = walks(400, seed=0, wall=0.3)
    blind, seeing = (Labeler(DIM, ACTION_DIM) for _ in range(2))
    blind.fit(steps, actions, np.random.default_rng(0), places=[1, 0])
    seeing.fit(steps, actions, np.random.default_rng(0))
    assert blind.seen.tolist() == [False, False] + [True] * (2 * DIM - 2)

    # as far up, where no wall is
    steps, actions = walks(400, seed=1)
    steps[..., 1] += AT_WALL - steps[:, :1, 1]
    upward = [explained(labeler(steps)[:, 1:], actions[:, 1:]) for labeler in (blind, seeing)]
    assert upward[0] > 0.95
    assert upward[1] < 0.93, 'else there was nothing to try out'


def test_places_are_seen_where_physics_depends_on_them():
    steps, actions = turned(600, seed=0)
    labeler = Labeler(DIM, ACTION_DIM)
    labeler.fit(steps, actions, np.random.default_rng(0), places=[1, 0])
    assert labeler.seen.all()
    assert explained(labeler(steps), actions) > 0.9


def test_nothing_is_tried_out_where_labels_depend_on_no_place(monkeypatch):
    monkeypatch.setattr(labeler_module, 'places_help', None)  # a call would fail
    steps, actions = joints(300, seed=0)
    with_places, without = (Labeler(DIM, ACTION_DIM) for _ in range(2))
    with_places.fit(steps, actions, np.random.default_rng(0), places=[4, 5])
    without.fit(steps, actions, np.random.default_rng(0))
    assert torch.equal(with_places(steps), without(steps)) and with_places.seen.all()


def test_only_the_first_fit_decides(monkeypatch):
    steps, actions = walks(400, seed=0, wall=0.3)
    labeler = Labeler(DIM, ACTION_DIM)
    labeler.fit(steps, actions, np.random.default_rng(0), places=[1, 0])
    monkeypatch.setattr(labeler_module, 'places_help', None)
    labeler.fit(steps, actions, np.random.default_rng(0), places=[1, 0])
    assert not labeler.seen[:2].any()

    restored = Labeler(DIM, ACTION_DIM)
    restored.load_state_dict(labeler.state_dict())
    elsewhere = steps + 5 * (torch.arange(DIM) < 2)
    torch.testing.assert_close(restored(elsewhere), labeler(steps), rtol=1e-3, atol=1e-3)


def test_where_all_steps_are_at_one_place_it_stays_seen():
    steps, actions = joints(100, seed=0)
    steps[..., 4] = 1.0
    assert labeler_module.places_help(steps, actions, [4], np.random.default_rng(0))


def test_a_labeler_from_before_numbers_were_hidden_sees_all():
    labeler = fitted(100)
    state = labeler.state_dict()
    del state['seen']
    older = Labeler(DIM, ACTION_DIM)
    older.load_state_dict(state)
    steps, _ = joints(5, seed=1)
    assert torch.equal(older(steps), labeler(steps))


def test_it_begins_with_zeros_and_survives_a_checkpoint():
    steps, _ = joints(5, seed=1)
    empty, labeler = Labeler(DIM, ACTION_DIM), fitted(100)
    assert not empty.is_fitted and (empty(steps) == 0).all()
    empty.load_state_dict(copy.deepcopy(labeler.state_dict()))
    assert empty.is_fitted and torch.equal(empty(steps), labeler(steps))


def test_without_steps_there_is_nothing_to_learn():
    labeler = Labeler(DIM, ACTION_DIM)
    assert labeler.fit(torch.zeros(0, 2, DIM), torch.zeros(0, ACTION_DIM), np.random.default_rng(0)) is None
    assert not labeler.is_fitted


def test_equal_generators_make_equal_labelers():
    steps, actions = joints(100, seed=0)
    labelers = [Labeler(DIM, ACTION_DIM) for _ in range(2)]
    for labeler in labelers:
        labeler.fit(steps, actions, np.random.default_rng(3))
    assert torch.equal(*(labeler(steps) for labeler in labelers))


def test_explained():
    actions = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    assert explained(actions, actions) == 1
    assert explained(actions.mean(0).expand(40, 3), actions) == pytest.approx(0, abs=1e-6)
