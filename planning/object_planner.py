"""Planning with objects: shortest sequences of the moves that the data show.

    object         group of dimensions that rest until the robot moves them (planning/objects.py)
    position       state * scale, zero in dimensions that belong to no object
    switch         object with few positions, its levels
    configuration  levels of all switches
    movable        object that can be placed anywhere
    placement      move of a movable object to its position in the goal
    stage          part of a plan: placements and switch moves in any order that the data allow

A map of whole states (planning/graph_planner.py) needs data of every combination of positions. Here two
cubes are two objects, and each of them is placed in its turn. If the data reach a goal only by moves of two
objects at once, as that of a cube in a closed drawer, the plan first leads to where the joint move starts.
"""

import collections
import functools
import itertools
from typing import NamedTuple

import numpy as np
import torch

from planning.objects import REST_STEPS, REST_TOL, SAME_POSITION_TOL
from planning.planners import Subgoals

# distances of positions, standard deviations of the data
GOAL_TOL = 0.25  # a movable object that rests within this distance of its goal is done
RELEASE_TOL = 0.12  # a moving object within this distance gets no displacement, so that the policy lets go
DEMO_RADIUS = 0.6  # the data show a placement if an object was placed within this distance

MIN_MOVE_QUANTILE = 0.1  # of the moves of an object; shorter displacements are lengthened to it
RETREAT_FRACTION = 0.2  # duration of a retreat relative to the timeout of a move
MIN_DEMOS = 5  # fewer joint moves of two objects are accidents

MAX_TABLE_SWITCHES = 24  # a table of all configurations has up to 2 ** 24 entries
CACHED_TABLES = 8
CACHED_GOALS = 128  # whose routes are cached


# ------------------------------------------------------------------------------------------------ moves left
class MoveDistances:
    """Numbers of moves to the end of a stage, found by breadth-first search.

    Args:
        moves_to_end: {(configuration, which placements are done): number of moves}.
    """

    def __init__(self, moves_to_end):
        self.moves_to_end = moves_to_end

    def moves_left(self, configuration, done):
        """Return the number of moves to the end, -1 if no moves lead there.

        Args:
            configuration: tuple of int. done: tuple of bool, which placements are done.
        """
        return self.moves_to_end.get((configuration, done), -1)


class SwitchDistances:
    """Numbers of moves to a configuration of two-level switches, if every toggle is always possible.

    Args:
        toggles: (K, W) bool, which switches each kind of move changes.
        end: (W,) configuration.
    """

    def __init__(self, toggles, end):
        # configurations are binary numbers, in which a toggle is an exclusive or
        self.digits = 1 << np.arange(len(end))
        self.moves_to_end = np.full(1 << len(end), -1, np.int16)
        masks = toggles @ self.digits

        frontier = np.array([self.digits @ np.array(end)])
        count = 0
        while len(frontier):
            self.moves_to_end[frontier] = count
            count += 1
            reached = np.unique(frontier[:, None] ^ masks)
            frontier = reached[self.moves_to_end[reached] < 0]

    def moves_left(self, configuration, done):
        """Return the number of moves to the end, -1 if no moves lead there.

        Args:
            configuration: tuple of int. done: unused, since without movable objects there are no placements.
        """
        return int(self.moves_to_end[self.digits @ np.array(configuration)])


class SwitchGraph:
    """Transitions between configurations.

    Attributes:
        configurations: set of all observed configurations.
        toggles: (K, W) bool, which switches each kind of move changes, if every kind is possible in all
            configurations. K is 0 otherwise, and only the observed transitions are possible.
    """

    def __init__(self, object_map):
        self._sources_of = collections.defaultdict(list)
        self._targets_of = collections.defaultdict(list)
        sources = _as_tuples(object_map.sources)
        targets = _as_tuples(object_map.targets)
        for source, target in zip(sources, targets, strict=True):
            self._sources_of[target].append(source)
            self._targets_of[source].append(target)

        self.configurations = set(self._sources_of) | set(self._targets_of)
        self.toggles = _find_toggles(object_map)
        search = functools.partial(SwitchDistances, self.toggles)
        self.distances_to = functools.lru_cache(CACHED_TABLES)(search)

    def predecessors(self, configuration):
        """Return the list of configurations from which an observed move leads to this one."""
        return self._sources_of.get(configuration, [])

    def successors(self, configuration):
        """Return the list of configurations to which a move leads."""
        if not len(self.toggles):
            return self._targets_of.get(configuration, [])
        return _as_tuples(np.where(self.toggles, 1 - np.array(configuration), configuration))


