"""Detection of objects: which dimensions of the states rest until the robot moves them.

A cube, a button, a drawer or a window keeps its position while the robot does something else; joints and
grippers rarely rest for long. A goal of manipulation data is about the positions of objects, so goal
features contain these dimensions alone. All of it is estimated from trajectories of states, without names
or types of objects.

    object      group of dimensions that change together
    position    state * scale, restricted to the dimensions of objects
    rest        stretch of a trajectory in which no object moves
    move        transition from one rest to the next one
    level       one of the few positions of a switch
    switch      object with few positions (a button)
    movable     object that can be placed anywhere (a cube)

`find_objects` weights the dimensions, `find_moves` cuts trajectories into moves, `group_dimensions` and
`find_levels` determine the objects and their types. An `ObjectMap` keeps the objects and their observed
moves, on which planning/object_planner.py plans.
"""

import dataclasses
import functools

import numpy as np
import torch

from support.contents import Tensor, check_layout
from support.tolerances import divisor

# object dimensions, standard deviations of the data
REST_TOL = 0.02  # a dimension that changes by less is at rest
MOTION_TOL = 1.0  # the robot moves if some dimension changes by more in transition_steps

# object dimensions, dimensionless
MIN_REST_FRACTION = 0.25  # share of the steps with motion in which an object dimension rests
MAX_REVERSION = 0.9  # mean squared change in k steps over that in 4k steps; springs that return have about 1
MIN_SLOWNESS = 0.1  # of the slowest object dimension, relative to the slowest of all dimensions
MIN_JOINT_REST_FRACTION = 0.2  # share of the robot's steps in which all objects rest; walkers have less
MIN_WEIGHT_RATIO = 0.1  # variance of moves over variance of the data, largest of all dimensions
DECLARED_REST = 0.5  # factor on both shares of rest for dimensions that goals are known to be about
MIN_MOVED = 0.005  # share of all moves that change an object dimension; fingers that settle at a reset have none
SPANS = 6  # spans of k steps in a trajectory, at least

# moves; positions in standard deviations of the data
REST_STEPS = 10  # an object without change for this number of steps is at rest
SAME_POSITION_TOL = 0.1  # distance below which two positions are the same

# grouping of dimensions, relative to the most important dimension of the object
COCHANGE_FRACTION = 0.8  # share of a dimension's changes in which another one of its object changes, too
MAIN_DIM_WEIGHT = 0.33  # weight of a main dimension; the yaw of a cube has less
MAIN_DIM_FREQUENCY = 0.5  # frequency of change of a main dimension; the tilt of a cube changes less often

# switches
MAX_LEVELS = 4  # more positions make a movable object
LEVEL_RADIUS = 0.35  # distance of positions that belong to the same level
LEVEL_COVERAGE = 0.98  # share of the rests that the levels explain
ACCIDENT_FREQUENCY = 0.05  # of a combination of switches, relative to the most common one

TIMEOUT_QUANTILE = 0.95  # of the durations of moves
MAX_START_STATES = 256  # first states of trajectories in an ObjectMap
MAX_SAMPLED_ROWS = 100_000  # pairs of states for the statistics of changes


