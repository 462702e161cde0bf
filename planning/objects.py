"""Things: what rests until it is moved. A cube, a button, a drawer or a window stays where it is while the robot does
something else; joints and grippers never rest for long. A goal of such data is about where things rest, so that a
*place* (`Encoder.place`) is made of these numbers alone, and a *move* leads from one place of rest to the next.

    things    groups of numbers that change together; `find_things` weighs the numbers, `ThingsMap` groups them
    switches  things with a handful of places (a button): all of them together are a configuration
    loose     things that may rest anywhere (a cube)
    moves     what the data show: which configuration follows which, and in which of them a loose thing was put where

A plan is a shortest sequence of moves. What lies in a drawer moves with it: where the data reach a goal only by moves
of two things at once, a plan leads to where such a move begins. A map of whole states (planning/planner.py) would need every
combination of places to occur in the data; here two cubes are two things, each of which is brought to its goal in its
turn. None of this knows a cube from a button: all is read from trajectories of states.
"""

import collections
import dataclasses
import functools
import itertools
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
THERE = 0.12  # and so near, while it is still being moved, I sees no difference any more, so that it lets go
PATIENT = 0.95  # of the data's moves so many are done in the time after which the robot goes back to begin anew,
BACK = 0.2  # for so much of that time
SHORT = 0.1  # of a thing's moves in the data, the share of those that are too short to be asked for
KNOWN = 0.6  # a loose thing was seen to be put somewhere if it was put so near
SHOWN = 5  # so many moves of two things at once are none by chance
MOST_FLIPS = 24  # switches whose configurations can all be gone through
KEPT_FLIPS = 8
KEPT_GOALS = 128
KEPT_STARTS = 256  # beginnings of trajectories
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
    """Which things B episodes are about to move, and how long nothing has come of it."""

    stages: np.ndarray  # (B,) int, of the stages of the way the one that was to be gone at the last step
    moves: np.ndarray  # (B,) int, of its moves of loose things the one that was to be done then; -1: none
    places: np.ndarray  # (B, S) of all things then
    still: np.ndarray  # (B,) int, for how many steps nothing had moved
    left: np.ndarray  # (B,) int, how many moves of the stage were left; -1: none leads on
    waited: np.ndarray  # (B,) int, for how many steps it has been so many
    returns: np.ndarray  # (B,) int, how often the robot has gone back to begin anew
    return_left: np.ndarray  # (B,) int, for how many steps it still does

    @classmethod
    def none(cls, size, dimensions):
        """-> of `size` episodes that move nothing yet, in states of so many dimensions."""
        zeros = np.zeros(size, int)
        return cls(
            stages=zeros,
            moves=np.full(size, -1),
            places=np.zeros((size, dimensions), np.float32),
            still=zeros,
            left=zeros,
            waited=zeros,
            returns=zeros,
            return_left=zeros,
        )

    def forget(self, rows):
        """rows (B,) bool -> the same, but that these episodes move nothing yet."""
        fresh = self.none(*self.places.shape)
        return Carrying(*(np.where(rows if old.ndim == 1 else rows[:, None], new, old)
                          for new, old in zip(fresh, self, strict=True)))


