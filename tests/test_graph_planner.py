"""The map of the data: nodes, edges, costs and ways, on mazes small enough to know the answer."""

import numpy as np
import pytest
import torch

from planning import graph_planner
from planning.graph_planner import (
    AT_GOAL,
    NO_PATH,
    JumpModel,
    StateMap,
    cluster,
    estimate_jumps,
    find_edges,
    find_gates,
    find_jumps,
)
from trajectories import TrajectoryDataset

HOP = 4


def walk(*corners, speed=0.25):
    """States (T, 2) of a walk along straight lines between corners."""
    pieces = []
    for a, b in zip(corners[:-1], corners[1:], strict=True):
        a, b = np.array(a, float), np.array(b, float)
        steps = round(np.abs(b - a).max() / speed)
        pieces.append(a + (b - a) * np.arange(steps)[:, None] / steps)
    return np.concatenate([*pieces, [corners[-1]]]).astype(np.float32)


def dataset(*trajectories, **options):
    ends = np.cumsum([len(states) for states in trajectories]) - 1
    starts = np.append(0, ends[:-1] + 1)
    return TrajectoryDataset(np.concatenate(trajectories), starts, ends, context_length=8, **options)


def make_map(*trajectories, hop=HOP, **options):
    data = dataset(*trajectories)
    return StateMap.from_data(data, np.zeros(2), np.ones(2), hop=hop, **options)


def around_the_wall():
    """Up one corridor, over, and down the next: start and end lie side by side, a wall between them."""
    return [walk((0, 0), (0, 10), (1, 10), (1, 0)) for _ in range(3)]


def follow(state_map, start, goal, most=100):
    """The states of the nodes that an agent would head for, one after the other, until it is at the goal."""
    route = state_map.routes(np.array([goal], np.float32))[0]
    node = state_map.locate(np.array([start], np.float32))[0]
    states = [state_map.states[node]]
    for _ in range(most):
        if route[node] == AT_GOAL:
            return np.array(states)
        assert route[node] >= 0, 'the plan breaks off'
        node = route[node]
        states.append(state_map.states[node])
    raise AssertionError('the plan does not arrive')


def test_plan_goes_around_a_wall():
    state_map = make_map(*around_the_wall(), nodes=40)
    way = follow(state_map, (0, 0), (1, 0))
    assert way[:, 1].max() > 9  # up to the end of the wall and down again, though the goal is one unit away
    sideways = np.abs(np.diff(way[:, 0])) > 0.2
    assert way[1:][sideways][:, 1].min() > 8.5  # and through the opening only


def test_edges_lead_where_trajectories_went_and_not_back():
    state_map = make_map(*around_the_wall(), nodes=40)
    route = state_map.routes(np.array([[0, 0]], np.float32))[0]
    node = state_map.locate(np.array([[1, 0]], np.float32))[0]
    assert route[node] == NO_PATH  # nobody ever walked from the end to the start


def test_distances_are_about_the_steps_walked():
    state_map = make_map(*around_the_wall(), nodes=80)
    start, end = state_map.locate(np.array([[0, 0], [1, 0]], np.float32))
    steps = len(walk((0, 0), (0, 10), (1, 10), (1, 0))) - 1
    assert steps - 2 * HOP <= state_map.distances(end)[start] <= 1.3 * steps


def test_path_is_the_route_followed():
    state_map = make_map(*around_the_wall(), nodes=40)
    start, goal, far = state_map.locate(np.array([[0, 0], [1, 0], [90, 0]], np.float32))
    path = state_map.path(start, goal)
    way = follow(state_map, (0, 0), (1, 0))
    assert path[0] == start
    assert path[-1] == goal
    np.testing.assert_array_equal(state_map.states[path[:len(way)]], way)
    assert state_map.path(goal, start) == []
    assert state_map.path(start, far) == state_map.path(far, goal) == []


def test_a_goal_within_a_hop_is_headed_for():
    """Where all walk at one speed, every edge is as long as a hop: by edges alone the way to a goal two steps ahead
    would lead back first."""
    line = np.stack([np.arange(40.0), np.zeros(40)], 1).astype(np.float32)
    state_map = make_map(line, line, line[::-1], line[::-1], nodes=40, hop=8)
    nodes = state_map.locate(line)
    route = state_map.route(nodes[22])
    assert (route[nodes[[20, 18, 16, 14, 22, 24, 26]]] == AT_GOAL).all()
    far = state_map.states[route[nodes[5]], 0]
    assert far == 13
    assert (state_map.distances(nodes[22])[nodes[[22, 20, 6]]] == [0, 8, 16]).all()
    assert route[nodes[11]] != AT_GOAL and len(state_map.path(nodes[6], nodes[22])) == 3


