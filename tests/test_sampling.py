"""Windows, hindsight goals and rewards of `TrajectoryDataset`; episodes in `ReplayBuffer`; `load_dataset`."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import trajectories
from support.files import load_checkpoint, save_checkpoint
from trajectories import ReplayBuffer, TrajectoryDataset, load_dataset, slowness_summary

LENGTHS = (40, 2, 23, 9, 31)
TRAJECTORY = np.repeat(np.arange(len(LENGTHS)), LENGTHS)  # row -> trajectory
ENDS = np.cumsum(LENGTHS) - 1
END_OF = ENDS[TRAJECTORY]  # row -> last row of its trajectory
ROWS = np.arange(len(TRAJECTORY))
CONTEXT, STEPS = 12, 4
LENGTH = CONTEXT + STEPS  # of a window


def make_tagged(**changes):
    """Dataset whose states are (trajectory, row), so that a batch shows the origin of its states."""
    sampling = dict(context_length=CONTEXT, transition_steps=STEPS, discount=0.9, positions_per_window=6)
    return TrajectoryDataset(np.stack([TRAJECTORY, ROWS], 1).astype(np.float32),
                             np.append(0, ENDS[:-1] + 1), ENDS, **(sampling | changes))


def draw_batch(size=300, seed=0, **changes):
    """Return a batch of numpy arrays, and the rows (B, P) of its transitions."""
    tensors = make_tagged(**changes).sample(size, np.random.default_rng(seed))
    batch = SimpleNamespace(**{name: tensor.numpy() for name, tensor in vars(tensors).items()})
    return batch, np.take_along_axis(batch.observations[..., 1], batch.positions, 1).astype(int)


def draw_transitions(size=20_000, seed=0, **changes):
    """Return Transitions of random rows with a next state, and the rows."""
    data, rng = make_tagged(**changes), np.random.default_rng(seed)
    rows = rng.choice(data.transition_rows, size)
    return data.sample_transitions(rows, rng), rows


# --------------------------------------------------------------------------------------------------- windows
def test_windows_stay_inside_a_trajectory():
    batch, _ = draw_batch(2000)
    trajectory, rows = np.moveaxis(batch.observations, -1, 0).astype(int)
    valids, first, end = batch.valids, rows[:, :1], END_OF[rows[:, :1]]
    assert trajectory.shape == valids.shape == (2000, LENGTH) and valids.dtype == bool
    assert (trajectory == trajectory[:, :1]).all()
    assert (rows == np.minimum(first + np.arange(LENGTH), end)).all()
    assert (valids == (first + np.arange(LENGTH) <= end)).all()  # padding is at the end
    missing = (~valids).sum(1)
    assert set(missing[np.array(LENGTHS)[trajectory[:, 0]] > CONTEXT]) == set(range(STEPS))
    begin = END_OF - np.array(LENGTHS)[TRAJECTORY] + 1  # row -> first row of its trajectory
    assert set(first[:, 0]) == set(ROWS[np.maximum(begin, END_OF - CONTEXT) >= ROWS])


class EveryDraw:
    """A generator whose draws of a window are each combination of a row of the data and a cut, once."""

    def __init__(self, rows, cuts):
        grid = np.meshgrid(np.arange(rows), np.arange(cuts), indexing='ij')
        self.draws = {rows: grid[0].ravel(), cuts: grid[1].ravel()}

    def integers(self, high, size):
        assert size == len(self.draws[high])
        return self.draws[high]


@pytest.mark.parametrize('lengths', [(201,), (1001,), (101, 100, 102), LENGTHS])
def test_every_row_is_drawn_equally_often(lengths):
    """The exact expectation, over all draws of windows: no row is rarer at a border or in a short trajectory."""
    ends = np.cumsum(lengths) - 1
    data = TrajectoryDataset(np.zeros((ends[-1] + 1, 1), np.float32), np.append(0, ends[:-1] + 1), ends,
                             context_length=CONTEXT if lengths is LENGTHS else 100)
    rows, cuts = len(data.transition_rows), data.context_length
    windows = data.draw_windows(rows * cuts, EveryDraw(rows, cuts))

    # each window adds 1 in all to the rows from which its transitions are drawn
    weight = np.zeros(len(data) + 1)
    np.add.at(weight, windows.piece, 1 / windows.size)
    np.add.at(weight, windows.piece + windows.size, -1 / windows.size)
    weight = weight.cumsum()[:-1]
    np.testing.assert_allclose(weight[data.transition_rows], cuts, rtol=1e-9)
    np.testing.assert_allclose(weight[ends], 0, atol=1e-9)


@pytest.mark.parametrize('positions', [0, 6])
def test_sample_draws_every_row_equally_often(positions):
    """Both kinds of positions; rows have the same weight at any length of their trajectory."""
    _, rows = draw_batch(30_000, positions_per_window=positions)
    expected = rows.size / len(make_tagged().transition_rows)
    weight = np.bincount(rows.ravel(), minlength=len(ROWS)) / expected
    assert (weight[ENDS] == 0).all()
    np.testing.assert_allclose(np.delete(weight, ENDS), 1, atol=0.1)


def test_transitions_are_k_steps_or_up_to_the_end():
    batch, rows = draw_batch()
    positions, following = batch.positions, batch.next_positions
    assert positions.shape == (300, 6) and positions.dtype == following.dtype == np.int64
    assert positions.min() == 0 and positions.max() == CONTEXT - 1 and following.max() == LENGTH - 1
    states = np.take_along_axis(batch.observations, following[..., None], 1).astype(int)
    assert (states[..., 0] == TRAJECTORY[rows]).all()
    assert (states[..., 1] == np.minimum(rows + STEPS, END_OF[rows])).all()
    assert np.take_along_axis(batch.valids, following, 1).all()


def test_sample_draws_every_transition_row_and_no_end():
    _, rows = draw_batch(2000)
    assert set(make_tagged().transition_rows) == set(rows.ravel()) == set(ROWS) - set(ENDS)


@pytest.mark.parametrize('count', [0, CONTEXT, 99])  # 99: more than a window has
def test_sample_with_all_positions_of_a_window(count):
    """Each row of a piece is a position; short pieces repeat their rows evenly."""
    batch, rows = draw_batch(positions_per_window=count)
    sizes = []
    for row, positions in zip(rows, batch.positions, strict=True):
        piece, repeats = np.unique(row, return_counts=True)
        assert (np.diff(piece) == 1).all() and np.ptp(repeats) <= 1
        if len(piece) == CONTEXT:
            assert (positions == np.arange(CONTEXT)).all()
        if LENGTHS[TRAJECTORY[row[0]]] <= CONTEXT:  # a short trajectory is one piece
            assert len(piece) == LENGTHS[TRAJECTORY[row[0]]] - 1
        sizes.append(len(piece))
    assert CONTEXT in sizes and min(sizes) < CONTEXT


def test_window_batch_is_state_only_and_float32(make_replay):
    for data in (make_tagged(), make_replay()):
        batch = data.sample(3, np.random.default_rng(0))
        tensors = vars(batch)
        assert 'actions' not in tensors and all(isinstance(value, torch.Tensor) for value in tensors.values())
        kinds = {name: value.dtype for name, value in tensors.items() if value.is_floating_point()}
        assert kinds == dict.fromkeys(('observations', 'rewards', 'discounts', 'goals', 'proposer_goals'),
                                      torch.float32)
        assert batch.goals.shape == batch.proposer_goals.shape == (3, 6, data.observations.shape[1])


def test_sample_depends_on_the_generator_only():
    data, rng = make_tagged(), np.random.default_rng(3)
    state = rng.bit_generator.state
    first, second = data.sample(5, rng), data.sample(5, rng)
    rng.bit_generator.state = state
    again = data.sample(5, rng)
    assert all(torch.equal(value, getattr(again, name)) for name, value in vars(first).items())
    assert not torch.equal(first.observations, second.observations)
    assert not torch.equal(first.goals, second.goals)


# ---------------------------------------------------------------------------------------- goals and rewards
def test_goals_are_current_future_or_random_rows():
    batch, rows = draw_batch(3000)
    trajectory, goals = np.moveaxis(batch.goals, -1, 0).astype(int)
    current, future = batch.at_goal, batch.future
    assert not (current & future).any()
    assert (goals[current] == rows[current]).all()
    assert (goals[future] > rows[future]).all() and (trajectory[future] == TRAJECTORY[rows[future]]).all()
    anywhere = goals[~current & ~future]
    frequency = np.bincount(anywhere, minlength=len(ROWS)) / len(anywhere)
    assert np.abs(frequency - 1 / len(ROWS)).max() < 0.005  # 5,400 of them over 105 rows


@pytest.mark.parametrize('current, random', [(0.2, 0.3), (0.0, 0.0), (0.3, 0.7), (1.0, 0.0), (0.0, 1.0)])
def test_fractions_of_goals_equal_the_flags(current, random):
    batch, _ = draw_transitions(current_goals=current, random_goals=random)
    shares = batch.at_goal.mean(), batch.future.mean()
    assert np.abs(np.subtract(shares, (current, 1 - current - random))).max() < 0.015
    for share, expected in zip(shares, (current, 1 - current - random), strict=True):
        assert (share == 0) == (expected < 1e-9)


def test_future_goals_have_a_truncated_geometric_distribution():
    data, rng = make_tagged(current_goals=0, random_goals=0), np.random.default_rng(0)
    distance = data.sample_transitions(np.full(20_000, 20), rng).goal_rows - 20  # 19 states are left
    frequency = np.bincount(distance, minlength=20) / 20_000
    expected = np.array([0, *0.9 ** np.arange(19)])
    expected /= expected.sum()
    assert np.abs(frequency - expected).max() < 0.012


def simulate(row, goal, next_row):
    """Walk from row to next_row at -1 per step with discount 0.9; return (reward, discount afterwards)."""
    reward, discount = 0.0, 1.0
    for position in range(row, next_row):
        if position == goal:
            return reward, 0.0
        reward, discount = reward - discount, discount * 0.9
    return reward, 0.0 if next_row == goal else discount


def test_rewards_and_discounts_equal_a_simulated_walk():
    batch, rows = draw_transitions(4000)
    goals = np.where(batch.at_goal | batch.future, batch.goal_rows, -1)  # -1: never met
    walked = [simulate(*numbers) for numbers in zip(rows, goals, batch.next_rows, strict=True)]
    rewards, discounts = np.array(walked).T
    np.testing.assert_allclose(batch.rewards, rewards, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(batch.discounts, discounts, rtol=1e-5, atol=1e-6)
    on_the_way = batch.future & (goals < batch.next_rows)
    beyond = batch.future & (goals > batch.next_rows)
    assert min(on_the_way.sum(), beyond.sum(), (goals == batch.next_rows).sum()) > 100
    assert (batch.rewards[batch.at_goal] == 0).all()


def test_proposer_goals_are_uniform_over_future_rows():
    data, rng = make_tagged(proposer_random_goals=0), np.random.default_rng(0)
    batch = data.sample_transitions(np.full(20_000, 19), rng)  # 20 states follow
    count = np.bincount(batch.proposer_goal_rows, minlength=len(ROWS))
    assert (count[:20] == 0).all() and (count[40:] == 0).all()
    assert np.abs(count[20:40] - 1000).max() < 160  # 5 standard deviations
    assert (batch.proposer_near == (batch.proposer_goal_rows <= 19 + STEPS)).all()


@pytest.mark.parametrize('share', [0.2, 1.0])
def test_random_proposer_goals_are_never_near(share):
    batch, rows = draw_transitions(proposer_random_goals=share)
    goals, near = batch.proposer_goal_rows, batch.proposer_near
    assert (goals[near] > rows[near]).all() and (goals[near] <= batch.next_rows[near]).all()
    elsewhere = (TRAJECTORY[goals] != TRAJECTORY[rows]) | (goals <= rows)
    assert not (near & elsewhere).any()
    behind = np.mean([1 - (END_OF[row] - row) / len(ROWS) for row in rows])  # chance of a row elsewhere
    assert abs(elsewhere.mean() - share * behind) < 0.015
    assert near.any() == (share < 1)


# -------------------------------------------------------------------------------------------------- numbers
def test_num_windows_and_statistics():
    assert make_tagged().num_windows == 4 + 1 + 2 + 1 + 3
    ends = np.array([12, 26])  # 13 states, 12 of them with a next one, and 14
    assert TrajectoryDataset(np.zeros((27, 2)), np.array([0, 13]), ends, CONTEXT).num_windows == 1 + 2
    data = make_tagged()
    data.observations = data.observations * 1e4 + 1e7  # float32 sums are not exact enough for these
    mean, std = data.statistics()
    rows = data.observations.astype(np.float64)
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, rows.std(0), rtol=1e-9)


@pytest.mark.parametrize('changes, name', [
    (dict(current_goals=0.8), 'random_goals=0.3'),
    (dict(current_goals=-0.1), 'current_goals=-0.1'),
    (dict(random_goals=-0.1), 'random_goals=-0.1'),
    (dict(proposer_random_goals=-0.1), 'proposer_random_goals=-0.1'),
    (dict(proposer_random_goals=1.1), 'proposer_random_goals=1.1'),
    (dict(context_length=0), 'context_length=0'),
    (dict(transition_steps=0), 'transition_steps=0'),
    (dict(positions_per_window=-1), 'positions_per_window=-1'),
    (dict(discount=1.0), 'discount=1.0'),
    (dict(discount=0.0), 'discount=0.0'),
])
def test_trajectory_dataset_names_parameters_out_of_range(changes, name):
    with pytest.raises(ValueError, match=name):
        make_tagged(**changes)


# -------------------------------------------------------------------------------------------- replay buffer
def episode(length, rng):
    states = rng.standard_normal((length, 3)).astype(np.float32)
    actions = rng.uniform(-1, 1, (length - 1, 2)).astype(np.float32)
    return states, actions


def assert_holds(replay, episodes):
    """Assert that the buffer contains exactly these episodes, in order."""
    assert len(replay) == sum(len(states) for states, _ in episodes)
    assert len(replay.starts) == len(replay.ends) == len(episodes)
    for (states, actions), start, end in zip(episodes, replay.starts, replay.ends, strict=True):
        assert np.array_equal(replay.observations[start:end + 1], states)
        assert np.array_equal(replay.actions[start:end], actions)
        assert (replay.end_of[start:end + 1] == end).all()
    rows = set(range(len(replay)))
    assert set(replay.transition_rows) == rows - set(replay.ends) and len(replay.end_of) == len(replay)


@pytest.mark.parametrize('capacity', [20, 61, 10_000])
def test_replay_keeps_the_newest_whole_episodes(capacity):
    rng = np.random.default_rng(capacity)
    replay, expected = ReplayBuffer(3, 2, capacity), []
    for length in rng.integers(2, 20, 60):
        new, dropped = episode(length, rng), 0
        while sum(len(states) for states, _ in expected) + length > capacity:
            dropped += len(expected.pop(0)[0])
        expected.append(new)
        assert replay.add(*new) == dropped
        assert_holds(replay, expected)
    assert (capacity == 10_000) == (len(expected) == 60)


def test_replay_fills_its_last_slot():
    rng, replay = np.random.default_rng(0), ReplayBuffer(3, 2, capacity=10)
    episodes = [episode(5, rng), episode(5, rng)]
    assert [replay.add(*e) for e in episodes] == [0, 0]
    assert_holds(replay, episodes)
    whole = episode(10, rng)
    assert replay.add(*whole) == 10
    assert_holds(replay, [whole])


def test_full_replay_seldom_copies_its_rows():
    """Its rows are copied only when the spare room of a quarter is used up."""
    rng, replay, made = np.random.default_rng(0), ReplayBuffer(3, 2, capacity=100), []
    queue = replay.queues['observations']
    empty = queue.empty
    queue.empty = lambda n: (made.append(n), empty(n))[1]
    for _ in range(60):
        replay.add(*episode(10, rng))
    assert len(replay) == 100 and 10 < len(made) < 35 and max(made) <= 130


def test_replay_copies_episodes():
    rng, replay = np.random.default_rng(0), ReplayBuffer(3, 2)
    states, actions = episode(5, rng)
    kept = states.copy(), actions.copy()
    replay.add(states, actions)
    states[:], actions[:] = 9, 9
    assert_holds(replay, [kept])


def test_replay_is_restored_from_a_checkpoint(tmp_path):
    rng, replay = np.random.default_rng(0), ReplayBuffer(3, 2, capacity=30)
    episodes = [episode(n, rng) for n in (12, 9, 7, 11)]
    for e in episodes[:3]:
        replay.add(*e)
    save_checkpoint(tmp_path / 'last.pth', {'replay': replay.state_dict()})
    loaded = ReplayBuffer(3, 2, capacity=30)
    loaded.load_state_dict(load_checkpoint(tmp_path / 'last.pth')['replay'])
    assert_holds(loaded, episodes[:3])
    assert loaded.add(*episodes[3]) == 12
    assert_holds(loaded, episodes[1:])
    ReplayBuffer(3, 2).load_state_dict(ReplayBuffer(3, 2).state_dict())


@pytest.mark.parametrize('states, actions', [(1, 0), (5, 5), (5, 3), (11, 10)])  # 11 rows do not fit
def test_replay_refuses_bad_episodes(states, actions):
    rng, replay = np.random.default_rng(0), ReplayBuffer(3, 2, capacity=10)
    good = episode(6, rng)
    replay.add(*good)
    with pytest.raises(ValueError, match=f'{states} and {actions}'):
        replay.add(np.zeros((states, 3), np.float32), np.zeros((actions, 2), np.float32))
    assert_holds(replay, [good])


def test_replay_samples_filled_rows_only(make_replay):
    replay = make_replay(lengths=(15, 8, 33, 2))
    assert len(replay.queues['observations'].storage) > len(replay)  # spare room must not be sampled
    mean, _ = replay.statistics()
    np.testing.assert_allclose(mean, replay.observations[:58].mean(0, dtype=np.float64))
    known = {tuple(row) for row in replay.observations[:58].tolist()}
    batch = replay.sample(200, np.random.default_rng(0))
    for name in ('observations', 'goals', 'proposer_goals'):
        assert {tuple(row) for row in getattr(batch, name).flatten(0, 1).tolist()} <= known


# -------------------------------------------------------------------------------------------- load_dataset
NAME = 'antmaze-medium-navigate-v0'


def write_npz(path, count, offset=0):
    """Write `count` trajectories of 3 states, with actions that must not be read."""
    rows = np.arange(offset, offset + 3 * count, dtype=np.float32)
    np.savez(path, observations=np.stack([rows, -rows], 1), terminals=(np.arange(3 * count) % 3 == 2),
             actions=np.array(['not to be read'], dtype=object))
    return str(path)


def test_load_dataset_uses_the_validation_file(tmp_path):
    path = write_npz(tmp_path / 'some.npz', 20)
    write_npz(tmp_path / 'some-val.npz', 4, offset=1000)
    train, val, source = load_dataset(NAME, path, max_trajectories=7, context_length=3, transition_steps=2)
    assert train.observations[:, 0].tolist() == list(range(21))
    assert val.observations[:, 0].tolist() == list(range(1000, 1012))
    assert source.path == str((tmp_path / 'some.npz').resolve())
    assert 'some.npz' in source.note and 'held out' not in source.note
    for data in (train, val):
        assert (data.context_length, data.transition_steps) == (3, 2)
        assert data.ends.tolist() == list(range(2, len(data), 3))


@pytest.mark.parametrize('count, held', [(20, 2), (9, 1), (2, 1)])
def test_load_dataset_holds_out_the_last_tenth(tmp_path, count, held):
    train, val, source = load_dataset(NAME, write_npz(tmp_path / 'some.npz', count), context_length=3)
    border = 3 * (count - held)
    assert train.observations[:, 0].tolist() == list(range(border))
    assert val.observations[:, 0].tolist() == list(range(border, 3 * count))
    assert train.ends.tolist() == list(range(2, border, 3))
    assert val.ends.tolist() == list(range(2, 3 * held, 3))
    assert f'the last {held} trajectories are held out' in source.note
    assert train.context_length == val.context_length == 3
    assert set(val.sample(5, np.random.default_rng(0)).observations[..., 0].unique().int().tolist()) <= set(
        range(border, 3 * count))


def test_load_dataset_refuses_one_trajectory_without_validation_file(tmp_path):
    with pytest.raises(ValueError, match='some.npz: only one trajectory is used and there is no -val file'):
        load_dataset(NAME, write_npz(tmp_path / 'some.npz', 5), max_trajectories=1)


def test_slowness_separates_drift_from_noise():
    """Of a drift, noise and a constant, only the drift is slow."""
    rng = np.random.default_rng(0)
    drift = np.cumsum(rng.standard_normal((20, 200)), 1)
    observations = np.stack([drift, rng.standard_normal((20, 200)), np.ones((20, 200))], -1).reshape(-1, 3)
    ends = np.arange(199, 4000, 200)
    slowness = TrajectoryDataset(observations.astype(np.float32), ends - 199, ends).slowness()
    assert slowness[0] == 1 and slowness[1] < 0.01 and 0 <= slowness[2] < 0.01


def make_trajectories(count=20, length=200, **dimensions):
    """TrajectoryDataset whose dimensions are arrays (count, length)."""
    observations = np.stack([np.broadcast_to(value, (count, length)) for value in dimensions.values()], -1)
    ends = np.arange(length - 1, count * length, length)
    observations = observations.reshape(-1, len(dimensions)).astype(np.float32)
    return TrajectoryDataset(observations, ends - length + 1, ends)


def test_slowness_is_zero_for_constants_of_a_trajectory():
    """A mass or an identifier differs between trajectories only."""
    rng = np.random.default_rng(0)
    position = np.cumsum(rng.standard_normal((20, 200)), 1)
    noise = rng.standard_normal((20, 200))
    identifier = np.arange(20)[:, None]
    alone = make_trajectories(position=position, noise=noise).slowness()
    slowness = make_trajectories(identifier=identifier, position=position, noise=noise).slowness()
    assert slowness[0] == 0
    np.testing.assert_allclose(slowness[1:], alone)


def test_slowness_limits_the_time_scale_to_the_longest_trajectory():
    """A dimension that hardly changes would otherwise have a time scale of a million steps."""
    rng = np.random.default_rng(0)
    position = np.cumsum(rng.standard_normal((20, 200)), 1)
    nearly = 1000 * np.arange(20)[:, None] + 1e-2 * position
    slowness = make_trajectories(nearly=nearly, position=position).slowness()
    assert slowness[0] == 1 and slowness[1] > 0.01


def test_slowness_summary_warns_about_a_dominant_dimension():
    line, warning = slowness_summary(np.array([0.001, 1.0, 0.5]))
    assert '1: 1' in line and not warning
    line, warning = slowness_summary(np.array([0.001, 1.0, 0.05]))
    assert 'dimension 1 ' in warning and '95%' in warning and '--no-slow_goals' in warning
    assert not slowness_summary(np.ones(1))[1]


def test_statistics_do_not_depend_on_the_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    data = make_trajectories(7, 150, a=1000 + rng.standard_normal((7, 150)), b=rng.standard_normal((7, 150)))
    monkeypatch.setattr(trajectories, 'ROWS_AT_ONCE', 64)
    mean, std = data.statistics()
    np.testing.assert_allclose(mean, data.observations.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(std, data.observations.std(0, dtype=np.float64), rtol=1e-9)
