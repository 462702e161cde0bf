"""Things: what rests until it is moved. A cube, a button, a drawer or a window stays where it is while the robot does
something else; joints and grippers never rest for long. A goal of such data is about where things rest, so that a
*place* (`Encoder.place`) is made of these numbers alone, and a *move* leads from one place of rest to the next.

    things    groups of numbers that change together; `find_things` weighs the numbers, `ThingsMap` groups them
    switches  things with a handful of places (a button): all of them together are a configuration
    loose     things that may rest anywhere (a cube)
    moves     what the data show: which configuration follows which, and in which of them a loose thing was put where

A plan is a shortest sequence of moves. A map of whole states (planner.py) would need every combination of places to
occur in the data; here two cubes are two things, each of which is brought to its goal in its turn. None of this knows
a cube from a button: all is read from trajectories of states.
"""

import collections
import dataclasses
from typing import NamedTuple

import numpy as np
import torch

STILL = 0.02  # a number that changes by less, in its standard deviations, rests
RESTS = 0.25  # what rests in so large a share of the times in which something else moves is a thing's number
STAYS = 0.9  # and it does not spring back: after k steps it has moved less than so much of what it does in 4k steps
MOVING = 1.0  # the robot moves where some number changes by so many standard deviations
LEAST = 0.1  # of the largest weight: who walks far in some trajectories and hardly at all in others is not a thing
SLOW = 0.1  # the slowest number of things is at least so slow, the slowest of all being 1
ALL_REST = 0.2  # in so large a share of the time in which the robot moves all things rest at once: nobody walks so
REST_STEPS = 10  # a thing that has not changed for so many steps is at rest
SAME_PLACE = 0.1  # places nearer than this are one
TOGETHER = 0.8  # a number that changes with another one in so large a share of its moves is of the same thing
MAIN = 0.33  # a thing's number of less than this share of its largest weight (how a cube is turned) need not be right
OFTEN = 0.5  # nor one that changes in a smaller share of the thing's moves (how a cube is tilted)
MOST_LEVELS = 4  # a switch has at most so many places,
COVERED = 0.98  # which are where it is found nearly always,
LEVEL_RADIUS = 0.35  # so near
CHANCE = 0.05  # switches that change at once, so much more seldom than the commonest, do so by chance
DONE = 0.25  # a loose thing so near to its goal is there
SHORT = 0.1  # of a thing's moves in the data, the share of those that are too short to be asked for
KNOWN = 0.6  # a loose thing was seen to be put somewhere if it was put so near
KEPT_GOALS = 128
SAMPLED_ROWS = 100_000


def find_things(data):
    """A `TrajectoryDataset` -> weights (S,) in [0, 1] of its dimensions, all zero where there are no things.

    A thing's number rests while the robot moves, and does not spring back as a button's spring does. Who walks along
    one corridor after another rests in each of his coordinates as well, but never in all of them; and who swings his
    elbows from limit to limit, where they rest, goes somewhere far more slowly. A weight is the mean square of what a
    move changes of it, in its variances: where a cube lies changes with every move, how it is turned hardly at all,
    whatever the differences between trajectories.
    """
    observations = data.observations[:len(data)]
    dimensions = observations.shape[1]
    std = data.statistics()[1]
    std = np.where(std > 1e-6, std, 1)

    soon = _changes(observations, data.end_of, data.transition_steps, std)
    late = _changes(observations, data.end_of, 4 * data.transition_steps, std)
    if soon is None or late is None:
        return np.zeros(dimensions)

    moving = soon.max(1) > MOVING
    if not moving.any():
        return np.zeros(dimensions)
    rests = (soon[moving] < STILL).mean(0) >= RESTS

    moved_soon = np.square(soon).mean(0)
    moved_late = np.square(late).mean(0)
    stays = moved_soon <= STAYS * moved_late

    found = rests & stays & (moved_late > 1e-6)
    if found.all() or not found.any():  # if all, nothing is left that could move them
        return np.zeros(dimensions)
    if data.slowness()[found].max() < SLOW:
        return np.zeros(dimensions)
    now = _changes(observations, data.end_of, REST_STEPS, std)
    busy = now[:, ~found].max(1) > STILL
    if (now[busy][:, found] < STILL).all(1).sum() < ALL_REST * busy.sum():
        return np.zeros(dimensions)

    changed = 1 - (late < STILL).mean(0)
    weights = np.where(found, np.minimum(0.5 * moved_late / np.maximum(changed, 1e-9), 1), 0)
    if weights.max() < LEAST:
        return np.zeros(dimensions)

    # how far a cube is to be moved is to be seen as well along one axis as along the other
    moves = find_moves(observations, data.starts, data.ends, weights / std)
    for main in group_numbers(observations[moves.before], observations[moves.after], weights / std, weights):
        weights[main] = weights[main].max()
    return weights