def test_what_jumps_is_not_near():
    line = np.stack([np.r_[np.arange(20.0), np.arange(500, 520.0)], np.zeros(40)], 1).astype(np.float32)
    still = np.stack([np.arange(300.0) - 900, np.zeros(300)], 1).astype(np.float32)
    state_map = make_map(line, line, line, still, nodes=340, hop=8)
    before, after = state_map.locate(line[[19, 20]])
    assert state_map.route(after)[before] >= 0  # by the edge over the jump, not AT_GOAL


def test_old_maps_have_near_nodes_as_well():
    state_map = make_map(*around_the_wall(), nodes=40)
    saved = {name: value for name, value in state_map.state_dict().items() if not name.startswith('near_')}
    old = StateMap.from_state_dict(saved)
    goal = state_map.locate(np.array([[1, 0]], np.float32))[0]
    assert (old.route(goal) == AT_GOAL).sum() > 1
    np.testing.assert_array_equal(old.route(goal) == NO_PATH, state_map.route(goal) == NO_PATH)


def test_goal_and_state_far_from_all_nodes_have_no_plan():
    state_map = make_map(*around_the_wall(), nodes=40)
    far = np.array([[50.0, 50.0]], np.float32)
    assert state_map.locate(far)[0] == -1
    assert (state_map.routes(far) == NO_PATH).all()
    route = state_map.routes(np.array([[1, 0]], np.float32))[0]
    assert route[state_map.locate(far)[0]] == NO_PATH  # the goal is known, the state is not
    assert route[state_map.locate(np.array([[0, 0]], np.float32))[0]] >= 0


def test_disconnected_maps():
    here, there = walk((0, 0), (0, 10), (0, 0)), walk((50, 0), (50, 10), (50, 0))
    state_map = make_map(here, here, there, there, nodes=20)
    route = state_map.routes(np.array([[0, 5]], np.float32))[0]
    islands = state_map.centers[:, 0] > 25
    assert islands.any() and not islands.all()
    assert (route[:-1][islands] == NO_PATH).all()
    assert (route[:-1][~islands] != NO_PATH).all()


def test_one_trajectory_is_enough_for_a_way():
    """Its edges were crossed once; unproven ones cost more but lead on."""
    state_map = make_map(walk((0, 0), (0, 10), (1, 10), (1, 0)), nodes=30)
    assert follow(state_map, (0, 0), (1, 0))[:, 1].max() > 9
    assert (state_map.costs == graph_planner.RARE_EDGE_PENALTY * HOP).all()


def test_proven_way_is_preferred_to_a_shorter_one_seen_once():
    usual = [walk((0, 0), (0, 4), (6, 4), (6, 0)) for _ in range(3)]
    state_map = make_map(*usual, walk((0, 0), (6, 0)), nodes=60)
    assert follow(state_map, (0, 0), (6, 0))[:, 1].max() > 3
    state_map = make_map(*usual, *[walk((0, 0), (6, 0)) for _ in range(2)], nodes=60)
    assert follow(state_map, (0, 0), (6, 0))[:, 1].max() < 1


def test_dwelling_is_one_crossing():
    """Ten states in u followed by ten in v are one visit, not ten."""
    labels = np.repeat([0, 1], 10)
    _, _, costs = find_edges(np.zeros(20, bool), labels, np.full(20, 19), hop=2)
    np.testing.assert_array_equal(costs, [graph_planner.RARE_EDGE_PENALTY * 2])


def test_no_edge_leads_from_one_trajectory_into_the_next():
    first, second = walk((0, 0), (0, 5)), walk((10, 0), (10, 5))
    state_map = make_map(first, second, first, second, nodes=20)
    apart = state_map.states[state_map.sources][:, 0] != state_map.states[state_map.targets][:, 0]
    assert len(state_map.costs) and not apart.any()