def _find_toggles(object_map):
    """Determine the kinds of switch moves if each of them is possible in all configurations.

    This is assumed if there are no movable objects, all switches have two levels, and each of them had both
    levels before moves of every kind. The data show one in ten configurations of 16 buttons, but hundreds
    of moves of all 16 kinds.

    Returns:
        (K, W) bool, which switches each kind changes; K is 0 if the assumption fails.
    """
    sources = object_map.sources
    count = sources.shape[1]
    none = np.zeros((0, count), bool)
    has_two_levels = all(len(levels) == 2 for levels in object_map.levels)
    if object_map.has_movable or not has_two_levels or not len(sources) or count > MAX_TABLE_SWITCHES:
        return none

    is_changed = sources != object_map.targets
    toggles = np.unique(is_changed, axis=0)
    for toggle in toggles:
        level_1_rate = sources[(is_changed == toggle).all(1)].mean(0)
        if (level_1_rate == 0).any() or (level_1_rate == 1).any():
            return none
    return toggles


def _as_tuples(configurations):
    """Return a list of tuples of the rows of an int array (n, W)."""
    return list(map(tuple, configurations.tolist()))


# ---------------------------------------------------------------------------------------------------- routes
class Placement(NamedTuple):
    """Movable objects that are placed at once, mostly a single one."""

    objects: tuple  # of int, indices of `ObjectMap.movable`
    configurations: set  # in which the data show it


class JointMove(NamedTuple):
    """A move of two objects at once, as of a drawer and its content."""

    content: int
    container: int
    configurations: set  # in which the data show it
    start: np.ndarray  # (S,) raw state in which it starts


class Stage(NamedTuple):
    """Part of a route: the goals of some movable objects and perhaps of all switches."""

    goal: np.ndarray  # (S,) raw
    goal_positions: np.ndarray  # (S,)
    placements: list  # of Placement
    needs: list  # of (movable object, positions (S,)): where objects must be when the stage starts
    distances: MoveDistances | SwitchDistances

    def moves_left(self, configuration, done):
        """Return the number of moves to the end of the stage, -1 if no moves lead there."""
        return self.distances.moves_left(configuration, done)


