"""Detection of objects, switches and moves in states alone."""

import numpy as np
import pytest
import torch
from toy_objects import (
    PAUSE,
    cubes,
    dataset,
    drawer,
    lamp_and_cube,
    lamps,
    make,
    make_map,
    play,
    tilted_cubes,
    turned_cubes,
)

from planning.objects import (
    ObjectMap,
    find_levels,
    find_moves,
    find_objects,
    group_dimensions,
    is_accidental,
    move_timeout,
)
from trajectories import TrajectoryDataset


# ------------------------------------------------------------------------------------------ object dimensions
def test_find_objects_selects_dimensions_that_rest_and_stay():
    assert np.flatnonzero(find_objects(make(cubes))).tolist() == [3, 4, 5, 6]
    assert np.flatnonzero(find_objects(make(lamps))).tolist() == [3, 4]


def test_find_objects_needs_trajectories_in_which_rest_can_be_seen():
    """Recordings of nine states of a hand and a box show changes over 4 k = 8 steps, but no rest of 10."""
    rng = np.random.default_rng(0)

    def recording():
        box = np.where(np.arange(9) < rng.integers(18), *rng.integers(3, size=2))
        return np.stack([np.cumsum(rng.standard_normal(9)), box], 1).astype(np.float32)

    assert not find_objects(dataset(*[recording() for _ in range(300)], transition_steps=2)).any()


def test_find_objects_ignores_walkers():
    rng = np.random.default_rng(0)
    walks = [np.cumsum(rng.normal(0, 0.2, (300, 4)), 0).astype(np.float32) for _ in range(8)]
    assert not find_objects(dataset(*walks)).any()


def test_find_objects_ignores_joints_that_rest_at_their_limits():
    """A humanoid walks on while its elbows rest."""
    def walk(seed, speed):
        rng = np.random.default_rng(seed)
        positions = np.cumsum(np.repeat(rng.normal(0, speed, (12, 2)), 100, axis=0), 0)
        elbow = np.repeat(rng.integers(0, 2, 24), 50)[:, None]
        joints = rng.normal(0, 1, (1200, 2))
        return np.concatenate([positions, elbow, joints], 1).astype(np.float32)

    assert not find_objects(dataset(*[walk(i, 0.1) for i in range(8)])).any()
    assert find_objects(dataset(*[walk(i, 0.0) for i in range(8)])).any(), 'the elbow of a robot that stays'


def test_find_objects_ignores_constants_of_a_trajectory():
    """A dimension that identifies the trajectory rests, but is never moved."""
    rng = np.random.default_rng(0)
    walks = [np.cumsum(rng.normal(0, 0.2, (300, 3)), 0) for _ in range(8)]
    numbered = [np.insert(walk, 1, i, axis=1).astype(np.float32) for i, walk in enumerate(walks)]
    assert not find_objects(dataset(*numbered)).any()


def test_find_objects_needs_dimensions_of_a_robot():
    rng = np.random.default_rng(0)
    data = dataset(*[np.repeat(cubes(rng), 30, axis=0).astype(np.float32) for _ in range(9)])
    assert not find_objects(data).any()


def test_find_objects_finds_declared_dimensions_alone():
    """They may rest half as much as others."""
    assert np.flatnonzero(find_objects(make(cubes), declared=[0, 5, 6])).tolist() == [5, 6]
    assert not find_objects(make(cubes), declared=[0, 1]).any(), 'the hand is always in motion'

    # a cube shakes for 36 of 60 steps, so that it rests in a sixth of the spans of 25 steps
    pushed = make(cubes)
    shakes = np.arange(len(pushed)) % 60 < 36
    pushed.observations[:, 3] += np.where(shakes, 0.3 * np.sin(np.arange(len(pushed))), 0)
    assert not find_objects(pushed)[3] and find_objects(pushed, declared=[3])[3]