def test_luck_of_a_gate_is_that_of_all_who_went_through_it():
    """A teleporter that lands at one place in three of four times and at another in one, whatever node one comes from;
    and another one far away, with a jump_model of its own."""
    usual = [0, 1, 2, 5]
    from_elsewhere = [3, 4, 2, 7]
    other = [9, 10, 11, 5]
    trips = [usual] * 3 + [from_elsewhere] + [other] * 2
    places = np.array([0.0, 1.0, 2.0, 4.0, 3.0, 100.0, 0, 200.0, 0, 60.0, 61.0, 62.0])
    labels = np.concatenate(trips)
    ends = np.repeat(np.arange(3, 4 * len(trips), 4), 4)
    walk_far = np.arange(0.0, 1000.0)  # so that jumps are rare
    positions = np.concatenate([places[labels], walk_far])
    strides = np.append(np.abs(np.diff(positions)), 0.0)
    labels = np.concatenate([labels, np.full(1000, 8)])
    ends = np.concatenate([ends, np.full(1000, len(labels) - 1)])

    jumps = find_jumps(positions[:, None], strides, ends)
    assert jumps.sum() == 6
    gates = find_gates(positions[jumps][:, None], strides[jumps])
    assert gates.tolist() == [0, 0, 0, 0, 1, 1]

    jump_model = estimate_jumps(jumps, gates, labels, ends, hop=2)
    assert set(zip(jump_model.gate_nodes.tolist(), jump_model.gate_numbers.tolist(), strict=True)) \
        == {(1, 0), (2, 0), (4, 0), (10, 1), (11, 1)}  # within a hop of the jump, no further
    landings = zip(jump_model.landing_numbers.tolist(), jump_model.landing_nodes.tolist(), strict=True)
    chances = dict(zip(landings, jump_model.landing_probs.tolist(), strict=True))
    assert chances == {(0, 5): 0.75, (0, 7): 0.25, (1, 5): 1.0}

    sources, targets, _ = find_edges(jumps, labels, ends, hop=2)
    assert not np.isin(targets[sources != 8], [5, 7]).any()  # nobody walked there


def test_a_tumble_is_longer_than_a_short_jump_and_none():
    """Two places and a tilt: it weighs more, and what falls turns four times as fast as 99 % of all steps."""
    rng = np.random.default_rng(0)
    observations = np.zeros((2000, 3), np.float32)
    observations[:, 0] = np.cumsum(rng.uniform(0.05, 0.1, 2000))
    observations[:, 2] = np.cumsum(rng.uniform(-0.05, 0.05, 2000))
    observations[700:, 2] += 0.2
    observations[1200:, 1] += 1.5
    strides = np.append(np.linalg.norm(np.diff(observations * [1, 1, 20], axis=0), axis=1), 0)
    assert strides[699] > strides[1199]

    observations[:, 1] += np.cumsum(rng.uniform(0, 0.1, 2000))
    jumps = find_jumps(observations, strides, np.full(2000, 1999))
    assert np.flatnonzero(jumps).tolist() == [1199]


def gated_map(detour, chances, way_out=True):
    """A way of `detour` edges from the node 0 to the node 1, and a gate in 0 that leads to 1 and to 2, the others being
    on the way; from 2 one can walk back to 0, or nowhere."""
    way = [0, *range(3, 2 + detour), 1]
    pairs = list(zip(way[:-1], way[1:], strict=True)) + ([(2, 0)] if way_out else [])
    sources, targets = np.array(pairs, np.int32).T
    centers = np.stack([10.0 * np.arange(2 + detour), np.zeros(2 + detour)], 1).astype(np.float32)
    jump_model = JumpModel(
        gate_nodes=np.zeros(1, np.int32),
        gate_numbers=np.zeros(1, np.int32),
        landing_numbers=np.zeros(2, np.int32),
        landing_nodes=np.array([1, 2], np.int32),
        landing_probs=np.array(chances, np.float32),
    )
    none = np.zeros(0, np.int32)
    return StateMap(np.zeros(2, np.float32), np.ones(2, np.float32), centers, centers, 1.0, sources, targets,
                    np.full(len(sources), 10, np.float32), near_sources=none, near_targets=none, hop=10, jump_model=jump_model)


def test_a_gate_is_taken_where_it_saves_time():
    """It costs a hop, and where it fails another one back: of two attempts as many as needed take 30 steps."""
    state_map = gated_map(detour=5, chances=[0.5, 0.5])
    assert state_map.route(1)[0] == 1
    assert state_map.distances(1)[0] == pytest.approx(30 + state_map.hop, abs=0.1)
    assert gated_map(detour=2, chances=[0.5, 0.5]).route(1)[0] == 3


def test_who_may_land_where_no_way_leads_on_walks():
    state_map = gated_map(detour=50, chances=[0.7, 0.3], way_out=False)
    assert state_map.route(1)[0] == 3
    assert state_map.route(1)[2] == NO_PATH
    surely = gated_map(detour=50, chances=[1.0, 0.0], way_out=False)
    assert surely.route(1)[0] == 1