class RouteSearch:
    """Search for routes, lists of stages, to goals.

    Args:
        object_map: `ObjectMap`.
        switch_graph: `SwitchGraph`.
    """

    def __init__(self, object_map, switch_graph):
        self.map = object_map
        self.switch_graph = switch_graph
        self.movable = object_map.movable

        # observed placements: rows of each object, and which objects each of them moves
        first = len(object_map.switches)
        self._rows_of = [np.flatnonzero(object_map.placed_objects == first + i)
                         for i in range(len(self.movable))]
        self._positions_after = object_map.positions(object_map.placed_after)
        changes = self._positions_after - object_map.positions(object_map.placed_before)
        lengths = [np.linalg.norm(changes[:, group], axis=1) for group in self.movable]
        is_moved = [length > SAME_POSITION_TOL for length in lengths]
        self._is_moved = np.stack(is_moved, 1) if is_moved else np.zeros((len(changes), 0), bool)

        # (objects,) length of short moves
        self.min_lengths = [np.quantile(length[rows], MIN_MOVE_QUANTILE) if len(rows) else 0.0
                            for length, rows in zip(lengths, self._rows_of, strict=True)]
        self._cached_route = functools.lru_cache(CACHED_GOALS)(self._route)

    def route(self, goal):
        """Return the list of stages that lead to a raw goal (S,).

        The current stage is the last one whose needs are met. If two movable objects can reach their goals
        only together, three stages come before the last one. The container moves to where the joint move
        starts, the content is placed in it, and both of them move to the goal.
        """
        return self._cached_route(goal.tobytes(), goal.dtype)

    def _route(self, goal_bytes, dtype):
        """Search for the route to a goal. Its arguments are hashable, for the cache."""
        goal = np.frombuffer(goal_bytes, dtype)
        positions = self.map.positions(goal)
        placements = [self._placement(i, positions) for i in range(len(self.movable))]
        end = tuple(self.map.configurations(goal[None])[0].tolist())
        last = self._stage(goal, placements, [], end)

        joint_move = self._find_container(positions)
        if joint_move is None:
            return [last]

        # container and content come to the start of the joint move, one after the other
        content, container, configurations, start = joint_move
        start_positions = self.map.positions(start)
        container_at_start = (container, start_positions)
        content_at_start = (content, start_positions)
        move_container = self._placement(container, start_positions)
        place_content = self._placement(content, start_positions, beside=container)
        move_both = Placement((content, container), configurations)
        return [
            self._stage(start, [move_container], []),
            self._stage(start, [place_content], [container_at_start]),
            self._stage(goal, [move_both], [content_at_start, container_at_start]),
            last._replace(needs=[(content, positions), (container, positions)]),
        ]

    def _placement(self, i, positions, beside=None):
        """Return the Placement of movable object i at its position in `positions` (S,).

        Its configurations are those in which the data show it. With `beside`, the data must show it while
        that object was at its own position.
        """
        rows = self._rows_near(self._rows_of[i], i, positions)
        if beside is not None:
            rows = self._rows_near(rows, beside, positions)
        return Placement((i,), self._configurations(rows))

    def _rows_near(self, rows, i, positions):
        """Return those of the observed placements `rows` that lead movable object i near `positions` (S,)."""
        group = self.movable[i]
        distances = np.linalg.norm(self._positions_after[rows][:, group] - positions[group], axis=1)
        return rows[distances <= DEMO_RADIUS]

    def _configurations(self, rows):
        """Return the set of configurations of some observed placements."""
        return set(_as_tuples(self.map.placed_configurations[rows]))

    def _find_container(self, positions):
        """Find a content and its container, which can reach `positions` (S,) only together.

        The content is placed while the container is at its position, but not the other way round.

        Returns:
            `JointMove`; None if there are no two such objects.
        """
        for content, container in itertools.permutations(range(len(self.movable)), 2):
            # placements of both objects near their positions, mostly by joint moves
            rows = self._rows_near(self._rows_of[content], content, positions)
            rows = self._rows_near(rows, container, positions)
            joint_rows = rows[self._is_moved[rows, container]]
            if len(joint_rows) < MIN_DEMOS or 2 * len(joint_rows) < len(rows):
                continue

            # the joint move that ends nearest to them
            dims = np.concatenate([self.movable[content], self.movable[container]])
            misses = np.linalg.norm(self._positions_after[joint_rows][:, dims] - positions[dims], axis=1)
            nearest = joint_rows[misses.argmin()]
            start = self.map.placed_before[nearest].copy()
            start_positions = self.map.positions(start)

            # the content is placed where the container is, and not the other way round
            container_presence = self._presence(content, container, start_positions)
            content_presence = self._presence(container, content, start_positions)
            if container_presence > content_presence:
                group = self.movable[content]
                miss = positions[group] / self.map.scale[group] - self.map.placed_after[nearest][group]
                start[group] += miss
                return JointMove(content, container, self._configurations(joint_rows), start)
        return None

    def _presence(self, moved, other, positions):
        """Return the share of placements of one movable object during which the other one was in place.

        Args:
            moved: index of the object that was moved alone, near its position in `positions`.
            other: index of the object whose presence is determined.
            positions: (S,).
        """
        rows = self._rows_near(self._rows_of[moved], moved, positions)
        alone = rows[~self._is_moved[rows, other]]
        return len(self._rows_near(alone, other, positions)) / max(1, len(alone))

    def _stage(self, goal, placements, needs, end=None):
        """Return a Stage. `end` is the configuration at its end, None for any."""
        goal_positions = self.map.positions(goal)
        if len(self.switch_graph.toggles) and end is not None:
            distances = self.switch_graph.distances_to(end)
        else:
            distances = MoveDistances(self._count_moves(placements, end))
        return Stage(goal, goal_positions, placements, needs, distances)

    def _count_moves(self, placements, end):
        """Count the moves to the end of a stage by breadth-first search backwards from there.

        Args:
            placements: list of Placement.
            end: configuration, None for any.

        Returns:
            {(configuration, which placements are done): number of moves}.
        """
        if end is not None:
            ends = [end]
        else:
            observed = [placement.configurations for placement in placements]
            ends = self.switch_graph.configurations.union(*observed)
        all_done = (True,) * len(placements)
        moves_to_end = {(configuration, all_done): 0 for configuration in ends}

        queue = collections.deque(moves_to_end)
        while queue:
            node = queue.popleft()
            for previous in self._previous(*node, placements):
                if previous not in moves_to_end:
                    moves_to_end[previous] = moves_to_end[node] + 1
                    queue.append(previous)
        return moves_to_end

    def _previous(self, configuration, done, placements):
        """Return the list of nodes (configuration, done) from which one move leads to this node."""
        nodes = [(source, done) for source in self.switch_graph.predecessors(configuration)]
        for i, placement in enumerate(placements):
            if done[i] and configuration in placement.configurations:
                nodes.append((configuration, _with(done, i, False)))
        return nodes


