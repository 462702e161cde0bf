"""`ogbench_utils.py check`: a table by dimension, and goals of an environment compared with the data."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

import docs.own_robot
from environments import data_check
from ogbench_utils import main
from planning.time_scales import choose_numbers
from support.steps import dimension_notes, find_longest_rest
from trajectories import TrajectoryDataset

COUNT, LENGTH = 20, 301


@pytest.fixture(scope='module')
def walks():
    """States (20, 301, 3) of smooth random walks, of which the first one is the slowest."""
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((COUNT, LENGTH + 8, 3)).cumsum(1)
    smooth = sum(steps[:, i:i + LENGTH] for i in range(8)) / 8
    return smooth * [3.0, 1.0, 1.0] - [0.0, *[0.9] * 2] * smooth.mean(1, keepdims=True)


@pytest.fixture
def check(tmp_path, capsys, monkeypatch):
    """check(states (n, T, S), *flags) -> {dimension: words of its row}, and the whole output."""
    monkeypatch.chdir(tmp_path)

    def run(states, *flags, ends=None):
        count, length, size = states.shape
        terminals = np.arange(count * length) % length == length - 1 if ends is None else ends
        np.savez('some.npz', observations=states.reshape(-1, size).astype(np.float32), terminals=terminals)
        capsys.readouterr()
        main(['check', 'some.npz', *flags])
        out = capsys.readouterr().out
        rows = {int(line.split()[0]): line for line in out.splitlines() if re.match(r' +\d+ +-?\d', line)}
        return rows, out

    return run


def test_the_table_has_range_std_time_scale_and_weight(check, walks):
    rows, out = check(walks)
    for dim, values in enumerate(walks.astype(np.float32).reshape(-1, 3).T):
        _, low, high, std, _, weight = rows[dim].split()
        assert (low, high) == (f'{values.min():.4g}', f'{values.max():.4g}')
        assert float(std) == pytest.approx(values.std(dtype=float), rel=1e-3) and 0 < float(weight) <= 1
    assert 'goals are about dimensions that change slowly\n' in out

    # the numbers are those of the trainers
    ends = np.arange(COUNT) * LENGTH + LENGTH - 1
    data = TrajectoryDataset(walks.reshape(-1, 3).astype(np.float32), ends - LENGTH + 1, ends)
    for reason in choose_numbers(data, data_check.CHOSEN)[1]:
        assert f'\n  {reason}\n' in out
    assert '--transition_steps' in out and '--discount' in out and 'warning' not in out


def test_constants_clocks_and_identifiers_are_noted(check, walks):
    shape = COUNT, LENGTH, 1
    clock = np.broadcast_to(0.05 * np.arange(LENGTH)[:, None], shape)
    identifier = np.broadcast_to(np.arange(COUNT)[:, None, None], shape)
    constants = np.full((COUNT, LENGTH, 2), [7, 0])
    rows, out = check(np.concatenate([walks, clock, -clock, identifier, constants], 2))
    assert rows[3].endswith('only grows') and rows[4].endswith('only falls')
    assert rows[5].split()[4] == '-' and rows[5].endswith('never changes within a trajectory')
    assert 'never vary: dimensions 6-7\n' in out and 6 not in rows
    assert 'slow, but no place: dimensions 3, 4: it only runs one way' in out


def test_stuck_sensors_and_glued_takes_are_noted(check, walks):
    stuck = walks.copy()
    stuck[3, 100:250, 1] = stuck[3, 100, 1]
    rows, _ = check(stuck)
    assert rows[1].endswith('150 equal readings from row 1,003 on')
    assert not rows[0].endswith('on')

    borders = np.arange(COUNT * LENGTH) % LENGTH == LENGTH - 1
    borders[np.flatnonzero(borders)[:3]] = False
    rows, out = check(walks + 100 * np.arange(COUNT)[:, None, None], ends=borders)
    for dim in range(3):
        assert rows[dim].endswith('3 jumps (rows 300, 601, …): gaps, teleporters or a wrap?')
    assert 'warning: some.npz: 3 steps inside trajectories jump' in out


def test_ordinary_dimensions_have_no_notes(walks):
    ends = np.arange(COUNT) * LENGTH + LENGTH - 1
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(COUNT * LENGTH)
    for values in (walks[..., 0].ravel(), noise, np.float32(noise > 1)):
        assert dimension_notes(values, ends) == []


@pytest.mark.parametrize('changes, rows, found', [
    ([1, 0, 0, 1, 0], [0, 1, 2, 3, 4], (3, 1)),
    ([0, 0, 0, 0], [0, 1, 5, 6], (3, 0)),  # a trajectory ends at row 2
    ([1, 1, 1], [0, 1, 2], (1, 0)),
    ([0, 0, 0], [3, 4, 5], (4, 3)),
])
def test_the_longest_rest_ends_at_changes_and_borders(changes, rows, found):
    assert find_longest_rest(np.array(changes, bool), np.array(rows)) == found


def test_wide_data_show_notes_and_the_slowest_dimensions(check):
    rng = np.random.default_rng(0)
    states = rng.standard_normal((4, 60, 100)).cumsum(1)
    states[..., 70] = np.arange(60)
    rows, out = check(states)
    assert len(rows) == data_check.SHOWN and rows[70].endswith('only grows')
    assert f'not shown: {100 - data_check.SHOWN} other dimensions; --all shows them\n' in out
    assert len(out.splitlines()) < data_check.SHOWN + 20
    assert len(check(states, '--all')[0]) == 100


# ------------------------------------------------------------------------------------------------------ goals
class Far(docs.own_robot.Arm):
    """An arm with goals that its data lack, in the second dimension alone."""

    goal_dims = (1,)

    def reset(self, seed=None, options=None):
        state, info = super().reset(seed=seed)
        return state, info | {'goal': np.array([np.nan, 2.4], np.float32)}


@pytest.fixture(scope='module')
def recorded():
    """States (60, 101, 2) of the arm."""
    rng = np.random.default_rng(0)
    steps = np.clip(rng.standard_normal((60, 1, 2)) + rng.standard_normal((60, 100, 2)), -1, 1)
    return 0.03 * np.concatenate([rng.uniform(-60, 60, (60, 1, 2)), steps], 1).cumsum(1)


def test_goals_of_the_environment_are_compared(check, recorded):
    recorded = np.clip(recorded, -2, 2)
    _, out = check(recorded, '--env', 'docs.own_robot:make_env')
    assert 'distance of 20 goals of docs.own_robot:make_env from the nearest state of the data: median' in out
    assert 'far from the data' not in out

    rows, out = check(recorded, '--env', f'{__name__}:Far')
    assert '; declared: 1\n' in out and rows[1].split()[5] == '1'
    warning = next(line for line in out.splitlines() if 'far from the data' in line)
    assert warning.startswith('warning: 20 of 20 goals')
    assert 'most in dimension(s) 1; a goal is a state' in warning


def test_data_of_other_units_or_dimensions_are_named(check, recorded):
    _, out = check(np.rad2deg(recorded), '--env', 'docs.own_robot:make_env')
    assert 'warning: data and environment differ: ' in out and 'radians and degrees' in out
    with pytest.raises(ValueError, match='its states have 1 dimensions, the observations of --env .* 2'):
        check(recorded[..., :1], '--env', 'docs.own_robot:make_env')
    with pytest.raises(ValueError, match='--env nothing: must be|unknown --dataset nothing'):
        check(recorded, '--env', 'nothing')


def test_the_nearest_state_is_that_of_a_search_by_hand(monkeypatch):
    monkeypatch.setattr(data_check, 'ROWS_AT_ONCE', 7)
    rng = np.random.default_rng(0)
    states = rng.standard_normal((40, 3)).astype(np.float32)
    data = TrajectoryDataset(states, np.array([0, 20]), np.array([19, 39]))
    queries = rng.standard_normal((5, 3))
    queries[0, 1] = np.nan
    counted = ~np.isnan(queries)
    rows, distances = data_check.find_nearest(data, 0, 1, queries, counted)
    for query, row, distance in zip(queries, rows, distances, strict=True):
        by_hand = np.sqrt(np.nanmean(np.square(states - query), 1))
        assert row == by_hand.argmin() and distance == pytest.approx(by_hand.min(), rel=1e-5)
    other = data_check.find_nearest(data, 0, 1, states[[3, 25]], counted[[1, 1]], data.end_of[[3, 25]])[0]
    assert other[0] >= 20 > other[1]


def test_names_of_dimensions_are_shown(tmp_path):
    for names, labels in ((['x', 'left hip'], ['  0 x', '  1 left hip']), (['x'], ['        0', '        1']),
                          ([1, None], ['        0', '        1'])):
        np.savez(tmp_path / 'some.npz', names=np.array(names))
        assert data_check.read_names(tmp_path / 'some.npz', 2) == labels


def test_directions_have_no_weight_by_dimension():
    places = SimpleNamespace(are_dimensions=False, weights=np.array([1.0, 0.5, 0.0]), excluded=['a'] * 9)
    line, *excluded = data_check.describe_weights(places, False, [])
    assert line == ('goals are about directions of the state, since no dimensions span those that change '
                    'slowly')
    assert excluded == [*['a'] * data_check.MAX_LINES, '…']
    places.weights[:] = 1
    assert data_check.describe_weights(places, False, [2])[0] == 'goals are about all dimensions; declared: 2'