def test_luck_is_kept_and_old_maps_have_none(assert_same):
    state_map = gated_map(detour=5, chances=[0.5, 0.5])
    saved = state_map.state_dict()
    loaded = StateMap.from_state_dict(saved)
    assert_same(saved, loaded.state_dict())
    np.testing.assert_array_equal(loaded.route(1), state_map.route(1))

    old = StateMap.from_state_dict({name: array for name, array in saved.items() if name not in JumpModel._fields})
    assert old.route(1)[0] == 3 and not len(old.jump_model.gate_nodes)


def test_without_luck_value_iteration_finds_dijkstras_paths():
    state_map = make_map(*around_the_wall(), nodes=40)
    goal = state_map.locate(np.array([[1, 0]], np.float32))[0]
    near = np.flatnonzero(state_map.route(goal) == AT_GOAL)
    leads_to_itself = {'gate_nodes': [near[0]], 'gate_numbers': [0], 'landing_numbers': [0], 'landing_nodes': [near[0]],
                       'landing_probs': [1.0]}
    saved = state_map.state_dict() | {name: torch.tensor(values) for name, values in leads_to_itself.items()}
    lucky = StateMap.from_state_dict(saved)
    np.testing.assert_allclose(lucky.distances(goal), state_map.distances(goal), atol=0.05)
    np.testing.assert_array_equal(lucky.route(goal) == AT_GOAL, state_map.route(goal) == AT_GOAL)


def back_and_forth():
    """Two nodes side by side: only from the first, at 0, an edge leads on to the goal's, at 5, so that the way from the
    second, at 1, leads back."""
    centers = np.array([[0, 0], [1, 0], [5, 0], [9, 0]], np.float32)
    edges = {'sources': np.array([0, 1, 2]), 'targets': np.array([2, 0, 3]), 'costs': np.full(3, 10, np.float32)}
    none = np.zeros(0, int)
    return StateMap(np.zeros(2, np.float32), np.ones(2, np.float32), centers, centers, 1.0, **edges,
                    near_sources=none, near_targets=none, hop=10)


def walk_along(state_map, positions, goal):
    """-> where to head for at each of these positions (T,) in turn, x alone; None where no path leads."""
    goals = np.array([[goal, 0]], np.float32)
    pursuit = state_map.no_pursuit(1)
    directions = []
    for x in positions:
        here = np.array([[x, 0]], np.float32)
        states, found, pursuit = state_map.waypoints(here, goals, state_map.routes(goals), pursuit)
        directions.append(states[0, 0] if found[0] else None)
    return directions


def test_who_has_set_out_does_not_turn_back():
    state_map = back_and_forth()
    assert walk_along(state_map, [1.0, 0.4, 0.6, 1.2, 5.0, 9.0], goal=9) == [0, 5, 5, 5, 9, 9]


def test_who_leaves_the_map_keeps_to_nothing():
    assert walk_along(back_and_forth(), [0.0, 90.0, 1.0], goal=9) == [5, None, 0]


def test_a_target_is_given_up_after_a_hop():
    """There may be a wall before it."""
    directions = walk_along(back_and_forth(), [0.0] + 12 * [1.0] + [0.0], goal=9)
    assert directions == 11 * [5] + 2 * [0] + [5]


def test_episodes_pursue_their_own_targets():
    """What one heads for, or forgets, does not depend on the others beside it."""
    state_map = back_and_forth()
    goals = np.array([[9, 0], [9, 0], [9, 0], [0, 0]], np.float32)
    routes = state_map.routes(goals)
    here = np.array([[0, 0], [0, 0], [1, 0], [1, 0]], np.float32)
    states, _, pursuit = state_map.waypoints(here, goals, routes, state_map.no_pursuit(4))
    assert states[:, 0].tolist() == [5, 5, 0, 0]

    here = np.array([[1, 0], [1, 0], [0, 0], [1, 0]], np.float32)
    pursuit = pursuit.forget(np.array([True, False, False, False]))
    states, _, pursuit = state_map.waypoints(here, goals, routes, pursuit)
    assert states[:, 0].tolist() == [0, 5, 5, 0]
    assert pursuit.kept.tolist() == [0, 1, 0, 0]