def _with(done, i, value):
    """Return the tuple `done` with another value at index i."""
    return done[:i] + (value,) + done[i + 1:]


def _is_done(displacements):
    """Return which placements are done, a tuple of bool, given how far their objects are from their goals."""
    return tuple(bool(displacement <= GOAL_TOL) for displacement in displacements)


# --------------------------------------------------------------------------------------------------- planner
class ObjectPlanState(NamedTuple):
    """What B episodes move, and for how long without effect."""

    stages: np.ndarray  # (B,) int, index of the stage in its route
    placements: np.ndarray  # (B,) int, index of the placement in its stage; -1: none
    positions: np.ndarray  # (B, S) of all objects at the last step; NaN before the first step
    steps_at_rest: np.ndarray  # (B,) int, steps without motion of any object
    moves_left: np.ndarray  # (B,) int, in the stage; -1: no moves lead to its end
    steps_waited: np.ndarray  # (B,) int, steps with the same number of moves left
    num_retreats: np.ndarray  # (B,) int
    retreat_steps_left: np.ndarray  # (B,) int, 0: the robot does not retreat

    @classmethod
    def initial(cls, batch_size, state_dim):
        """Return the state at the first step of episodes."""
        zeros = np.zeros(batch_size, int)
        return cls(
            stages=zeros,
            placements=np.full(batch_size, -1),
            positions=np.full((batch_size, state_dim), np.nan, np.float32),
            steps_at_rest=zeros,
            moves_left=zeros,
            steps_waited=zeros,
            num_retreats=zeros,
            retreat_steps_left=zeros,
        )

    def reset(self, rows):
        """Return the state with the initial one in the episodes where rows (B,) is true."""
        initial = self.initial(*self.positions.shape)
        return ObjectPlanState(*(np.where(rows if old.ndim == 1 else rows[:, None], new, old)
                                 for new, old in zip(initial, self, strict=True)))


class ObjectPlannerState(NamedTuple):
    """Goals of B episodes and the plans to reach them."""

    goals: np.ndarray  # (B, S) raw; NaN before the first step
    routes: list  # of B lists of Stage
    plan: ObjectPlanState