def _changes(observations, end_of, steps, std):
    """How much each dimension changes in so many steps of a trajectory -> (n, S), in standard deviations; None where no
    trajectory is that long."""
    rows = np.flatnonzero(np.arange(len(end_of)) + steps <= end_of)
    if not len(rows):
        return None
    rows = rows[::max(1, len(rows) // SAMPLED_ROWS)]
    return np.abs(observations[rows + steps] - observations[rows]) / std


@dataclasses.dataclass
class Moves:
    """What trajectories do with things: rows of the data."""

    next_rest: np.ndarray  # (N,) int32, the row in which the things rest next, elsewhere than now; -1: never again
    before: np.ndarray  # (M,) int, the last row of rest before each move
    after: np.ndarray  # (M,) int, the first row of rest after it


def find_moves(observations, starts, ends, scale):
    """observations (N, S); starts, ends (n,) of the trajectories; scale (S,): the places of things are
    observations * scale, where that is not 0 -> Moves."""
    seen = np.flatnonzero(scale > 0)
    next_rest = np.full(len(observations), -1, np.int32)
    before = []
    after = []
    for start, end in zip(starts, ends, strict=True):
        places = observations[start:end + 1, seen] * scale[seen]
        firsts, lasts = _rests(places)
        firsts = firsts + start
        lasts = lasts + start
        if not len(firsts):
            continue

        # on the way to a rest are all rows from the beginning of the one before it on
        borders = np.concatenate([[start], firsts])
        next_rest[start:firsts[-1]] = np.repeat(firsts, np.diff(borders))
        before.append(lasts[:-1])
        after.append(firsts[1:])

    empty = np.zeros(0, np.int64)
    return Moves(next_rest, np.concatenate([empty, *before]), np.concatenate([empty, *after]))


def _rests(places):
    """places (T, d) of one trajectory -> first and last rows (R,) of its rests, each elsewhere than the one before."""
    still = np.abs(np.diff(places, axis=0)).max(1) < STILL / 2
    run = np.concatenate([[0], np.cumsum(still)])
    resting = np.flatnonzero(run[REST_STEPS:] - run[:-REST_STEPS] == REST_STEPS)
    if not len(resting):
        return resting, resting

    # stretches of resting rows, joined where they are at one place
    breaks = np.flatnonzero(np.diff(resting) > 1)
    firsts = resting[np.concatenate([[0], breaks + 1])]
    lasts = resting[np.concatenate([breaks, [-1]])]
    elsewhere = np.linalg.norm(np.diff(places[firsts], axis=0), axis=1) >= SAME_PLACE
    joined_firsts = firsts[np.concatenate([[True], elsewhere])]
    joined_lasts = lasts[np.concatenate([elsewhere, [True]])]
    return joined_firsts, joined_lasts


class Carrying(NamedTuple):
    """Which loose things B episodes are about to move."""

    things: np.ndarray  # (B,) int, of the loose things the one that was to be moved at the last step; -1: none
    places: np.ndarray  # (B, S) of all things then
    still: np.ndarray  # (B,) int, for how many steps nothing had moved

    def forget(self, rows):
        """rows (B,) bool -> the same, but that these episodes move nothing yet."""
        return Carrying(np.where(rows, -1, self.things), np.where(rows[:, None], 0, self.places),
                        np.where(rows, 0, self.still))


class ThingsMap:
    """Which moves the data show, and shortest sequences of them.

    scale (S,): places are states times this; thing_of (S,) int: the thing that a number belongs to, -1: none, or not
    what its moves are about; switches first; level_things (L,), level_states (L, S): the places of the switches, as raw
    states, those of a switch one after the other; sources, targets (E, W) int: configurations of the W switches of
    which the second was seen to follow on the first; loose_things (G,), loose_configurations (G, W), loose_states
    (G, S), loose_lengths (G,): a loose thing that was moved, the configuration that this was seen in, the raw state at
    rest after it, and how far it was moved.
    """

    def __init__(self, scale, thing_of, level_things, level_states, sources, targets, loose_things,
                 loose_configurations, loose_states, loose_lengths):
        self.scale = scale
        self.thing_of = thing_of
        self.level_things = level_things
        self.level_states = level_states
        self.sources = sources
        self.targets = targets
        self.loose_things = loose_things
        self.loose_configurations = loose_configurations
        self.loose_states = loose_states
        self.loose_lengths = loose_lengths

        groups = [np.flatnonzero(thing_of == thing) for thing in range(thing_of.max(initial=-1) + 1)]
        count = sources.shape[1]
        self.switches = groups[:count]
        self.loose = groups[count:]
        self._levels = [self.place(level_states[level_things == thing])[:, group]
                        for thing, group in enumerate(self.switches)]
        self._level_states = [level_states[level_things == thing] for thing in range(count)]

        self._before = collections.defaultdict(list)  # configuration -> those that it was seen to follow on
        self._after = collections.defaultdict(list)
        for source, target in zip(map(tuple, sources.tolist()), map(tuple, targets.tolist()), strict=True):
            self._before[target].append(source)
            self._after[source].append(target)
        moves_of = [loose_things == count + i for i in range(len(self.loose))]
        self._loose_places = [self.place(loose_states[moves])[:, group]
                              for moves, group in zip(moves_of, self.loose, strict=True)]
        self._loose_configurations = [loose_configurations[moves] for moves in moves_of]
        self._shortest = [np.quantile(loose_lengths[moves], SHORT) if moves.any() else 0.0 for moves in moves_of]
        self._ways = collections.OrderedDict()

    @classmethod
    def from_data(cls, data, scale, seed=0):
        """The map of a `TrajectoryDataset`; scale (S,) as above."""
        scale = np.asarray(scale, np.float32)
        observations = data.observations
        moves = find_moves(observations, data.starts, data.ends, scale)
        before = observations[moves.before]
        after = observations[moves.after]
        both = np.concatenate([before, after])

        weights = scale * data.statistics()[1]
        groups = group_numbers(before, after, scale, weights)
        levels = [find_levels((both * scale)[:, group], seed) for group in groups]
        is_switch = [rows is not None for rows in levels]
        order = sorted(range(len(groups)), key=lambda i: not is_switch[i])  # switches first

        thing_of = np.full(len(scale), -1, np.int32)
        for thing, i in enumerate(order):
            thing_of[groups[i]] = thing
        rows_of_levels = [levels[i] for i in order if is_switch[i]]
        level_things = np.repeat(np.arange(len(rows_of_levels)), [len(rows) for rows in rows_of_levels])
        level_states = both[np.concatenate([np.zeros(0, np.int64), *rows_of_levels])]

        none = np.zeros((0, len(rows_of_levels)), np.int8)
        empty = cls(scale, thing_of, level_things, level_states, none, none, np.zeros(0, np.int32), none, both[:0],
                    np.zeros(0, np.float32))
        sources = empty.configurations(before)
        targets = empty.configurations(after)
        switched = (sources != targets).any(1)
        meant = switched & ~by_chance(sources != targets)
        pairs = np.unique(np.concatenate([sources[meant], targets[meant]], 1), axis=0)

        changes = empty.place(after) - empty.place(before)
        loose_things = []
        loose_rows = []
        loose_lengths = []
        for i, group in enumerate(empty.loose):
            lengths = np.linalg.norm(changes[:, group], axis=1)
            moved = np.flatnonzero(~switched & (lengths > SAME_PLACE))
            loose_rows.append(moved)
            loose_lengths.append(lengths[moved])
            loose_things.append(np.full(len(moved), len(empty.switches) + i, np.int32))
        rows = np.concatenate([np.zeros(0, np.int64), *loose_rows])
        return cls(
            scale,
            thing_of,
            level_things,
            level_states,
            sources=pairs[:, :len(empty.switches)],
            targets=pairs[:, len(empty.switches):],
            loose_things=np.concatenate([np.zeros(0, np.int32), *loose_things]),
            loose_configurations=sources[rows],
            loose_states=after[rows],
            loose_lengths=np.concatenate([np.zeros(0, np.float32), *loose_lengths]),
        )

    def place(self, states):
        """states (..., S) raw -> (..., S), zero for what belongs to no thing."""
        return states * self.scale

    def configurations(self, states):
        """states (B, S) raw -> (B, W) int8: in which of its places each switch is, the nearest one."""
        places = self.place(states)
        columns = []
        for group, levels in zip(self.switches, self._levels, strict=True):
            distances = np.linalg.norm(places[:, None, group] - levels, axis=-1)
            columns.append(distances.argmin(-1))
        return np.stack(columns, 1).astype(np.int8) if columns else np.zeros((len(states), 0), np.int8)

    # ------------------------------------------------------------------------------------------------- plans
    def routes(self, goals):
        """goals (B, S) raw -> list of the `Way` to each of them; kept for the goals asked for last."""
        ways = []
        for goal in goals:
            key = goal.tobytes()
            if key not in self._ways:
                self._ways[key] = self._way(goal)
            self._ways.move_to_end(key)
            ways.append(self._ways[key])
            if len(self._ways) > KEPT_GOALS:
                self._ways.popitem(last=False)
        return ways

    def _way(self, goal):
        """Breadth-first search from the goal backwards, over configurations and which loose things are at their
        goals."""
        place = self.place(goal)
        known_in = []  # for each loose thing, configurations in which it was seen to be put where it shall be
        for group, places, seen in zip(self.loose, self._loose_places, self._loose_configurations, strict=True):
            near = np.linalg.norm(places - place[group], axis=1) <= KNOWN
            known_in.append(set(map(tuple, seen[near].tolist())))

        end = tuple(self.configurations(goal[None])[0].tolist()), (True,) * len(self.loose)
        moves_left = {end: 0}
        queue = collections.deque([end])
        while queue:
            configuration, done = queue.popleft()
            before = [(source, done) for source in self._before[configuration]]
            for i, known in enumerate(known_in):
                if done[i] and configuration in known:
                    before.append((configuration, done[:i] + (False,) + done[i + 1:]))
            for node in before:
                if node not in moves_left:
                    moves_left[node] = moves_left[configuration, done] + 1
                    queue.append(node)
        return Way(goal, place, known_in, moves_left)

    def no_pursuit(self, size):
        """-> the Carrying of `size` episodes that move nothing yet."""
        return Carrying(np.full(size, -1), np.zeros((size, len(self.scale)), np.float32), np.zeros(size, int))

    def waypoints(self, observations, goals, routes, pursuit):
        """observations, goals (B, S) raw, routes of these goals, the Carrying of the step before -> states (B, S) to
        head for, raw; found (B,) bool; the new Carrying. Each state is the observation after the next move. Where no
        sequence of moves leads to the goal it is the goal: all that differs at once.

        A move ends where things rest: who holds a cube over its goal has not put it down, and keeps to it until he has.
        And one that is shorter than nearly all in the data is begun as a longer one.
        """
        places = self.place(observations)
        moved = np.abs(places - pursuit.places).max(1) >= STILL / 2
        still = np.where(moved, 0, pursuit.still + 1)
        kept = np.where(still < REST_STEPS, pursuit.things, -1)

        states = observations.copy()
        things = np.full(len(states), -1)
        configurations = map(tuple, self.configurations(observations).tolist())
        for i, (configuration, way) in enumerate(zip(configurations, routes, strict=True)):
            if kept[i] < 0:
                states[i], things[i] = self._next(observations[i], configuration, way)
            else:
                things[i] = kept[i]
                group = self.loose[kept[i]]
                states[i, group] = way.goal[group]
        return states, np.ones(len(states), bool), Carrying(things, places, still)

    def _next(self, observation, configuration, way):
        """-> the state after the next move, and which loose thing is moved, -1 for none."""
        missing = self.place(observation) - way.place
        distances = [np.linalg.norm(missing[group]) for group in self.loose]
        done = tuple(bool(distance <= DONE) for distance in distances)
        left = way.moves_left.get((configuration, done), 0)
        if not left:
            return way.goal, -1

        state = observation.copy()
        # of the things whose turn it is, the one that is nearly there: it may be on its way already
        for i in np.argsort(distances):
            if done[i] or configuration not in way.known_in[i]:
                continue
            after = done[:i] + (True,) + done[i + 1:]
            if way.moves_left.get((configuration, after), left) < left:
                group = self.loose[i]
                stretch = max(1.0, self._shortest[i] / distances[i])
                state[group] += stretch * (way.goal[group] - observation[group])
                return state, i

        following = [node for node in self._after[configuration] if way.moves_left.get((node, done), left) < left]
        for i, group in enumerate(self.switches):
            if following[0][i] != configuration[i]:
                state[group] = self._level_states[i][following[0][i]][group]
        return state, -1

    # ------------------------------------------------------------------------------------------- checkpoints
    def state_dict(self):
        """-> tensors from which `from_state_dict` rebuilds this map exactly."""
        return {name: torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in ARRAYS}

    @classmethod
    def from_state_dict(cls, saved):
        if 'loose_lengths' not in saved:  # checkpoints from before moves had lengths
            saved = saved | {'loose_lengths': torch.zeros(len(saved['loose_things']))}
        return cls(**{name: saved[name].cpu().numpy() for name in ARRAYS})

    def __str__(self):
        return (f'{len(self.switches)} switches, {len(self.loose)} loose things, '
                f'{len(self.sources):,} + {len(self.loose_things):,} moves')


ARRAYS = ('scale', 'thing_of', 'level_things', 'level_states', 'sources', 'targets', 'loose_things',
          'loose_configurations', 'loose_states', 'loose_lengths')  # of a ThingsMap


@dataclasses.dataclass
class Way:
    """How many moves are left to a goal."""

    goal: np.ndarray  # (S,) raw
    place: np.ndarray  # (S,)
    known_in: list  # for each loose thing, the configurations in which it can be put where it shall be
    moves_left: dict  # (configuration, which loose things are at their goals) -> moves


def group_numbers(before, after, scale, weights):
    """before, after (M, S): raw states around the moves; scale, weights (S,): places are states * scale, the weights
    are those of `find_things` -> list of int arrays, for each thing the numbers that its moves are about. Numbers are
    of one thing if one hardly moves without the other: a cube is not tilted often, but never where it lies still."""
    seen = np.flatnonzero(scale > 0)
    changes = np.abs(after - before)[:, seen] * scale[seen]
    changed = changes > SAME_PLACE * np.quantile(changes, 0.99, axis=0) if len(changes) else changes > 0
    changed = changed.astype(np.int64)
    count = changed.sum(0)
    together = changed.T @ changed >= TOGETHER * np.maximum(count[:, None], 1)

    thing = np.arange(len(seen))
    for i, j in zip(*np.nonzero(together), strict=True):
        thing[thing == thing[i]] = thing[j]

    groups = []
    for label in np.unique(thing):
        members = np.flatnonzero(thing == label)
        weight = weights[seen[members]]
        is_main = (weight >= MAIN * weight.max()) & (count[members] >= OFTEN * count[members].max())
        groups.append(seen[members[is_main]])
    return groups


def by_chance(changes):
    """changes (M, W) bool: which switches change in each move -> (M,) bool: not one of the usual kinds of moves, as
    where a hand that presses one button touches another. A kind is a set of switches, whatever the others are."""
    if not changes.any():
        return np.zeros(len(changes), bool)
    _, kind, count = np.unique(changes, axis=0, return_inverse=True, return_counts=True)
    count = count[kind.ravel()]
    return count < CHANCE * count[changes.any(1)].max()


def find_levels(places, seed=0):
    """places (M, d) of one thing at rest -> rows (L,) of its few places, or None where they are not few: at most
    `MOST_LEVELS` balls of `LEVEL_RADIUS` around these rows hold `COVERED` of all."""
    rng = np.random.default_rng([seed, 8])
    left = np.ones(len(places), bool)
    rows = []
    while len(left) and left.mean() > 1 - COVERED:
        if len(rows) == MOST_LEVELS:
            return None
        tried = rng.choice(np.flatnonzero(left), 50)
        within = np.linalg.norm(places[:, None] - places[tried], axis=2) < LEVEL_RADIUS
        best = within.sum(0).argmax()
        rows.append(tried[best])
        left &= ~within[:, best]
    return np.array(rows) if len(rows) > 1 else None