def test_fewer_states_than_nodes():
    data = dataset(np.array([[0, 0], [1, 0], [2, 0]], np.float32))
    state_map = StateMap.from_data(data, np.zeros(2), np.ones(2), hop=1, nodes=50)
    assert len(state_map) == 3
    assert follow(state_map, (0, 0), (2, 0))[-1][0] >= 1
    assert state_map.locate(np.array([[0.1, 0], [9, 0]], np.float32)).tolist() == [
        state_map.locate(data.observations[:1])[0], -1]  # near is not on the spot


def test_trajectories_shorter_than_a_hop_have_a_map_without_edges():
    state_map = make_map(np.array([[0, 0], [1, 0]], np.float32), np.array([[5, 0], [6, 0]], np.float32), hop=10)
    assert len(state_map.costs) == 0
    assert (state_map.routes(np.zeros((1, 2), np.float32))[0] != AT_GOAL).sum() == len(state_map)  # all but its node


def test_as_many_nodes_as_cover_the_data():
    rng = np.random.default_rng(0)
    small = rng.uniform(0, 1, (4000, 2)).astype(np.float32)
    counts = [len(cluster(small * side, 0, 0.02, np.random.default_rng(0))) for side in (1, 1.5)]
    assert 1.7 < counts[1] / counts[0] < 2.9  # 2.25 times the area
    centers = cluster(small, 0, 0.02, np.random.default_rng(0))
    distance = graph_planner.KDTree(centers).query(small)[0].mean()
    assert 0.8 * 0.02 < distance < 1.2 * 0.02


def test_states_of_nodes_are_states_of_the_data():
    trajectories = around_the_wall()
    state_map = make_map(*trajectories, nodes=25)
    data = {tuple(row) for row in np.concatenate(trajectories).tolist()}
    assert all(tuple(row) in data for row in state_map.states.tolist())
    np.testing.assert_array_equal(state_map.locate(state_map.states), np.arange(len(state_map)))


def test_scale_decides_what_a_place_is():
    """A posture that changes all the time does not tell places apart where its scale is 0."""
    rng = np.random.default_rng(0)
    way = walk((0, 0), (10, 0))
    noisy = [np.stack([way[:, 0], 100 * rng.standard_normal(len(way))], 1).astype(np.float32) for _ in range(4)]
    state_map = StateMap.from_data(dataset(*noisy), np.zeros(2), np.array([1.0, 0.0]), hop=HOP, nodes=20)
    goal = np.array([[9, -500]], np.float32)
    route = state_map.routes(goal)[0]
    assert route[state_map.locate(np.array([[0, 777]], np.float32))[0]] >= 0


def test_same_seed_same_map_and_round_trip(tmp_path, assert_same):
    first, second = (make_map(*around_the_wall(), nodes=40) for _ in range(2))
    assert_same(first.state_dict(), second.state_dict())
    torch.save(first.state_dict(), tmp_path / 'map.pth')
    loaded = StateMap.from_state_dict(torch.load(tmp_path / 'map.pth', weights_only=True))
    assert_same(first.state_dict(), loaded.state_dict())
    goals = np.array([[1, 0], [0, 5]], np.float32)
    np.testing.assert_array_equal(first.routes(goals), loaded.routes(goals))


def test_routes_are_kept_but_not_without_bound(monkeypatch):
    monkeypatch.setattr(graph_planner, 'KEPT_GOALS', 3)
    state_map = make_map(*around_the_wall(), nodes=40)
    kept = state_map.route(0)
    assert state_map.route(0) is kept
    for node in range(1, 10):
        state_map.route(node)
    assert state_map._kept_route.cache_info().currsize == 3
    np.testing.assert_array_equal(state_map.route(0), kept)


def test_default_hop_is_a_share_of_what_i_was_trained_on():
    data = dataset(*around_the_wall(), transition_steps=10)
    assert StateMap.from_data(data, np.zeros(2), np.ones(2)).hop == 6


def test_a_map_is_the_same_piece_by_piece(monkeypatch):
    """Pieces of 97 rows, which end inside trajectories, give the map of one piece."""
    rng = np.random.default_rng(0)
    walks = [np.cumsum(rng.normal(0, 0.2, (150, 2)), 0).astype(np.float32) for _ in range(4)]
    whole = make_map(*walks, nodes=20)
    monkeypatch.setattr(graph_planner, 'ROWS_AT_ONCE', 97)
    pieces = make_map(*walks, nodes=20)
    for name in graph_planner.ARRAYS:
        np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name), name)
    assert len(whole.costs) > 20 and whole.radius == pieces.radius