class ObjectPlanner:
    """Planner of moves of objects: each subgoal is the state after the next move.

    Args:
        object_map: `ObjectMap`.
        goal_features: function, raw states (B, S) -> goal features (B, S).
    """

    def __init__(self, object_map, goal_features):
        self.map = object_map
        self.goal_features = goal_features
        self.switch_graph = SwitchGraph(object_map)
        self.route_search = RouteSearch(object_map, self.switch_graph)

    # --------------------------------------------------------------------------------------------- interface
    def initial_state(self, batch_size):
        """Return the state before the first step of episodes."""
        # NaN differs from all goals, so that every goal is new
        state_dim = len(self.map.scale)
        goals = np.full((batch_size, state_dim), np.nan, np.float32)
        return ObjectPlannerState(goals, [], ObjectPlanState.initial(batch_size, state_dim))

    def reset(self, state, rows):
        """Clear the plans of the episodes where rows (B,) is true."""
        return state._replace(plan=state.plan.reset(np.asarray(rows)))

    def step(self, states, goals, state):
        """Plan the next move of each episode.

        Args:
            states, goals: raw tensors (B, S).
            state: `ObjectPlannerState`.

        Returns:
            `Subgoals`, all of them found, and the next state. If no sequence of moves leads to a goal, the
            subgoal is the goal itself.
        """
        state = self._with_goals(state, goals.cpu().numpy())
        waypoints, plan = self._waypoints(states.cpu().numpy(), state.routes, state.plan)

        waypoints = torch.as_tensor(waypoints, dtype=torch.float32, device=states.device)
        retreats = torch.as_tensor(plan.retreat_steps_left > 0, device=states.device)
        subgoals = Subgoals(
            features=self.goal_features(waypoints),
            found=np.ones(len(waypoints), bool),
            retreat=waypoints.masked_fill(~retreats.unsqueeze(-1), torch.nan),
        )
        return subgoals, state._replace(plan=plan)

    def _with_goals(self, state, goals):
        """Return the state with routes to `goals` (B, S) and new plans in the rows whose goal differs."""
        is_new = (goals != state.goals).any(1)
        if not is_new.any():
            return state
        routes = [self.route_search.route(goal) for goal in goals]
        return ObjectPlannerState(goals.copy(), routes, state.plan.reset(is_new))

    # --------------------------------------------------------------------------------------------- waypoints
    def _waypoints(self, observations, routes, plan):
        """Determine the state after the next move of each episode.

        A placement ends when all objects rest, so that the robot puts an object down before it turns to the
        next one. After a timeout the robot retreats, since the data do not show how to recover from a
        failed grasp.

        Args:
            observations: raw states (B, S).
            routes: list of B lists of Stage.
            plan: `ObjectPlanState` of the last step.

        Returns:
            raw states (B, S) and the next ObjectPlanState.
        """
        # a placement is committed while objects move
        positions = self.map.positions(observations)
        is_at_rest = np.abs(positions - plan.positions).max(1) < REST_TOL / 2  # false at the first step
        steps_at_rest = np.where(is_at_rest, plan.steps_at_rest + 1, 0)
        committed = np.where(steps_at_rest < REST_STEPS, plan.placements, -1)

        # the current stage changes only in episodes without committed placement
        stages = plan.stages.copy()
        for i in np.flatnonzero(committed < 0):
            stages[i] = self._last_possible_stage(routes[i], positions[i])
        current_stages = [route[stage] for route, stage in zip(routes, stages, strict=True)]

        # moves that are left in it
        configurations = _as_tuples(self.map.configurations(observations))
        displacements = [self._displacements(row, stage)
                         for row, stage in zip(positions, current_stages, strict=True)]
        moves_left = np.array([
            stage.moves_left(configuration, _is_done(row))
            for stage, configuration, row in zip(current_stages, configurations, displacements, strict=True)
        ])

        # retreat after a timeout without progress
        is_waiting = (moves_left != 0) & (moves_left == plan.moves_left) & (stages == plan.stages)
        steps_waited = np.where(is_waiting, plan.steps_waited + 1, 0)
        num_retreats, retreat_steps_left = self._count_retreats(plan, steps_waited)
        retreats = retreat_steps_left > 0

        waypoints = observations.copy()
        placements = np.full(len(waypoints), -1)
        for i, stage in enumerate(current_stages):
            if retreats[i]:
                waypoints[i] = self._retreat_pose(observations[i], seed=num_retreats[i])
            elif committed[i] >= 0:
                placements[i] = committed[i]
                waypoints[i] = self._continue(observations[i], stage, committed[i], displacements[i])
            else:
                last = plan.placements[i] if stages[i] == plan.stages[i] else -1
                waypoints[i], placements[i] = self._next_move(observations[i], configurations[i], stage,
                                                              displacements[i], last)

        next_plan = ObjectPlanState(
            stages=stages,
            placements=placements,
            positions=positions,
            steps_at_rest=steps_at_rest,
            moves_left=moves_left,
            steps_waited=np.where(retreats, 0, steps_waited),
            num_retreats=num_retreats,
            retreat_steps_left=retreat_steps_left,
        )
        return waypoints, next_plan

    def _last_possible_stage(self, route, positions):
        """Return the index of the last stage of a route whose needs are met at `positions` (S,)."""
        return max(index for index, stage in enumerate(route)
                   if all(self._is_at(i, positions, needed) for i, needed in stage.needs))

    def _is_at(self, i, positions, goal_positions):
        """Determine whether movable object i has reached its position in `goal_positions` (S,)."""
        return np.linalg.norm((positions - goal_positions)[self.map.movable[i]]) <= GOAL_TOL

    def _displacements(self, positions, stage):
        """Return the distance of each placement of a stage from its goal, the largest one of its objects."""
        missing = positions - stage.goal_positions
        return [max(np.linalg.norm(missing[self.map.movable[i]]) for i in placement.objects)
                for placement in stage.placements]

    def _dims(self, placement):
        """Return the main dimensions of the objects of a Placement."""
        return np.concatenate([self.map.movable[i] for i in placement.objects])

    # ----------------------------------------------------------------------------------------------- retreat
    def _count_retreats(self, plan, steps_waited):
        """Begin a retreat after a timeout.

        Args:
            plan: ObjectPlanState of the last step.
            steps_waited: (B,).

        Returns:
            num_retreats and retreat_steps_left (B,) of this step.
        """
        timeout = self.map.move_timeout
        can_retreat = timeout > 0 and len(self.map.start_states) > 0
        begins = (steps_waited >= timeout) & can_retreat
        steps_left = np.maximum(plan.retreat_steps_left - 1, 0)
        steps_left = np.where(begins, round(RETREAT_FRACTION * timeout), steps_left)
        return plan.num_retreats + begins, steps_left

    def _retreat_pose(self, observation, seed):
        """Return the observation (S,) with the robot in the pose of a random start of a trajectory."""
        rng = np.random.default_rng(int(seed))
        start = self.map.start_states[rng.integers(len(self.map.start_states))]
        return np.where(self.map.scale > 0, observation, start)

    # ------------------------------------------------------------------------------------------------- moves
    def _continue(self, observation, stage, index, displacements):
        """Return the state (S,) after the committed placement.

        It is the observation once the object is nearly at its goal, since the policy corrects small
        displacements by lifting the object again.
        """
        state = observation.copy()
        if displacements[index] > RELEASE_TOL:
            dims = self._dims(stage.placements[index])
            state[dims] = stage.goal[dims]
        return state

    def _next_move(self, observation, configuration, stage, displacements, last):
        """Determine the first move of a shortest sequence to the end of a stage.

        Args:
            observation: raw state (S,).
            configuration: tuple.
            stage: Stage.
            displacements: list of `_displacements`.
            last: index of the placement at the last step, -1: none. It is preferred among equally good ones.

        Returns:
            raw state (S,) after the move, the goal if no moves lead there or none is left; index of its
            placement, -1 for a switch move.
        """
        done = _is_done(displacements)
        moves_left = stage.moves_left(configuration, done)
        if moves_left <= 0:
            return stage.goal, -1

        # a placement: the last one, or the one that is nearest to its end, since it may have begun
        for i in sorted(range(len(displacements)), key=lambda i: (i != last, displacements[i])):
            placement = stage.placements[i]
            if done[i] or configuration not in placement.configurations:
                continue
            if 0 <= stage.moves_left(configuration, _with(done, i, True)) < moves_left:
                return self._place(observation, stage, placement, displacements[i]), i

        # a switch move
        successors = [successor for successor in self.switch_graph.successors(configuration)
                      if 0 <= stage.moves_left(successor, done) < moves_left]
        return self._switch(observation, configuration, successors[0]), -1

    def _place(self, observation, stage, placement, displacement):
        """Return the state (S,) after a placement.

        Displacements below the `MIN_MOVE_QUANTILE` of the data are lengthened to it, since the data hardly
        show how to begin shorter ones.
        """
        dims = self._dims(placement)
        min_length = min(self.route_search.min_lengths[i] for i in placement.objects)
        stretch = max(1.0, min_length / displacement)
        state = observation.copy()
        state[dims] += stretch * (stage.goal[dims] - observation[dims])
        return state

    def _switch(self, observation, before, after):
        """Return the observation (S,) with switches changed from configuration `before` to `after`."""
        state = observation.copy()
        for i, group in enumerate(self.map.switches):
            if after[i] != before[i]:
                state[group] = self.map.levels[i][after[i]][group]
        return state
