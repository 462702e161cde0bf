"""Plans that move one object after the other. Goal features are raw states, so that subgoals are states."""

import itertools

import numpy as np
import pytest
import torch
from toy_objects import (
    PAUSE,
    cubes,
    drawer,
    lamps,
    make,
    make_map,
    make_planner,
    ring,
    turned_cubes,
    with_objects,
)

from planning.object_planner import RELEASE_TOL, ObjectPlanner, RouteSearch, SwitchGraph
from planning.objects import REST_STEPS, ObjectMap


def subgoal_states(planner, states, goals):
    """Return the subgoals (B, S) at the first step of episodes, and where they are found (B,)."""
    subgoals, _ = step(planner, states, goals, planner.initial_state(len(states)))
    return subgoals.features.numpy(), subgoals.found


def step(planner, states, goals, state):
    """Call `ObjectPlanner.step` with arrays (B, S)."""
    return planner.step(torch.from_numpy(states), torch.from_numpy(goals), state)


def follow(planner, state, goal, moves=20):
    """Return the states (S,) of a plan whose subgoals are reached exactly."""
    states = [state]
    for _ in range(moves):
        ahead, found = subgoal_states(planner, states[-1][None], goal[None])
        assert found.all()
        states.append(ahead[0])
        if np.allclose(ahead[0, 3:], goal[3:]):
            return states
    raise AssertionError('the plan does not reach the goal')


# -------------------------------------------------------------------------------------------- order of moves
@pytest.mark.parametrize(('start', 'goal'), [*itertools.permutations([(0, 0), (0, 1), (1, 0), (1, 1)], 2)])
def test_object_planner_opens_a_lock_first(start, goal):
    """The second lamp can be switched only while the first one is on, which the data alone show."""
    data = make(lamps, locked=True)
    path = follow(make_planner(data), with_objects(data, start), with_objects(data, goal))
    for before, after in itertools.pairwise(state[3:] for state in path):
        assert np.abs(after - before).sum() <= 1, 'one lamp a move'
        if after[1] != before[1]:
            assert before[0] == 1


def test_object_planner_moves_one_cube_after_the_other():
    data = make(cubes)
    start = with_objects(data, [-2, -2, 2, 2])
    goal = with_objects(data, [1, 1, -1, 0.5])
    path = follow(make_planner(data), start, goal)
    assert len(path) == 3
    between = path[1][3:]
    assert np.array_equal(between[:2], start[3:5]) != np.array_equal(between[2:], start[5:])


def test_object_planner_places_a_cube_in_an_open_drawer_and_closes_it():
    """The goal of the cube is in the closed drawer, where no move of the data places it."""
    data = make(drawer)
    planner = make_planner(data)
    assert sorted(group.tolist() for group in planner.map.movable) == [[3], [4, 5]]

    goal = with_objects(data, [0.3, 0.5, -1.3])
    path = follow(planner, with_objects(data, [0.3, 2, 2]), goal)
    opened, filled, closed = (state[3:] for state in path[1:])
    assert len(path) == 4
    assert opened[0] > 2
    np.testing.assert_array_equal(opened[1:], [2, 2])
    np.testing.assert_allclose(filled, [opened[0], 0.5, -1 - opened[0]], atol=0.1)
    np.testing.assert_allclose(closed, goal[3:], atol=1e-5)

    # a cube on the table and an empty drawer need no joint move
    path = follow(planner, with_objects(data, [3, 2, 2]), with_objects(data, [0.3, 1, 0.5]))
    assert len(path) == 3


def test_object_planner_ignores_the_yaw_of_a_placed_cube():
    """Each move turns its cube a little. The plan turns to the second cube although the yaw of the first
    differs."""
    data = make(turned_cubes)
    goal = with_objects(data, [1, 1, -1, 0.5, 0, 0])
    first_placed = with_objects(data, [1, 1, 2, 2, 3, 3])
    ahead, _ = subgoal_states(make_planner(data), first_placed[None], goal[None])
    np.testing.assert_array_equal(ahead[0, 3:], [1, 1, -1, 0.5, 3, 3])