class ThingsMap:
    """Which moves the data show, and shortest sequences of them.

    scale (S,): places are states times this; thing_of (S,) int: the thing that a number belongs to, -1: none, or not
    what its moves are about; switches first; level_things (L,), level_states (L, S): the places of the switches, as raw
    states, those of a switch one after the other; sources, targets (E, W) int: configurations of the W switches of
    which the second was seen to follow on the first; loose_things (G,), loose_configurations (G, W), loose_before,
    loose_states (G, S): a loose thing that was moved, the configuration that this was seen in, the raw states at rest
    before it and after it; patience: steps in which most moves are done, 0 for any number; starts (T, S): raw states in
    which trajectories begin.
    """

    def __init__(self, scale, thing_of, level_things, level_states, sources, targets, loose_things,
                 loose_configurations, loose_before, loose_states, patience, starts):
        self.scale = scale
        self.thing_of = thing_of
        self.level_things = level_things
        self.level_states = level_states
        self.sources = sources
        self.targets = targets
        self.loose_things = loose_things
        self.loose_configurations = loose_configurations
        self.loose_before = loose_before
        self.loose_states = loose_states
        self.patience = int(patience)
        self.starts = starts

        groups = [np.flatnonzero(thing_of == thing) for thing in range(thing_of.max(initial=-1) + 1)]
        count = sources.shape[1]
        self.switches = groups[:count]
        self.loose = groups[count:]
        self.members = torch.from_numpy(thing_of[:, None] == np.arange(len(groups)))  # (S, things) bool
        self._levels = [self.place(level_states[level_things == thing])[:, group]
                        for thing, group in enumerate(self.switches)]
        self._level_states = [level_states[level_things == thing] for thing in range(count)]

        self._before = collections.defaultdict(list)  # configuration -> those that it was seen to follow on
        self._after = collections.defaultdict(list)
        for source, target in zip(map(tuple, sources.tolist()), map(tuple, targets.tolist()), strict=True):
            self._before[target].append(source)
            self._after[source].append(target)

        places = self.place(loose_states)
        changes = places - self.place(loose_before)
        lengths = [np.linalg.norm(changes[:, group], axis=1) for group in self.loose]
        self._moved = np.stack(lengths, 1) > SAME_PLACE if lengths else np.zeros((len(places), 0), bool)
        self._rows_of = [np.flatnonzero(loose_things == count + i) for i in range(len(self.loose))]
        self._shortest = [np.quantile(length[rows], SHORT) if len(rows) else 0.0
                          for length, rows in zip(lengths, self._rows_of, strict=True)]
        self._kept_way = functools.lru_cache(KEPT_GOALS)(self._way)
        self._kinds = self._free_kinds()
        self._flips_to = functools.lru_cache(KEPT_FLIPS)(functools.partial(Flips, self._kinds))

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
                    both[:0], 0, both[:0])
        sources = empty.configurations(before)
        targets = empty.configurations(after)
        switched = (sources != targets).any(1)
        meant = switched & ~by_chance(sources != targets)
        pairs = np.unique(np.concatenate([sources[meant], targets[meant]], 1), axis=0)

        changes = empty.place(after) - empty.place(before)
        loose_things = []
        loose_rows = []
        for i, group in enumerate(empty.loose):
            moved = np.flatnonzero(~switched & (np.linalg.norm(changes[:, group], axis=1) > SAME_PLACE))
            loose_rows.append(moved)
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
            loose_before=before[rows],
            loose_states=after[rows],
            patience=patience(moves, data.starts),
            starts=observations[data.starts[:KEPT_STARTS]],
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

    def _free_kinds(self):
        """-> (K, W) bool: which switches change in each kind of move, if any kind can be done in any configuration: all
        switches have two places, and each of them was seen in both before moves of every kind. Else K is 0. Of 16
        buttons the data show one in ten configurations, but each of the 16 ways to press them hundreds of times."""
        none = np.zeros((0, self.sources.shape[1]), bool)
        two_places = all(len(levels) == 2 for levels in self._levels)
        if self.loose or not two_places or not len(self.sources) or len(self.switches) > MOST_FLIPS:
            return none

        changes = self.sources != self.targets
        kinds = np.unique(changes, axis=0)
        for kind in kinds:
            share = self.sources[(changes == kind).all(1)].mean(0)
            if (share == 0).any() or (share == 1).any():
                return none
        return kinds

    # ------------------------------------------------------------------------------------------------- plans
    def routes(self, goals):
        """goals (B, S) raw -> list of the way (`_way`) to each of them."""
        return [self._kept_way(goal.tobytes(), goal.dtype) for goal in goals]

    def _way(self, goal_bytes, dtype):
        """The bytes of a raw goal (S,), by which ways are kept -> list of Stage, of which the last one for which all is
        there that it needs is to be gone. The last of all leads to the goal. Where two loose things can only come there
        together, three come before it: the one goes to where their move begins, then the other, then both of them."""
        goal = np.frombuffer(goal_bytes, dtype)
        place = self.place(goal)
        alone = [LooseMove((i,), self._shown(i, place)) for i in range(len(self.loose))]
        last = self._stage(goal, alone, [], tuple(self.configurations(goal[None])[0].tolist()))

        ride = self._ride(place)
        if ride is None:
            return [last]

        rider, carrier, shown, begin = ride
        there = self.place(begin)
        return [
            self._stage(begin, [LooseMove((carrier,), self._shown(carrier, there))], []),
            self._stage(begin, [LooseMove((rider,), self._shown(rider, there, carrier))], [(carrier, there)]),
            self._stage(goal, [LooseMove((rider, carrier), shown)], [(rider, there), (carrier, there)]),
            last._replace(needs=[(rider, place), (carrier, place)]),
        ]

    def _near(self, rows, thing, place):
        """Of some loose moves those after which a loose thing lies near to where it does in `place` (S,)."""
        group = self.loose[thing]
        distances = np.linalg.norm(self.place(self.loose_states[rows])[:, group] - place[group], axis=1)
        return rows[distances <= KNOWN]

    def _shown(self, thing, place, beside=None):
        """-> the set of configurations in which this loose thing was moved to near its place in `place` (S,), with the
        other one where that has it."""
        rows = self._near(self._rows_of[thing], thing, place)
        if beside is not None:
            rows = self._near(rows, beside, place)
        return configurations_of(self.loose_configurations[rows])

    def _ride(self, place):
        """Which loose things can only come together to where `place` (S,) has them -> (rider, carrier, configurations
        in which they did so, raw state (S,) with both of them where that begins); None if there are none. The rider is
        put there when the carrier is there, and not the other way round."""
        for rider, carrier in itertools.permutations(range(len(self.loose)), 2):
            rows = self._near(self._near(self._rows_of[rider], rider, place), carrier, place)
            together = rows[self._moved[rows, carrier]]
            if len(together) < SHOWN or 2 * len(together) < len(rows):
                continue

            both = np.concatenate([self.loose[rider], self.loose[carrier]])
            misses = np.linalg.norm(self.place(self.loose_states[together])[:, both] - place[both], axis=1)
            best = together[misses.argmin()]
            begin = self.loose_before[best].copy()
            there = self.place(begin)
            if self._needs(rider, carrier, there) > self._needs(carrier, rider, there):
                group = self.loose[rider]
                begin[group] += place[group] / self.scale[group] - self.loose_states[best][group]
                return rider, carrier, configurations_of(self.loose_configurations[together]), begin
        return None

    def _needs(self, thing, other, place):
        """-> of the moves of a loose thing alone to near its place in `place` (S,), the share with the other one near
        its own."""
        rows = self._near(self._rows_of[thing], thing, place)
        alone = rows[~self._moved[rows, other]]
        return len(self._near(alone, other, place)) / max(1, len(alone))

    def _stage(self, goal, moves, needs, end=None):
        """Breadth-first search from the goal backwards, over configurations and which moves of loose things are
        done; arguments as of `Stage`, and the configuration at its end, None: whichever."""
        if len(self._kinds) and end is not None:
            return Stage(goal, self.place(goal), moves, needs, self._flips_to(end))

        done = (True,) * len(moves)
        ends = [end] if end is not None else set(self._before) | set(self._after) | {c for m in moves for c in m.shown}
        moves_left = {(configuration, done): 0 for configuration in ends}
        queue = collections.deque(moves_left)
        while queue:
            configuration, done = queue.popleft()
            before = [(source, done) for source in self._before.get(configuration, [])]
            for i, move in enumerate(moves):
                if done[i] and configuration in move.shown:
                    before.append((configuration, done[:i] + (False,) + done[i + 1:]))
            for node in before:
                if node not in moves_left:
                    moves_left[node] = moves_left[configuration, done] + 1
                    queue.append(node)
        return Stage(goal, self.place(goal), moves, needs, moves_left)

    def _following(self, configuration):
        """-> list of the configurations to which a single move leads."""
        if not len(self._kinds):
            return self._after[configuration]
        return list(map(tuple, np.where(self._kinds, 1 - np.array(configuration), configuration).tolist()))

    def no_pursuit(self, size):
        """-> the Carrying of `size` episodes that move nothing yet."""
        return Carrying.none(size, len(self.scale))

    def waypoints(self, observations, goals, routes, pursuit):
        """observations, goals (B, S) raw, routes of these goals, the Carrying of the step before -> states (B, S) to
        head for, raw; found (B,) bool; the new Carrying. Each state is the observation after the next move. Where no
        sequence of moves leads to the goal it is the goal: all that differs at once.

        A move ends where things rest: who holds a cube over its goal has not put it down, and keeps to it until he has.
        He is told that it is there as soon as it nearly is, for who sees a centimetre left lifts it once more. And a
        move that is shorter than nearly all in the data is begun as a longer one.

        Of a move that takes longer than nearly all in the data nothing will come, as where a hand has closed beside its
        cube, or hangs beside a handle: no demonstrator shows what to do then. So the robot goes back to a posture in
        which some trajectory of the data begins (`return_left`), and begins anew.
        """
        places = self.place(observations)
        moved = np.abs(places - pursuit.places).max(1) >= STILL / 2
        still = np.where(moved, 0, pursuit.still + 1)
        kept = np.where(still < REST_STEPS, pursuit.moves, -1)
        configurations = list(map(tuple, self.configurations(observations).tolist()))

        stages = pursuit.stages.copy()
        for i in np.flatnonzero(kept < 0):
            stages[i] = self._stage_of(places[i], routes[i])
        gone = [way[stage] for way, stage in zip(routes, stages, strict=True)]
        distances = [self._distances(place, stage) for place, stage in zip(places, gone, strict=True)]
        left = np.array([stage.left(configuration, done_moves(missing))
                         for configuration, stage, missing in zip(configurations, gone, distances, strict=True)])

        waits = (left != 0) & (left == pursuit.left) & (stages == pursuit.stages)
        waited = np.where(waits, pursuit.waited + 1, 0)
        begins = (waited >= self.patience) & (self.patience > 0) & (len(self.starts) > 0)
        returns = pursuit.returns + begins
        return_left = np.where(begins, round(BACK * self.patience), np.maximum(pursuit.return_left - 1, 0))
        returning = return_left > 0

        states = observations.copy()
        moves = np.full(len(states), -1)
        for i, (configuration, stage) in enumerate(zip(configurations, gone, strict=True)):
            if returning[i]:
                states[i] = self._beginning(observations[i], seed=returns[i])
            elif kept[i] >= 0:
                moves[i] = kept[i]
                group = self._numbers(stage.moves[kept[i]])
                if distances[i][kept[i]] > THERE:
                    states[i, group] = stage.goal[group]
            else:
                last = pursuit.moves[i] if stages[i] == pursuit.stages[i] else -1
                states[i], moves[i] = self._next(observations[i], configuration, stage, distances[i], last)

        new = Carrying(
            stages=stages,
            moves=moves,
            places=places,
            still=still,
            left=left,
            waited=np.where(returning, 0, waited),
            returns=returns,
            return_left=return_left,
        )
        return states, np.ones(len(states), bool), new

    def _beginning(self, observation, seed):
        """-> the observation (S,), but that the robot is as where some trajectory of the data begins."""
        rng = np.random.default_rng(int(seed))
        start = self.starts[rng.integers(len(self.starts))]
        return np.where(self.scale > 0, observation, start)

    def _switched(self, observation, before, after):
        """-> the state in which the switches that differ between two configurations are where the second one has
        them."""
        state = observation.copy()
        for i, group in enumerate(self.switches):
            if after[i] != before[i]:
                state[group] = self._level_states[i][after[i]][group]
        return state

    def _numbers(self, move):
        """-> int array, the numbers that belong to the things of a LooseMove."""
        return np.concatenate([self.loose[thing] for thing in move.things])

    def _stage_of(self, place, way):
        """-> the last stage of a way for which all things are where it needs them."""
        return max(i for i, stage in enumerate(way)
                   if all(self._lies_at(thing, place, there) for thing, there in stage.needs))

    def _lies_at(self, thing, place, there):
        """Does a loose thing lie, in `place` (S,), where it does in `there` (S,)?"""
        return np.linalg.norm((place - there)[self.loose[thing]]) <= DONE

    def _distances(self, place, stage):
        """-> list of how far, in `place` (S,), the things of each of the stage's moves are from where it wants them."""
        missing = place - stage.place
        return [max(np.linalg.norm(missing[self.loose[thing]]) for thing in move.things) for move in stage.moves]

    def _next(self, observation, configuration, stage, distances, last):
        """-> the state after the next move, and which of the stage's moves of loose things it is, -1 for none.
        `distances`: as of `_distances`; `last`: the move that was headed for a step ago, which is kept to if it is as
        good as another."""
        done = done_moves(distances)
        left = stage.left(configuration, done)
        if left <= 0:
            return stage.goal, -1

        # of the moves whose turn it is, the last one, or that which is nearly done: it may have begun already
        for i in sorted(range(len(distances)), key=lambda i: (i != last, distances[i])):
            move = stage.moves[i]
            if done[i] or configuration not in move.shown:
                continue
            after = done[:i] + (True,) + done[i + 1:]
            if stage.moves_left.get((configuration, after), left) < left:
                group = self._numbers(move)
                shortest = min(self._shortest[thing] for thing in move.things)
                stretch = max(1.0, shortest / distances[i])
                state = observation.copy()
                state[group] += stretch * (stage.goal[group] - observation[group])
                return state, i

        following = [node for node in self._following(configuration) if stage.moves_left.get((node, done), left) < left]
        return self._switched(observation, configuration, following[0]), -1

    # ------------------------------------------------------------------------------------------- checkpoints
    def state_dict(self):
        """-> tensors from which `from_state_dict` rebuilds this map exactly."""
        return {name: torch.from_numpy(np.array(getattr(self, name))) for name in ARRAYS}

    @classmethod
    def from_state_dict(cls, saved):
        # what did not exist yet when a checkpoint was written
        loose = saved['loose_states']
        saved = {'loose_before': loose, 'patience': torch.tensor(0), 'starts': loose[:0]} | saved
        return cls(**{name: saved[name].cpu().numpy() for name in ARRAYS})

    def __str__(self):
        return (f'{len(self.switches)} switches, {len(self.loose)} loose things, '
                f'{len(self.sources):,} + {len(self.loose_things):,} moves')