# ----------------------------------------------------------------------------------------- object dimensions
def find_objects(data, declared=()):
    """Estimate which dimensions of the states belong to objects that rest until they are moved.

    An object dimension rests while the robot moves and does not spring back. The weight of a dimension is
    the variance of its moves over its variance in the data: the position of a cube changes with every move,
    its yaw hardly at all.

    Args:
        data: `TrajectoryDataset` with S dimensions.
        declared: dimensions that goals are known to be about; others are no objects then, since a pushed cube
            need not turn as in the goal.

    Returns:
        weights (S,) in [0, 1]; all zero if the data show no objects.
    """
    observations = data.observations[:len(data)]
    rest_factor = DECLARED_REST if len(declared) else 1.0
    none = np.zeros(observations.shape[1])
    mean, std = data.statistics()
    std = divisor(std, mean)

    # changes within k and 4k steps, and within a rest; None in data of shorter trajectories
    k = min(data.transition_steps, max(1, int(np.median(data.ends - data.starts)) // SPANS))
    spans = k, 4 * k, REST_STEPS
    short, long, brief = (_absolute_changes(observations, data.end_of, steps, std) for steps in spans)
    if short is None or long is None or brief is None:
        return none

    # dimensions that rest while others move; at least one other dimension must be left to move them
    is_object = _find_object_dims(short, long, rest_factor * MIN_REST_FRACTION)
    if len(declared):
        is_object &= np.isin(np.arange(len(is_object)), declared)
    if is_object.all() or not is_object.any():
        return none

    # a humanoid's elbows rest at their limits, but its coordinates are far slower
    if data.slowness()[is_object].max() < MIN_SLOWNESS:
        return none

    # a walker rests in each of its coordinates along some corridor, but never in all of them
    is_busy = brief[:, ~is_object].max(1) > REST_TOL
    all_rest = (brief[is_busy][:, is_object] < REST_TOL).all(1)
    if all_rest.sum() < rest_factor * MIN_JOINT_REST_FRACTION * is_busy.sum():
        return none

    # mean squared change of a move: twice the variance of the positions that moves lead to
    change_rate = 1 - (long < REST_TOL).mean(0)
    ratio = 0.5 * np.square(long).mean(0) / np.maximum(change_rate, 1e-9)
    weights = np.where(is_object, np.minimum(ratio, 1), 0)
    if weights.max() < MIN_WEIGHT_RATIO:
        return none

    # an object is moved to different positions
    scale = weights / std
    moves = find_moves(observations, data.starts, data.ends, scale)
    before, after = observations[moves.before], observations[moves.after]
    is_changed = np.abs(after - before) > REST_TOL * std
    is_moved = is_changed.sum(0) > MIN_MOVED * len(is_changed)
    weights *= is_moved
    scale *= is_moved

    # all main dimensions of an object have the same weight, so that its distance to a goal is isotropic
    for main_dims in group_dimensions(before, after, scale, weights):
        weights[main_dims] = weights[main_dims].max()
    return weights


def _absolute_changes(observations, end_of, steps, std):
    """Return absolute changes within a number of steps, None if all trajectories are shorter.

    Args:
        observations: raw states (N, S).
        end_of: (N,), last row of the trajectory of each row.
        steps: int.
        std: (S,).

    Returns:
        (n, S), in standard deviations.
    """
    rows = np.flatnonzero(np.arange(len(end_of)) + steps <= end_of)
    if not len(rows):
        return None
    rows = rows[::max(1, len(rows) // MAX_SAMPLED_ROWS)]
    return np.abs(observations[rows + steps] - observations[rows]) / std


def _find_object_dims(short, long, min_rest_fraction):
    """Determine the dimensions that rest while others move, and that stay where they have been moved to.

    Args:
        short, long: absolute changes (n, S) and (m, S) within k and 4k steps, in standard deviations.
        min_rest_fraction: share of the steps with motion in which an object dimension rests.

    Returns:
        (S,) bool.
    """
    in_motion = short.max(1) > MOTION_TOL
    if not in_motion.any():
        return np.zeros(short.shape[1], bool)

    rests = (short[in_motion] < REST_TOL).mean(0) >= min_rest_fraction
    short_square = np.square(short).mean(0)
    long_square = np.square(long).mean(0)
    stays = short_square <= MAX_REVERSION * long_square
    is_moved = long_square > 1e-6
    return rests & stays & is_moved


# ----------------------------------------------------------------------------------------------------- moves
@dataclasses.dataclass
class Moves:
    """Moves of objects in trajectories, as rows of the data."""

    next_rest: np.ndarray  # (N,) int32, first row of the next rest at another position; -1: none follows
    before: np.ndarray  # (M,) int, last row of rest before each move
    after: np.ndarray  # (M,) int, first row of rest after it


def find_moves(observations, starts, ends, scale):
    """Cut trajectories into moves.

    Args:
        observations: raw states (N, S).
        starts, ends: first and last rows (n,) of the trajectories.
        scale: (S,), zero in dimensions that belong to no object.

    Returns:
        `Moves`.
    """
    object_dims = np.flatnonzero(scale > 0)
    next_rest = np.full(len(observations), -1, np.int32)
    before = []
    after = []
    for start, end in zip(starts, ends, strict=True):
        positions = observations[start:end + 1, object_dims] * scale[object_dims]
        firsts, lasts = _find_rests(positions)
        firsts = firsts + start
        lasts = lasts + start
        if not len(firsts):
            continue

        # a row leads to the rest after the one that it lies in
        borders = np.concatenate([[start], firsts])
        next_rest[start:firsts[-1]] = np.repeat(firsts, np.diff(borders))
        before.append(lasts[:-1])
        after.append(firsts[1:])

    empty = np.zeros(0, np.int64)
    return Moves(next_rest, np.concatenate([empty, *before]), np.concatenate([empty, *after]))


def _find_rests(positions):
    """Return the first and last rows (R,) of the rests in a trajectory of positions (T, d).

    Successive rests are at different positions.
    """
    # rows after which nothing changes for REST_STEPS steps
    is_still = np.abs(np.diff(positions, axis=0)).max(1) < REST_TOL / 2
    still_steps = np.concatenate([[0], np.cumsum(is_still)])
    resting = np.flatnonzero(still_steps[REST_STEPS:] - still_steps[:-REST_STEPS] == REST_STEPS)
    if not len(resting):
        return resting, resting

    # stretches of these rows
    breaks = np.flatnonzero(np.diff(resting) > 1)
    firsts = resting[np.concatenate([[0], breaks + 1])]
    lasts = resting[np.concatenate([breaks, [-1]])]

    # join successive stretches at the same position
    is_elsewhere = np.linalg.norm(np.diff(positions[firsts], axis=0), axis=1) >= SAME_POSITION_TOL
    joined_firsts = firsts[np.concatenate([[True], is_elsewhere])]
    joined_lasts = lasts[np.concatenate([is_elsewhere, [True]])]
    return joined_firsts, joined_lasts


def move_timeout(moves, starts):
    """Return the `TIMEOUT_QUANTILE` of the durations of moves, in steps; 0 if no trajectory has two moves.

    Args:
        moves: `Moves`.
        starts: first rows (n,) of the trajectories.
    """
    trajectory = np.searchsorted(starts, moves.after, side='right')
    is_successor = trajectory[1:] == trajectory[:-1]
    durations = np.diff(moves.after)[is_successor]
    return int(np.quantile(durations, TIMEOUT_QUANTILE)) if len(durations) else 0


# --------------------------------------------------------------------------------------------------- objects
def group_dimensions(before, after, scale, weights):
    """Group dimensions that change together into objects, and select the main dimensions of each object.

    Two dimensions belong to the same object if one rarely changes without the other: a cube is tilted in
    few moves, but never while it rests.

    Args:
        before, after: raw states (M, S) around the moves.
        scale: (S,), zero in dimensions that belong to no object.
        weights: (S,) of `find_objects`.

    Returns:
        list of int arrays, the main dimensions of each object.
    """
    # which dimensions each move changes
    object_dims = np.flatnonzero(scale > 0)
    changes = np.abs(after - before)[:, object_dims] * scale[object_dims]
    large = np.quantile(changes, 0.99, axis=0) if len(changes) else 0.0
    is_changed = changes > SAME_POSITION_TOL * large

    # pairs (i, j) where j changes in most moves that change i
    is_changed = is_changed.astype(np.int64)
    count = is_changed.sum(0)
    joint_count = is_changed.T @ is_changed
    is_joint = joint_count >= COCHANGE_FRACTION * np.maximum(count[:, None], 1)

    # connected components
    label = np.arange(len(object_dims))
    for i, j in zip(*np.nonzero(is_joint), strict=True):
        label[label == label[i]] = label[j]

    groups = []
    for value in np.unique(label):
        members = np.flatnonzero(label == value)
        weight = weights[object_dims[members]]
        is_heavy = weight >= MAIN_DIM_WEIGHT * weight.max()
        is_frequent = count[members] >= MAIN_DIM_FREQUENCY * count[members].max()
        groups.append(object_dims[members[is_heavy & is_frequent]])
    return groups


def find_levels(positions, seed=0):
    """Find the levels of a switch, at most `MAX_LEVELS` balls that contain nearly all positions.

    Args:
        positions: (M, d) of one object at rest.
        seed: of the random candidates for the centers of the balls.

    Returns:
        rows (L,) of the centers; None if there is only one level or if there are too many.
    """
    rng = np.random.default_rng([seed, 8])
    is_left = np.ones(len(positions), bool)
    rows = []
    while len(is_left) and is_left.mean() > 1 - LEVEL_COVERAGE:
        if len(rows) == MAX_LEVELS:
            return None

        # the best of 50 random candidates
        candidates = rng.choice(np.flatnonzero(is_left), 50)
        is_within = np.linalg.norm(positions[:, None] - positions[candidates], axis=2) < LEVEL_RADIUS
        best = is_within.sum(0).argmax()
        rows.append(candidates[best])
        is_left &= ~is_within[:, best]
    return np.array(rows) if len(rows) > 1 else None


def is_accidental(changes):
    """Determine the moves that change a rare combination of switches.

    They happen when a hand that presses one button touches another.

    Args:
        changes: (M, W) bool, which switches each move changes.

    Returns:
        (M,) bool.
    """
    if not changes.any():
        return np.zeros(len(changes), bool)
    _, kind, count = np.unique(changes, axis=0, return_inverse=True, return_counts=True)
    frequency = count[kind.ravel()]
    return frequency < ACCIDENT_FREQUENCY * frequency[changes.any(1)].max()


# ------------------------------------------------------------------------------------------------ object map
@dataclasses.dataclass(eq=False)
class ObjectMap:
    """Objects of the data and their observed moves. The fields are the state_dict.

    W switches, E switch moves, G placements of movable objects.
    """

    scale: np.ndarray  # (S,) float32, positions are states * scale
    object_of: np.ndarray  # (S,) int32, object that a main dimension belongs to, switches first; -1: none

    # levels of the switches, those of a switch in successive rows
    level_objects: np.ndarray  # (L,) int, switch
    level_states: np.ndarray  # (L, S) raw

    # observed switch moves
    sources: np.ndarray  # (E, W) int8, configurations
    targets: np.ndarray  # (E, W) int8, configurations that follow

    # observed placements
    placed_objects: np.ndarray  # (G,) int32
    placed_configurations: np.ndarray  # (G, W) int8, configuration during the placement
    placed_before: np.ndarray  # (G, S) raw states at rest before it
    placed_after: np.ndarray  # (G, S) raw states at rest after it

    move_timeout: int  # steps in which most moves are done; 0: unknown
    start_states: np.ndarray  # (T, S) raw first states of trajectories

    @classmethod
    def from_data(cls, data, scale, seed=0):
        """Build the map of a dataset.

        Args:
            data: `TrajectoryDataset`.
            scale: (S,), zero in dimensions that belong to no object.
            seed: of `find_levels`.
        """
        scale = np.asarray(scale, np.float32)
        moves = find_moves(data.observations, data.starts, data.ends, scale)
        before = data.observations[moves.before]
        after = data.observations[moves.after]

        # objects, and which of them are switches
        groups = group_dimensions(before, after, scale, weights=scale * data.statistics()[1])
        rest_states = np.concatenate([before, after])
        level_rows = [find_levels((rest_states * scale)[:, group], seed) for group in groups]
        objects = cls._without_moves(scale, groups, level_rows, rest_states)

        # what their moves change
        sources = objects.configurations(before)
        targets = objects.configurations(after)
        is_changed = sources != targets
        unique_sources, unique_targets = _unique_switch_moves(sources, targets)
        placed_objects, placed_rows = objects._find_placements(before, after, is_changed.any(1))

        return dataclasses.replace(
            objects,
            sources=unique_sources,
            targets=unique_targets,
            placed_objects=placed_objects,
            placed_configurations=sources[placed_rows],
            placed_before=before[placed_rows],
            placed_after=after[placed_rows],
            move_timeout=move_timeout(moves, data.starts),
            start_states=data.observations[data.starts[:MAX_START_STATES]],
        )

    @classmethod
    def _without_moves(cls, scale, groups, level_rows, rest_states):
        """Return the map of objects without any move.

        Args:
            scale: (S,).
            groups: list of int arrays, the main dimensions of each object.
            level_rows: list of int arrays, rows of rest_states at the levels of each object; None for a
                movable object.
            rest_states: raw states (2M, S).
        """
        # switches first
        switches = [i for i, rows in enumerate(level_rows) if rows is not None]
        movable = [i for i, rows in enumerate(level_rows) if rows is None]
        object_of = np.full(len(scale), -1, np.int32)
        for index, i in enumerate(switches + movable):
            object_of[groups[i]] = index

        # their levels, one switch after the other
        switch_rows = [level_rows[i] for i in switches]
        level_objects = np.repeat(np.arange(len(switches)), [len(rows) for rows in switch_rows])
        level_states = rest_states[np.concatenate([np.zeros(0, np.int64), *switch_rows])]

        no_states = rest_states[:0]
        no_configurations = np.zeros((0, len(switches)), np.int8)
        return cls(
            scale=scale,
            object_of=object_of,
            level_objects=level_objects,
            level_states=level_states,
            sources=no_configurations,
            targets=no_configurations,
            placed_objects=np.zeros(0, np.int32),
            placed_configurations=no_configurations,
            placed_before=no_states,
            placed_after=no_states,
            move_timeout=0,
            start_states=no_states,
        )

    def _find_placements(self, before, after, is_switch_move):
        """Determine the moves that place each movable object and change no switch.

        Args:
            before, after: raw states (M, S) around the moves.
            is_switch_move: (M,) bool.

        Returns:
            objects (G,) int32 and rows (G,) of the moves; a move of two objects occurs twice.
        """
        changes = self.positions(after) - self.positions(before)
        objects = [np.zeros(0, np.int32)]
        rows = [np.zeros(0, np.int64)]
        for i, group in enumerate(self.movable):
            is_moved = np.linalg.norm(changes[:, group], axis=1) > SAME_POSITION_TOL
            moved_rows = np.flatnonzero(~is_switch_move & is_moved)
            objects.append(np.full(len(moved_rows), len(self.switches) + i, np.int32))
            rows.append(moved_rows)
        return np.concatenate(objects), np.concatenate(rows)

    # ----------------------------------------------------------------------------------------------- objects
    @functools.cached_property
    def groups(self):
        """List of int arrays, the main dimensions of each object."""
        return [np.flatnonzero(self.object_of == i) for i in range(self.object_of.max(initial=-1) + 1)]

    @property
    def switches(self):
        """List of int arrays, the main dimensions of each switch."""
        return self.groups[:self.sources.shape[1]]

    @property
    def movable(self):
        """List of int arrays, the main dimensions of each movable object."""
        return self.groups[self.sources.shape[1]:]

    @property
    def has_switches(self):
        """Whether some object is a switch."""
        return len(self.switches) > 0

    @property
    def has_movable(self):
        """Whether some object is movable."""
        return len(self.movable) > 0

    @functools.cached_property
    def object_masks(self):
        """(S, objects) bool tensor, the main dimensions of each object."""
        return torch.from_numpy(self.object_of[:, None] == np.arange(len(self.groups)))

    @functools.cached_property
    def levels(self):
        """List of raw states (levels, S) of each switch."""
        return [self.level_states[self.level_objects == i] for i in range(len(self.switches))]

    @functools.cached_property
    def _level_positions(self):
        """List of positions (levels, d) of each switch."""
        return [self.positions(states)[:, group]
                for states, group in zip(self.levels, self.switches, strict=True)]

    @property
    def known_states(self):
        """Return raw states (K, S) of the data: starts, and rests around placements."""
        return np.concatenate([self.start_states, self.placed_before, self.placed_after, self.level_states])

    def positions(self, states):
        """Return the positions (..., S) of the objects in raw states (..., S)."""
        return states * self.scale

    def configurations(self, states):
        """Return the nearest level of each switch, (B, W) int8, in raw states (B, S)."""
        positions = self.positions(states)
        columns = []
        for group, levels in zip(self.switches, self._level_positions, strict=True):
            distances = np.linalg.norm(positions[:, None, group] - levels, axis=-1)
            columns.append(distances.argmin(-1))
        return np.stack(columns, 1).astype(np.int8) if columns else np.zeros((len(states), 0), np.int8)

    # ------------------------------------------------------------------------------------------- checkpoints
    def state_dict(self):
        """Return the fields as tensors."""
        return {field.name: torch.from_numpy(np.array(getattr(self, field.name)))
                for field in dataclasses.fields(self)}

    @classmethod
    def from_state_dict(cls, saved):
        """Rebuild the map that `state_dict` was called on; raise ValueError if `saved` is none."""
        check_layout(saved, MAP_LAYOUT)
        arrays = {name: tensor.cpu().numpy() for name, tensor in saved.items()}
        return cls(**arrays | {'move_timeout': int(arrays['move_timeout'])})

    def __str__(self):
        return (f'{len(self.switches)} switches, {len(self.movable)} movable objects, '
                f'{len(self.sources):,} + {len(self.placed_objects):,} moves')


MAP_LAYOUT = {  # of `ObjectMap.state_dict`
    'scale': Tensor('float32', 'S', least=0),
    'object_of': Tensor('int32', 'S', least=-1, below='S'),
    'level_objects': Tensor('int', 'L', least=0, below='W'),
    'level_states': Tensor('float32', 'L S'),
    'sources': Tensor('int8', 'E W', least=0, below='L'),
    'targets': Tensor('int8', 'E W', least=0, below='L'),
    'placed_objects': Tensor('int32', 'G', least=0, below='S'),
    'placed_configurations': Tensor('int8', 'G W', least=0, below='L'),
    'placed_before': Tensor('float32', 'G S'),
    'placed_after': Tensor('float32', 'G S'),
    'move_timeout': Tensor('int', least=0),
    'start_states': Tensor('float32', 'T S'),
}


def _unique_switch_moves(sources, targets):
    """Return the unique pairs of configurations of switch moves, without accidental ones.

    Args:
        sources, targets: configurations (M, W) before and after all moves.

    Returns:
        configurations (E, W) and (E, W).
    """
    is_changed = sources != targets
    is_intended = is_changed.any(1) & ~is_accidental(is_changed)
    pairs = np.unique(np.concatenate([sources[is_intended], targets[is_intended]], 1), axis=0)
    count = sources.shape[1]
    return pairs[:, :count], pairs[:, count:]