def test_object_planner_heads_for_the_goal_if_no_moves_lead_there():
    data = make(cubes)
    goal = with_objects(data, [90, 90, -1, 0.5])
    state = with_objects(data, [0, 0, 0, 0])
    ahead, found = subgoal_states(make_planner(data), state[None], goal[None])
    assert found.all()
    np.testing.assert_array_equal(ahead[0], goal)


def test_object_planner_heads_for_the_goal_if_the_map_is_empty():
    data = make(cubes, trajectories=2, moves=1)
    object_map = ObjectMap.from_data(data, np.array([0, 0, 0, 1, 1, 1, 1]))
    planner = ObjectPlanner(object_map, lambda states: states)
    ahead, _ = subgoal_states(planner, data.observations[:1], data.observations[-1:])
    np.testing.assert_array_equal(ahead, data.observations[-1:])


@pytest.mark.parametrize('kind', [lamps, cubes])
def test_object_planner_plans_alike_on_a_loaded_map(kind):
    data = make(kind)
    object_map = make_map(data)
    loaded = ObjectMap.from_state_dict(object_map.state_dict())
    states, goals = data.observations[::500], data.observations[::500][::-1].copy()
    ahead = [subgoal_states(ObjectPlanner(some, lambda states: states), states, goals)[0]
             for some in (object_map, loaded)]
    np.testing.assert_array_equal(*ahead)


# ----------------------------------------------------------------------------------------- during a placement
def test_object_planner_continues_with_the_nearest_cube():
    """The cube that is nearest to its goal may be in the gripper."""
    data = make(cubes)
    goal = with_objects(data, [1, 1, -1, 0.5])
    planner = make_planner(data)
    for share in (0.1, 0.3, 0.4):
        moving = with_objects(data, [1 + 2 * (1 - share), 1, 2, 2.5])
        ahead, _ = subgoal_states(planner, moving[None], goal[None])
        np.testing.assert_array_equal(ahead[0, 3:], [1, 1, 2, 2.5])


def test_object_planner_waits_until_a_placed_cube_rests():
    data = make(cubes)
    planner = make_planner(data)
    goal = with_objects(data, [1, 1, -1, 0.5])
    state = planner.initial_state(1)

    near = 0.1
    assert near < RELEASE_TOL / planner.map.scale[3] < 4 * near
    for x in (-1.0, 0.5, 1 + 4 * near, 1 + near):
        carried = with_objects(data, [x, 1, 2, 2.5])
        subgoals, state = step(planner, carried[None], goal[None], state)
        expected_x = x if x == 1 + near else 1  # no displacement within RELEASE_TOL
        np.testing.assert_allclose(subgoals.features[0, 3:], [expected_x, 1, 2, 2.5])

    for _ in range(REST_STEPS - 1):
        subgoals, state = step(planner, carried[None], goal[None], state)
        np.testing.assert_allclose(subgoals.features[0, 3:], [1 + near, 1, 2, 2.5])
    subgoals, at_rest = step(planner, carried[None], goal[None], state)
    np.testing.assert_allclose(subgoals.features[0, 3:], [1.1, 1, -1, 0.5])

    # after a reset no placement is committed
    reset = planner.reset(at_rest, np.array([True]))
    assert reset.plan.placements.tolist() == [-1]
    assert reset.plan.steps_at_rest.tolist() == [0]
    subgoals, _ = step(planner, carried[None], goal[None], planner.reset(state, np.array([True])))
    np.testing.assert_allclose(subgoals.features[0, 3:], [1.1, 1, -1, 0.5])