ARRAYS = ('scale', 'thing_of', 'level_things', 'level_states', 'sources', 'targets', 'loose_things',
          'loose_configurations', 'loose_before', 'loose_states', 'patience', 'starts')  # of a ThingsMap


class LooseMove(NamedTuple):
    """Loose things that are moved at once, mostly a single one, and in which configurations that was seen."""

    things: tuple  # of int
    shown: set  # of configurations


class Stage(NamedTuple):
    """How many moves are left to where some loose things, and perhaps all switches, shall be."""

    goal: np.ndarray  # (S,) raw
    place: np.ndarray  # (S,)
    moves: list  # of LooseMove
    needs: list  # of (loose thing, places (S,)), which must hold before it
    moves_left: dict  # (configuration, which moves of loose things are done) -> moves; or Flips

    def left(self, configuration, done):
        """-> how many moves are left, -1 where none lead to its end."""
        return self.moves_left.get((configuration, done), -1)


class Flips:
    """How many moves lead from any configuration of two-place switches to `end` (W,), where each of the `kinds` (K, W)
    bool flips some of them; asked like `Stage.moves_left`."""

    def __init__(self, kinds, end):
        self.digits = 1 << np.arange(len(end))
        self.moves = np.full(1 << len(end), -1, np.int16)
        masks = kinds @ self.digits
        frontier = np.array([self.digits @ np.array(end)])
        count = 0
        while len(frontier):
            self.moves[frontier] = count
            count += 1
            reached = np.unique(frontier[:, None] ^ masks)
            frontier = reached[self.moves[reached] < 0]

    def get(self, key, default=None):
        """key: (configuration, anything) -> moves, `default` where none lead to the end."""
        moves = int(self.moves[self.digits @ np.array(key[0])])
        return default if moves < 0 else moves


def done_moves(distances):
    """How far the things of a stage's moves are from where it wants them -> tuple of bool: which of these are done."""
    return tuple(bool(distance <= DONE) for distance in distances)


def configurations_of(rows):
    """rows (n, W) int -> the set of them, as tuples."""
    return set(map(tuple, rows.tolist()))


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


def patience(moves, starts):
    """`Moves` of trajectories that begin in the rows `starts` (n,) -> steps from one rest to the next in which
    `PATIENT` of all moves are done; 0 where there are none."""
    trajectory = np.searchsorted(starts, moves.after, side='right')
    follows = trajectory[1:] == trajectory[:-1]
    steps = np.diff(moves.after)[follows]
    return int(np.quantile(steps, PATIENT)) if len(steps) else 0


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