def test_find_objects_in_trajectories_shorter_than_4_k_steps():
    rngs = [np.random.default_rng(i) for i in range(20)]
    data = dataset(*[play(cubes(rng, moves=2), rng, 40) for rng in rngs])
    assert len(data) == 20 * 80 and data.transition_steps == 25
    assert np.flatnonzero(find_objects(data)).tolist() == [3, 4, 5, 6]


def test_find_objects_ignores_fingers_that_settle_at_a_reset():
    """They move within their first steps only, from different positions to the same one, in any unit."""
    def reach(seed):
        rng = np.random.default_rng(seed)
        hand = np.sin(np.arange(50)[:, None] / 6 + rng.uniform(0, 6, 3))
        fingers = 1e-4 * np.exp(-np.arange(50) / 1.5)[:, None] * rng.uniform(0.5, 1, 2)
        return np.concatenate([hand, fingers], 1).astype(np.float32)

    assert not find_objects(dataset(*[reach(i) for i in range(50)], transition_steps=8)).any()


def test_find_objects_weights_by_change_per_move():
    """The yaw of a cube differs between trajectories and changes a little with each move."""
    def with_yaw(rng):
        positions = cubes(rng)
        yaw = rng.uniform(-3, 3) + 0.3 * rng.standard_normal(len(positions))
        return np.column_stack([positions, yaw])

    weights = find_objects(make(with_yaw))
    assert weights[7] < 0.2 < 0.5 < weights[3:7].min()


def test_find_objects_weights_all_axes_of_an_object_alike():
    """Trajectories are far apart along y, but moves are equally long along both axes."""
    def shifted(rng):
        positions = cubes(rng)
        positions[:, [1, 3]] += rng.uniform(-4, 4, 2)
        return positions

    weights = find_objects(make(shifted))
    assert weights[3] == weights[4] > 0.5
    assert weights[5] == weights[6] > 0.5


# ------------------------------------------------------------------------------------------------------ moves
def test_find_moves_counts_each_move_once():
    data = make(cubes, trajectories=3)
    scale = find_objects(data) / data.statistics()[1]
    moves = find_moves(data.observations, data.starts, data.ends, scale)
    positions = data.observations[::PAUSE].reshape(3, -1, 7)[:, :, 3:] * scale[3:]
    assert len(moves.after) == (np.linalg.norm(np.diff(positions, axis=1), axis=2) > 0.1).sum() > 100
    assert (data.observations[moves.before, 3:] != data.observations[moves.after, 3:]).any(1).all()