def test_object_planner_lengthens_the_start_of_a_short_move():
    """The data do not show how to begin a short move. Once the cube moves, the subgoal is its goal."""
    data = make(cubes)
    planner = make_planner(data)
    goal = with_objects(data, [1, 1, 2, 2.5])
    near = with_objects(data, [0.4, 1, 2, 2.5])

    # at the first step, and again after REST_STEPS without effect
    state = planner.initial_state(1)
    ahead = []
    for _ in range(REST_STEPS + 1):
        subgoals, state = step(planner, near[None], goal[None], state)
        ahead.append(subgoals.features[0])
    for i in (0, REST_STEPS):
        assert ahead[i][3] > 1.1
        np.testing.assert_allclose(ahead[i][4:], [1, 2, 2.5])

    near[3] = 0.5
    subgoals, _ = step(planner, near[None], goal[None], state)
    np.testing.assert_allclose(subgoals.features[0, 3:], [1, 1, 2, 2.5])


# --------------------------------------------------------------------------------------------------- retreats
def test_object_planner_retreats_to_a_start_of_the_data_after_a_timeout():
    data = make(lamps, locked=True)
    planner = make_planner(data)
    assert planner.map.move_timeout == PAUSE
    start = with_objects(data, [1, 0])
    start[:3] = [5, 6, 7]  # a pose that is not in the data
    goal = with_objects(data, [1, 1])

    states = np.stack([start, goal])  # the second episode has reached its goal and waits for nothing
    goals = np.stack([goal, goal])
    state = planner.initial_state(2)
    headed = []
    retreats = []
    for _ in range(2 * PAUSE + 30):
        subgoals, state = step(planner, states, goals, state)
        headed.append(subgoals.features.numpy())
        retreats.append(subgoals.retreat.numpy())
    headed = np.array(headed)
    retreats = np.array(retreats)
    is_retreat = np.isfinite(retreats).all(2)
    assert (np.isnan(retreats).all(2) == ~is_retreat).all()
    np.testing.assert_array_equal(retreats[is_retreat], headed[is_retreat])

    # two retreats of a fifth of the timeout, with the whole timeout between them
    assert state.plan.num_retreats.tolist() == [2, 0]
    assert is_retreat[:, 1].sum() == 0 and is_retreat[:PAUSE].sum() == 0
    assert is_retreat[:, 0].sum() == 2 * 12
    assert not is_retreat[PAUSE + 12:2 * PAUSE].any()
    assert (headed[~is_retreat[:, 0], 0, 3:] == [1, 1]).all()

    # poses of the robot at random starts, objects as they are
    poses = retreats[is_retreat[:, 0], 0]
    np.testing.assert_array_equal(poses[:, 3:], np.tile(start[3:], (24, 1)))
    starts = data.observations[data.starts, :3]
    assert all((pose == starts).all(1).any() for pose in poses[:, :3])
    assert (poses[:12] == poses[0]).all() and (poses[12:] == poses[12]).all()
    assert (poses[0] != poses[12]).any()
    assert planner.reset(state, np.array([True, False])).plan.num_retreats.tolist() == [0, 0]


def test_object_planner_retreats_if_a_cube_moves_without_progress():
    data = make(cubes)
    planner = make_planner(data)
    goal = with_objects(data, [2, 2, -1, 0.5])
    state = planner.initial_state(1)
    is_retreat = []
    for i in range(PAUSE + 2):
        pushed = with_objects(data, [-2 - i / 50, 0, -1, 0.5])[None]
        subgoals, state = step(planner, pushed, goal[None], state)
        is_retreat.append(bool(subgoals.retreat.isfinite().all()))
    assert state.plan.num_retreats.tolist() == [1]
    assert is_retreat[-1] and not any(is_retreat[:PAUSE - 1])


# ------------------------------------------------------------------------------------------ state of episodes
def test_object_planner_plans_for_a_goal_of_zeros():
    data = make(cubes)
    planner = make_planner(data)
    goal = np.zeros_like(data.observations[:1])
    ahead, found = subgoal_states(planner, with_objects(data, [2, 0, 0, 0])[None], goal)
    assert found.all()
    np.testing.assert_array_equal(ahead[0, 3:], [0, 0, 0, 0])