def test_find_moves_leads_every_row_to_the_next_rest():
    data = make(lamps, trajectories=2)
    moves = find_moves(data.observations, data.starts, data.ends, find_objects(data) / data.statistics()[1])
    rows = np.arange(PAUSE * 40)  # of the first trajectory
    expected = np.where(rows < PAUSE * 39, (rows // PAUSE + 1) * PAUSE, -1)
    np.testing.assert_array_equal(moves.next_rest[rows], expected)
    assert moves.next_rest[PAUSE * 40] == PAUSE * 41, 'the second trajectory begins anew'


def test_move_timeout_is_a_quantile_of_durations():
    data = make(lamps)
    moves = find_moves(data.observations, data.starts, data.ends, find_objects(data) / data.statistics()[1])
    assert move_timeout(moves, data.starts) == PAUSE


def test_move_timeout_without_moves_is_0():
    data = make(lamps, trajectories=2, moves=1)
    moves = find_moves(data.observations, data.starts, data.ends, np.array([0, 0, 0, 1, 1]))
    assert move_timeout(moves, data.starts) == 0


# ---------------------------------------------------------------------------------------------------- objects
def test_group_dimensions_joins_dimensions_that_change_together():
    object_map = make_map(make(cubes))
    assert sorted(group.tolist() for group in object_map.movable) == [[3, 4], [5, 6]]
    assert not object_map.switches


def test_group_dimensions_ignores_yaw():
    data = make(turned_cubes)
    assert find_objects(data)[7:].min() > 0, 'otherwise there is nothing to ignore'
    assert sorted(group.tolist() for group in make_map(data).movable) == [[3, 4], [5, 6]]


def test_group_dimensions_ignores_tilt():
    """A cube falls on its side in one move of ten. The tilt is no object, and no plan waits for it."""
    data = make(tilted_cubes)
    assert find_objects(data)[7] > 0, 'otherwise there is nothing to ignore'
    object_map = make_map(data)
    assert not object_map.switches
    assert sorted(group.tolist() for group in object_map.movable) == [[3, 4], [5, 6]]


def test_group_dimensions_without_objects_is_empty():
    assert group_dimensions(np.zeros((0, 4)), np.zeros((0, 4)), np.zeros(4), np.zeros(4)) == []


def test_find_levels_distinguishes_few_positions_from_many():
    rng = np.random.default_rng(0)
    assert len(find_levels(rng.integers(0, 3, (500, 1)).astype(float))) == 3
    assert find_levels(rng.uniform(-2, 2, (500, 1))) is None
    assert find_levels(np.zeros((500, 1))) is None, 'one level is no switch'
    assert find_levels(np.zeros((0, 1))) is None


def test_is_accidental_finds_rare_combinations_of_switches():
    changes = np.array([[True, False]] * 30 + [[False, True]] * 30 + [[True, True]] + [[False, False]] * 99)
    assert np.flatnonzero(is_accidental(changes)).tolist() == [60]
    assert not is_accidental(changes[61:]).any()


# ------------------------------------------------------------------------------------------------- object map
def test_object_map_finds_switches():
    object_map = make_map(make(lamps))
    assert [group.tolist() for group in object_map.switches] == [[3], [4]]
    assert not object_map.movable


def test_object_map_drops_accidental_switch_moves():
    data = make(lamps)
    both = data.observations.copy()
    both[PAUSE:2 * PAUSE, 3:] = 1 - both[:1, 3:]  # the first move of all switches both lamps
    object_map = make_map(TrajectoryDataset(both, data.starts, data.ends, context_length=8))
    assert ((object_map.sources != object_map.targets).sum(1) == 1).all()
    assert len(object_map.sources) == 8


@pytest.mark.parametrize(('kind', 'switches', 'movable'), [
    (lamps, [[3], [4]], []),
    (lamp_and_cube, [[3]], [[4, 5]]),
    (drawer, [], [[3], [4, 5]]),
])
def test_object_map_masks_the_dimensions_of_each_object(kind, switches, movable):
    object_map = make_map(make(kind))
    assert object_map.has_switches == bool(switches)
    assert object_map.has_movable == bool(movable)
    masks = object_map.object_masks
    assert masks.dtype == torch.bool
    groups = [torch.nonzero(mask)[:, 0].tolist() for mask in masks.T]
    assert groups[:len(switches)] == switches
    assert sorted(groups[len(switches):]) == movable


def test_object_map_assigns_states_to_the_nearest_levels():
    data = make(lamps)
    object_map = make_map(data)
    near = data.observations[::PAUSE].copy()
    near[:, 3:] += np.random.default_rng(0).uniform(-0.3, 0.3, (len(near), 2))
    levels = np.array([states[:, group[0]] for states, group in zip(object_map.levels, object_map.switches,
                                                                    strict=True)])
    configurations = object_map.configurations(near)
    assert configurations.dtype == np.int8
    np.testing.assert_array_equal(levels[np.arange(2), configurations], data.observations[::PAUSE, 3:])


@pytest.mark.parametrize('kind', [lamps, cubes])
def test_object_map_round_trip(kind, tmp_path, assert_same):
    object_map = make_map(make(kind))
    torch.save(object_map.state_dict(), tmp_path / 'map.pth')
    loaded = ObjectMap.from_state_dict(torch.load(tmp_path / 'map.pth', weights_only=True))
    assert_same(object_map.state_dict(), loaded.state_dict())
    assert str(loaded) == str(object_map)