def test_object_planner_resets_only_episodes_with_a_new_goal():
    data = make(cubes)
    planner = make_planner(data)
    states = np.stack([with_objects(data, [0, 0, 2, 2])] * 2)
    goals = np.stack([with_objects(data, [2, 0, 2, 2])] * 2)
    state = planner.initial_state(2)
    for _ in range(3):
        _, state = step(planner, states, goals, state)

    changed = goals.copy()
    changed[1, 3] = -2
    subgoals, state = step(planner, states, changed, state)
    np.testing.assert_array_equal(subgoals.features[:, 3], [2, -2])
    assert state.plan.steps_waited[0] > state.plan.steps_waited[1] == 0


def test_object_planner_maps_waypoints_to_goal_features():
    data = make(cubes)
    object_map = make_map(data)
    state, goal = with_objects(data, [-2, -2, 2, 2])[None], with_objects(data, [-2, -2, -1, 0.5])[None]
    waypoint, _ = subgoal_states(ObjectPlanner(object_map, lambda states: states), state, goal)
    features, _ = subgoal_states(ObjectPlanner(object_map, lambda states: 2 * states), state, goal)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, 2 * waypoint)


# ----------------------------------------------------------------------------------------------------- routes
def test_switch_graph_leads_to_configurations_that_the_data_do_not_show(monkeypatch):
    data = make(ring)
    object_map = make_map(data)
    assert len(object_map.switches) == 5 and len(SwitchGraph(object_map).toggles) == 5
    states = np.stack([with_objects(data, levels) for levels in itertools.product([0, 1], repeat=5)])
    goal = states[24]  # 1 1 0 0 0
    configurations = object_map.configurations(states)
    end = configurations[24]

    # a map without the moves from and to the goal
    avoids_goal = ~((object_map.sources == end).all(1) | (object_map.targets == end).all(1))
    assert 0 < avoids_goal.sum() < len(avoids_goal)
    saved = object_map.state_dict()
    kept = {name: saved[name][torch.from_numpy(avoids_goal)] for name in ('sources', 'targets')}
    reduced = ObjectMap.from_state_dict(saved | kept)
    planner = ObjectPlanner(reduced, lambda states: states)
    [stage] = planner.route_search.route(goal)
    moves_left = [stage.moves_left(tuple(row), ()) for row in configurations.tolist()]

    ahead, found = subgoal_states(planner, states[:1], goal[None])
    assert found.all()
    np.testing.assert_array_equal(reduced.configurations(ahead), configurations[24:25])
    [again] = planner.route_search.route(goal + np.float32(1e-3))
    assert again.distances is stage.distances, 'one table for one configuration'

    # breadth-first search over the moves of all data, which show every configuration
    monkeypatch.setattr('planning.object_planner.MAX_TABLE_SWITCHES', 0)
    graph = SwitchGraph(object_map)
    assert not len(graph.toggles)
    [searched] = RouteSearch(object_map, graph).route(goal)
    assert moves_left == [searched.moves_left(tuple(row), ()) for row in configurations.tolist()]
    assert moves_left[0] == 1 and moves_left[1] == -1, 'each move changes two lamps'


def test_switch_graph_has_no_toggles_with_a_lock_or_cubes():
    assert len(SwitchGraph(make_map(make(lamps))).toggles) == 2
    assert not len(SwitchGraph(make_map(make(lamps, locked=True))).toggles)
    assert not len(SwitchGraph(make_map(make(cubes))).toggles)


def test_route_search_caches_a_limited_number_of_routes(monkeypatch):
    monkeypatch.setattr('planning.object_planner.CACHED_GOALS', 3)
    data = make(lamps)
    object_map = make_map(data)
    search = RouteSearch(object_map, SwitchGraph(object_map))
    goals = data.observations[::30][:10]
    assert len([search.route(goal) for goal in goals]) == 10
    assert search._cached_route.cache_info().currsize == 3
