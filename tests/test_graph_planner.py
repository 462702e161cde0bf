"""StateGraph and GraphPlanner: nodes, edges, costs and paths, on mazes small enough to know the answer."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

from planning import graph_planner
from planning.graph_planner import (
    AT_GOAL,
    NO_PATH,
    GraphPlanner,
    JumpModel,
    NodePaths,
    StateGraph,
    active_dims,
    cluster,
    estimate_jumps,
    find_edges,
    find_jump_sources,
    find_jumps,
)
from trajectories import TrajectoryDataset

HOP = 4


def walk(*corners, speed=0.25):
    """Return states (T, 2) of a walk along straight lines between corners."""
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


def identity(states):
    return states


def make_planner(*trajectories, hop=HOP, **options):
    """Return a GraphPlanner whose goal features are the raw states."""
    graph = StateGraph.from_data(dataset(*trajectories), np.zeros(2), np.ones(2), hop=hop, **options)
    return GraphPlanner(graph, identity)


def make_graph(centers, edges, costs, hop, **options):
    """Return a StateGraph of nodes at `centers` (K, 2), edges given as pairs (E, 2), and no near pairs."""
    centers = np.asarray(centers, np.float32)
    sources, targets = np.array(edges, np.int32).T
    none = np.zeros(0, np.int32)
    return StateGraph(
        mean=np.zeros(2, np.float32),
        scale=np.eye(2, dtype=np.float32),
        centers=centers,
        states=centers,
        radius=1.0,
        sources=sources,
        targets=targets,
        costs=np.asarray(costs, np.float32),
        near_sources=none,
        near_targets=none,
        hop=hop,
        **options,
    )


def around_the_wall():
    """Return walks up one corridor, over, and down the next: a wall separates start and end."""
    return [walk((0, 0), (0, 10), (1, 10), (1, 0)) for _ in range(3)]


def follow(planner, start, goal, max_nodes=100):
    """Return the states of the nodes that an agent would head for, in order, until it is at the goal."""
    graph = planner.graph
    route = planner.routes(np.array([goal], np.float32))[0]
    node = planner.locate(np.array([start], np.float32))[0]
    states = [graph.states[node]]
    for _ in range(max_nodes):
        if route[node] == AT_GOAL:
            return np.array(states)
        assert route[node] >= 0, 'the route breaks off'
        node = route[node]
        states.append(graph.states[node])
    raise AssertionError('the route does not reach the goal')


# ------------------------------------------------------------------------------------------------ paths
def test_graph_planner_goes_around_a_wall():
    planner = make_planner(*around_the_wall(), nodes=40)
    way = follow(planner, (0, 0), (1, 0))
    assert way[:, 1].max() > 9  # to the end of the wall and back, though the goal is one unit away
    sideways = np.abs(np.diff(way[:, 0])) > 0.2
    assert way[1:][sideways][:, 1].min() > 8.5  # through the opening only


def test_graph_planner_has_no_path_against_the_direction_of_the_data():
    planner = make_planner(*around_the_wall(), nodes=40)
    route = planner.routes(np.array([[0, 0]], np.float32))[0]
    node = planner.locate(np.array([[1, 0]], np.float32))[0]
    assert route[node] == NO_PATH  # no trajectory leads from the end to the start


def test_distances_approximate_the_steps_of_the_data():
    planner = make_planner(*around_the_wall(), nodes=80)
    start, end = planner.locate(np.array([[0, 0], [1, 0]], np.float32))
    steps = len(walk((0, 0), (0, 10), (1, 10), (1, 0))) - 1
    assert steps - 2 * HOP <= planner.distances(end)[start] <= 1.3 * steps


def test_path_matches_the_route():
    planner = make_planner(*around_the_wall(), nodes=40)
    start, goal, far = planner.locate(np.array([[0, 0], [1, 0], [90, 0]], np.float32))
    path = planner.path(start, goal)
    way = follow(planner, (0, 0), (1, 0))
    assert path[0] == start
    assert path[-1] == goal
    np.testing.assert_array_equal(planner.graph.states[path[:len(way)]], way)
    assert planner.path(goal, start) == []
    assert planner.path(start, far) == planner.path(far, goal) == []


def test_route_ends_at_the_goal_within_a_hop():
    """At constant speed every edge is as long as a hop: edges alone would first lead away from the goal."""
    line = np.stack([np.arange(40.0), np.zeros(40)], 1).astype(np.float32)
    planner = make_planner(line, line, line[::-1], line[::-1], nodes=40, hop=8)
    nodes = planner.locate(line)
    route = planner.route(nodes[22])
    assert (route[nodes[[20, 18, 16, 14, 22, 24, 26]]] == AT_GOAL).all()
    far = planner.graph.states[route[nodes[5]], 0]
    assert far == 13
    assert (planner.distances(nodes[22])[nodes[[22, 20, 6]]] == [0, 8, 16]).all()
    assert route[nodes[11]] != AT_GOAL and len(planner.path(nodes[6], nodes[22])) == 3


def test_a_close_goal_is_a_subgoal_although_the_path_leads_away():
    """Robots only drive around a square, 0 to 3, so that the path from 1 to 0 takes three hops."""
    ring = make_graph([(0, 0), (1, 0), (1, 1), (0, 1)], [(0, 1), (1, 2), (2, 3), (3, 0)], [HOP] * 4, HOP)
    ring = dataclasses.replace(ring, radius=0.4)
    assert GraphPlanner(ring, identity).route(0)[:4].tolist() == [AT_GOAL, 2, 3, 0]
    assert GraphPlanner(ring, identity, reach=1.0).route(0)[:4].tolist() == [AT_GOAL, AT_GOAL, 3, AT_GOAL]

    # it is not one across a wall, around which the path is long
    planner = GraphPlanner(make_planner(*around_the_wall()).graph, identity, reach=2.0)
    start, goal = planner.locate(np.array([[0, 2], [1, 2]], np.float32))
    assert planner.route(goal)[start] >= 0


def test_a_robot_that_stops_leaves_a_node_like_its_neighbours():
    """Robots drive right along y = 0, up, and left along y = 1: from node 1 the goal 5 is five hops ahead."""
    centers = [(0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (0, 1)]
    track = make_graph(centers, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)], [HOP] * 5, HOP)
    assert GraphPlanner(track, identity).route(5)[:6].tolist() == [1, 2, 3, 4, 5, AT_GOAL]

    # node 4 is a neighbour of 1, 5 one of 0, but none is across a distance of two radii
    near = dataclasses.replace(track, radius=0.51)
    assert GraphPlanner(near, identity, reach=0.1).route(5)[:6].tolist() == [AT_GOAL, 5, 4, 5, AT_GOAL, AT_GOAL]
    far = dataclasses.replace(track, radius=0.4)
    assert GraphPlanner(far, identity, reach=0.1).route(5)[:6].tolist() == [1, 2, 3, 4, 5, AT_GOAL]


def test_nodes_on_two_sides_of_a_jump_are_not_near():
    line = np.stack([np.r_[np.arange(20.0), np.arange(500, 520.0)], np.zeros(40)], 1).astype(np.float32)
    still = np.stack([np.arange(300.0) - 900, np.zeros(300)], 1).astype(np.float32)
    planner = make_planner(line, line, line, still, nodes=340, hop=8)
    before, after = planner.locate(line[[19, 20]])
    assert planner.route(after)[before] >= 0  # by the edge over the jump, not AT_GOAL


def test_states_and_goals_off_the_map_have_no_path():
    planner = make_planner(*around_the_wall(), nodes=40)
    far = np.array([[50.0, 50.0]], np.float32)
    assert planner.locate(far)[0] == -1
    assert (planner.routes(far) == NO_PATH).all()
    route = planner.routes(np.array([[1, 0]], np.float32))[0]
    assert route[planner.locate(far)[0]] == NO_PATH  # the goal is on the map, the state is not
    assert route[planner.locate(np.array([[0, 0]], np.float32))[0]] >= 0


def test_disconnected_parts_have_no_path_between_them():
    here, there = walk((0, 0), (0, 10), (0, 0)), walk((50, 0), (50, 10), (50, 0))
    planner = make_planner(here, here, there, there, nodes=20)
    route = planner.routes(np.array([[0, 5]], np.float32))[0]
    islands = planner.graph.centers[:, 0] > 25
    assert islands.any() and not islands.all()
    assert (route[:-1][islands] == NO_PATH).all()
    assert (route[:-1][~islands] != NO_PATH).all()


# ------------------------------------------------------------------------------------------------ edges
def test_edges_crossed_once_cost_more_but_are_used():
    planner = make_planner(walk((0, 0), (0, 10), (1, 10), (1, 0)), nodes=30)
    assert follow(planner, (0, 0), (1, 0))[:, 1].max() > 9
    assert (planner.graph.costs == graph_planner.RARE_EDGE_PENALTY * HOP).all()


def test_reliable_path_is_preferred_to_a_shorter_rare_one():
    usual = [walk((0, 0), (0, 4), (6, 4), (6, 0)) for _ in range(3)]
    planner = make_planner(*usual, walk((0, 0), (6, 0)), nodes=60)
    assert follow(planner, (0, 0), (6, 0))[:, 1].max() > 3
    planner = make_planner(*usual, *[walk((0, 0), (6, 0)) for _ in range(2)], nodes=60)
    assert follow(planner, (0, 0), (6, 0))[:, 1].max() < 1


def test_dwelling_in_two_nodes_is_one_crossing():
    """Ten states in u followed by ten in v are one crossing, not ten."""
    labels = np.repeat([0, 1], 10)
    paths = NodePaths(labels, end_of=np.full(20, 19), jumps=np.zeros(20, bool))
    _, _, costs = find_edges(paths, hop=2)
    np.testing.assert_array_equal(costs, [graph_planner.RARE_EDGE_PENALTY * 2])


def test_no_edge_connects_consecutive_trajectories():
    first, second = walk((0, 0), (0, 5)), walk((10, 0), (10, 5))
    graph = make_planner(first, second, first, second, nodes=20).graph
    apart = graph.states[graph.sources][:, 0] != graph.states[graph.targets][:, 0]
    assert len(graph.costs) and not apart.any()


# ------------------------------------------------------------------------------------------------ jumps
def test_jump_model_pools_the_landings_of_a_jump_source():
    """One teleporter lands at one node in three of four jumps and at another in one, from whatever node it is
    entered. A second teleporter far away has its own landings."""
    usual = [0, 1, 2, 5]
    from_elsewhere = [3, 4, 2, 7]
    other = [9, 10, 11, 5]
    trips = [usual] * 3 + [from_elsewhere] + [other] * 2
    places = np.array([0.0, 1.0, 2.0, 4.0, 3.0, 100.0, 0, 200.0, 0, 60.0, 61.0, 62.0])
    labels = np.concatenate(trips)
    ends = np.repeat(np.arange(3, 4 * len(trips), 4), 4)
    walk_far = np.arange(0.0, 1000.0)  # makes jumps rare
    positions = np.concatenate([places[labels], walk_far])
    step_lengths = np.append(np.abs(np.diff(positions)), 0.0)
    labels = np.concatenate([labels, np.full(1000, 8)])
    ends = np.concatenate([ends, np.full(1000, len(labels) - 1)])

    jumps = find_jumps(lambda rows: positions[rows, None], step_lengths, ends)
    assert jumps.sum() == 6
    source_ids = find_jump_sources(positions[jumps][:, None], step_lengths[jumps])
    assert source_ids.tolist() == [0, 0, 0, 0, 1, 1]

    paths = NodePaths(labels, ends, jumps)
    model = estimate_jumps(paths, source_ids, hop=2)
    assert set(zip(model.source_nodes.tolist(), model.source_ids.tolist(), strict=True)) \
        == {(1, 0), (2, 0), (4, 0), (10, 1), (11, 1)}  # within a hop of the jump
    landings = zip(model.landing_source_ids.tolist(), model.landing_nodes.tolist(), strict=True)
    probs = dict(zip(landings, model.landing_probs.tolist(), strict=True))
    assert probs == {(0, 5): 0.75, (0, 7): 0.25, (1, 5): 1.0}

    sources, targets, _ = find_edges(paths, hop=2)
    assert not np.isin(targets[sources != 8], [5, 7]).any()  # only jumps lead there


def test_find_jumps_excludes_falls_longer_than_a_jump():
    """Two positions and a tilt of larger scale: a fall changes the tilt by four times the 99th percentile."""
    rng = np.random.default_rng(0)
    observations = np.zeros((2000, 3), np.float32)
    observations[:, 0] = np.cumsum(rng.uniform(0.05, 0.1, 2000))
    observations[:, 2] = np.cumsum(rng.uniform(-0.05, 0.05, 2000))
    observations[700:, 2] += 0.2
    observations[1200:, 1] += 1.5
    step_lengths = np.append(np.linalg.norm(np.diff(observations * [1, 1, 20], axis=0), axis=1), 0)
    assert step_lengths[699] > step_lengths[1199]

    observations[:, 1] += np.cumsum(rng.uniform(0, 0.1, 2000))
    jumps = find_jumps(lambda rows: observations[rows], step_lengths, np.full(2000, 1999))
    assert np.flatnonzero(jumps).tolist() == [1199]


def jump_planner(detour, probs, way_out=True):
    """Return a planner on a way of `detour` edges from node 0 to node 1, with a jump from 0 to 1 or 2.

    The other nodes are on the way. From 2 an edge leads back to 0 if there is a way out.
    """
    way = [0, *range(3, 2 + detour), 1]
    edges = list(zip(way[:-1], way[1:], strict=True)) + ([(2, 0)] if way_out else [])
    centers = np.stack([10.0 * np.arange(2 + detour), np.zeros(2 + detour)], 1)
    jumps = JumpModel(
        source_nodes=np.zeros(1, np.int32),
        source_ids=np.zeros(1, np.int32),
        landing_source_ids=np.zeros(2, np.int32),
        landing_nodes=np.array([1, 2], np.int32),
        landing_probs=np.array(probs, np.float32),
    )
    graph = make_graph(centers, edges, np.full(len(edges), 10), hop=10, jumps=jumps)
    return GraphPlanner(graph, identity)


def test_jump_is_taken_where_it_saves_time_in_expectation():
    """A jump costs a hop, and a failed one another hop for the way back: 30 steps at a chance of 0.5."""
    planner = jump_planner(detour=5, probs=[0.5, 0.5])
    assert planner.route(1)[0] == 1
    assert planner.distances(1)[0] == pytest.approx(30 + planner.graph.hop, abs=0.1)
    assert jump_planner(detour=2, probs=[0.5, 0.5]).route(1)[0] == 3


def test_jump_with_a_dead_end_is_avoided():
    planner = jump_planner(detour=50, probs=[0.7, 0.3], way_out=False)
    assert planner.route(1)[0] == 3
    assert planner.route(1)[2] == NO_PATH
    certain = jump_planner(detour=50, probs=[1.0, 0.0], way_out=False)
    assert certain.route(1)[0] == 1


def test_path_ends_where_the_likeliest_landing_leads_back():
    """Node 0 heads for landing 2, from which it comes back for another attempt, until it lands at 1."""
    planner = jump_planner(detour=50, probs=[0.3, 0.7])
    assert planner.route(1)[0] == 2 and planner.route(1)[2] == 0
    assert planner.path(0, 1) == [0, 1]
    assert planner.path(2, 1) == [2, 0, 1]


def test_paths_of_random_graphs_end_and_are_paths_of_acting(monkeypatch):
    """A path takes only transitions that exist, and those that an episode heads for as far as they approach
    the goal."""
    monkeypatch.setattr(graph_planner, 'PLANNING_DISCOUNT', 0.99)  # value iteration converges sooner
    num_paths = num_retries = 0
    for seed in range(40):
        planner = random_planner(np.random.default_rng(seed))
        planner._paths_to = functools.cache(planner._paths_to)
        graph, jumps = planner.graph, planner.graph.jumps
        steps = set(zip(graph.sources, graph.targets, strict=True))
        near = set(zip(graph.near_sources, graph.near_targets, strict=True))
        lands = {(a, b) for a, i in zip(jumps.source_nodes, jumps.source_ids, strict=True)
                 for b in jumps.landing_nodes[(jumps.landing_source_ids == i) & (jumps.landing_probs > 0)]}
        for goal in range(len(graph)):
            distances, next_nodes = planner._paths_to(goal)
            for start in range(len(graph)):
                path = planner.path(start, goal)
                assert bool(path) == np.isfinite(distances[start])
                assert len(set(path)) == len(path)
                for a, b in zip(path, path[1:], strict=False):
                    assert (a, b) in steps | lands or (a, b) in near and b == goal
                    assert b == next_nodes[a] or distances[next_nodes[a]] >= distances[a]
                    num_retries += b != next_nodes[a]
                num_paths += len(path) > 2
    assert num_paths > 500 and num_retries > 20, (num_paths, num_retries)


def random_planner(rng):
    """Return a planner on a random graph with two jump sources."""
    count = rng.integers(4, 12)
    edges = np.unique(rng.integers(count, size=(count + 3, 2)), axis=0)
    near = edges[rng.random(len(edges)) < 0.3].astype(np.int32)
    pairs = np.unique(np.stack([rng.integers(count, size=5), rng.integers(2, size=5)], 1), axis=0)
    probs = rng.dirichlet(np.full(3, 0.3), 2).astype(np.float32)
    jumps = JumpModel(
        source_nodes=pairs[:, 0].astype(np.int32),
        source_ids=pairs[:, 1].astype(np.int32),
        landing_source_ids=np.repeat([0, 1], 3).astype(np.int32),
        landing_nodes=np.concatenate([rng.permutation(count)[:3] for _ in range(2)]).astype(np.int32),
        landing_probs=probs.ravel(),
    )
    costs = rng.choice([10, 30], len(edges))
    graph = make_graph(rng.random((count, 2)), edges, costs, hop=10, jumps=jumps)
    graph = dataclasses.replace(graph, near_sources=near[:, 0], near_targets=near[:, 1])
    return GraphPlanner(graph, identity)


def test_node_of_two_jump_sources_heads_for_the_better_one():
    """Node 0 is near two jump sources: one leads to the goal 3, the other to 1, from which the way is long."""
    centers = 10.0 * np.stack([np.arange(4), np.zeros(4)], 1)
    for better in (0, 1):
        jumps = JumpModel(
            source_nodes=np.zeros(2, np.int32),
            source_ids=np.array([0, 1], np.int32),
            landing_source_ids=np.array([0, 1], np.int32),
            landing_nodes=np.array([3, 1] if better == 0 else [1, 3], np.int32),
            landing_probs=np.ones(2, np.float32),
        )
        graph = make_graph(centers, [(1, 2), (2, 3)], [10, 10], hop=10, jumps=jumps)
        planner = GraphPlanner(graph, identity)
        assert planner.route(3)[0] == 3 and planner.path(0, 3) == [0, 3]


def test_value_iteration_finds_dijkstras_paths_without_jumps():
    planner = make_planner(*around_the_wall(), nodes=40)
    goal = planner.locate(np.array([[1, 0]], np.float32))[0]
    near = np.flatnonzero(planner.route(goal) == AT_GOAL)
    to_itself = JumpModel(
        source_nodes=near[:1],
        source_ids=np.zeros(1, int),
        landing_source_ids=np.zeros(1, int),
        landing_nodes=near[:1],
        landing_probs=np.ones(1),
    )
    with_jumps = GraphPlanner(dataclasses.replace(planner.graph, jumps=to_itself), identity)
    np.testing.assert_allclose(with_jumps.distances(goal), planner.distances(goal), atol=0.05)
    np.testing.assert_array_equal(with_jumps.route(goal) == AT_GOAL, planner.route(goal) == AT_GOAL)


# ------------------------------------------------------------------------------------------------ steps
def hysteresis_planner():
    """Return a planner on nodes at 0, 1, 5 and 9 on a line.

    The node at 5 has an edge from that at 0 only, so the path from 1 leads back. An edge leads from 5 to 9.
    """
    edges = [(0, 2), (1, 0), (2, 3)]
    return GraphPlanner(make_graph([[0, 0], [1, 0], [5, 0], [9, 0]], edges, np.full(3, 10), hop=10), identity)


def on_the_line(*positions):
    """Return raw states (n, 2) at these first coordinates."""
    return torch.tensor([[x, 0] for x in positions], dtype=torch.float32)


def walk_along(planner, positions, goal):
    """Return the first coordinates of the waypoints at these positions, a step each; None without a path."""
    state = planner.initial_state(1)
    waypoints = []
    for x in positions:
        subgoals, state = planner.step(on_the_line(x), on_the_line(goal), state)
        waypoints.append(subgoals.features[0, 0].item() if subgoals.found[0] else None)
    return waypoints


def test_graph_planner_keeps_its_target_between_nodes():
    assert walk_along(hysteresis_planner(), [1.0, 0.4, 0.6, 1.2, 5.0, 9.0], goal=9) == [0, 5, 5, 5, 9, 9]


def test_graph_planner_drops_its_target_off_the_map():
    assert walk_along(hysteresis_planner(), [0.0, 90.0, 1.0], goal=9) == [5, None, 0]


def test_graph_planner_keeps_its_target_for_a_hop():
    """A wall may block the target, so it is dropped after a hop."""
    waypoints = walk_along(hysteresis_planner(), [0.0] + 12 * [1.0] + [0.0], goal=9)
    assert waypoints == 11 * [5] + 2 * [0] + [5]


def test_graph_planner_episodes_are_independent():
    """The targets and resets of an episode do not affect the others of the batch."""
    planner = hysteresis_planner()
    goals = on_the_line(9, 9, 9, 0)
    subgoals, state = planner.step(on_the_line(0, 0, 1, 1), goals, planner.initial_state(4))
    assert subgoals.features[:, 0].tolist() == [5, 5, 0, 0]

    state = planner.reset(state, np.array([True, False, False, False]))
    subgoals, state = planner.step(on_the_line(1, 1, 0, 1), goals, state)
    assert subgoals.features[:, 0].tolist() == [0, 5, 5, 0]
    assert state.committed.tolist() == [0, 1, 0, 0]


def test_graph_planner_resets_the_target_of_a_new_goal():
    """Other rows keep theirs, and changes of the caller's tensor in place count as new goals."""
    planner = hysteresis_planner()
    goals = on_the_line(9, 9)
    _, state = planner.step(on_the_line(0, 0), goals, planner.initial_state(2))
    goals[1] += 0.1
    subgoals, state = planner.step(on_the_line(1, 1), goals, state)
    assert subgoals.features[:, 0].tolist() == [5, 0]

    goals[0, 0] = 0
    subgoals, _ = planner.step(on_the_line(1, 1), goals, state)
    assert subgoals.features[:, 0].tolist() == [0, 0]
    assert subgoals.found.all()


def test_graph_planner_plans_for_a_goal_of_zeros():
    """The goals of the initial state are NaN, which no goal equals."""
    assert walk_along(hysteresis_planner(), [0.0, 1.0], goal=0) == [0, 0]


def test_graph_planner_step_returns_goal_features_and_no_retreat():
    planner = GraphPlanner(hysteresis_planner().graph, lambda states: 10 * states + 1)
    subgoals, _ = planner.step(on_the_line(0, 9, 90), on_the_line(9, 9.25, 9), planner.initial_state(3))
    assert subgoals.features.dtype == torch.float32
    assert subgoals.features[:2].tolist() == [[51, 1], [93.5, 1]]  # of the next node, and of the goal itself
    assert subgoals.found.tolist() == [True, True, False]
    assert subgoals.retreat.shape == (3, 2) and subgoals.retreat.isnan().all()


# ------------------------------------------------------------------------------------------------ nodes
def test_state_graph_has_no_more_nodes_than_states():
    data = dataset(np.array([[0, 0], [1, 0], [2, 0]], np.float32))
    planner = GraphPlanner(StateGraph.from_data(data, np.zeros(2), np.ones(2), hop=1, nodes=50), identity)
    assert len(planner.graph) == 3
    assert follow(planner, (0, 0), (2, 0))[-1][0] >= 1
    assert planner.locate(np.array([[0.1, 0], [9, 0]], np.float32)).tolist() == [
        planner.locate(data.observations[:1])[0], -1]  # a state need not coincide with a node


def test_state_graph_of_trajectories_shorter_than_a_hop_has_no_edges():
    pair = np.array([[0, 0], [1, 0]], np.float32)
    planner = make_planner(pair, pair + np.float32([5, 0]), hop=10)
    assert len(planner.graph.costs) == 0
    route = planner.routes(np.zeros((1, 2), np.float32))[0]
    assert (route != AT_GOAL).sum() == len(planner.graph)  # all but the node of the goal


def test_cluster_chooses_the_number_of_nodes_by_area():
    rng = np.random.default_rng(0)
    small = rng.uniform(0, 1, (4000, 2)).astype(np.float32)
    counts = [len(cluster(small * side, 0, 0.02, np.random.default_rng(0))) for side in (1, 1.5)]
    assert 1.7 < counts[1] / counts[0] < 2.9  # 2.25 times the area
    centers = cluster(small, 0, 0.02, np.random.default_rng(0))
    distance = graph_planner.KDTree(centers).query(small)[0].mean()
    assert 0.8 * 0.02 < distance < 1.2 * 0.02


def test_states_of_nodes_are_states_of_the_data():
    trajectories = around_the_wall()
    planner = make_planner(*trajectories, nodes=25)
    data = {tuple(row) for row in np.concatenate(trajectories).tolist()}
    assert all(tuple(row) in data for row in planner.graph.states.tolist())
    np.testing.assert_array_equal(planner.locate(planner.graph.states), np.arange(len(planner.graph)))


def test_dimensions_of_scale_0_do_not_separate_nodes():
    rng = np.random.default_rng(0)
    way = walk((0, 0), (10, 0))
    noise = [100 * rng.standard_normal(len(way)) for _ in range(4)]
    walks = [np.stack([way[:, 0], second], 1).astype(np.float32) for second in noise]
    graph = StateGraph.from_data(dataset(*walks), np.zeros(2), np.array([1.0, 0.0]), hop=HOP, nodes=20)
    planner = GraphPlanner(graph, identity)
    goal = np.array([[9, -500]], np.float32)
    route = planner.routes(goal)[0]
    assert route[planner.locate(np.array([[0, 777]], np.float32))[0]] >= 0


def test_active_dims_are_those_in_which_nodes_differ():
    centers = np.float32([[0, 0, 0, 5], [4, 0.01, 0.0005, 5]])
    assert active_dims(centers).tolist() == [True, True, False, False]
    assert active_dims(centers[:1]).all()  # a single node


def test_a_node_without_states_is_dropped(monkeypatch):
    # a center that is far from all states; the next node must not lend it a state
    def centers_with_an_empty_one(*arguments):
        return np.float32([[0, 0], [500, 500], [9, 0]])

    monkeypatch.setattr(graph_planner, 'choose_centers', centers_with_an_empty_one)
    graph = StateGraph.from_data(dataset(walk((0, 0), (10, 0))), np.zeros(2), np.ones(2), hop=HOP)
    assert graph.centers.tolist() == [[0, 0], [9, 0]]
    np.testing.assert_allclose(graph.states, graph.centers, atol=0.5)

    # the last one, for which there is no next node
    monkeypatch.setattr(graph_planner, 'choose_centers', lambda *_: np.float32([[0, 0], [9, 0], [500, 500]]))
    assert len(StateGraph.from_data(dataset(walk((0, 0), (10, 0))), np.zeros(2), np.ones(2), hop=HOP)) == 2


def test_nodes_of_a_rotated_state_are_those_of_the_state():
    data = dataset(*around_the_wall())
    graph = StateGraph.from_data(data, np.zeros(2), np.ones(2), hop=HOP)
    turn = np.float32([[0, 1], [-1, 0]])  # exact in floats, so that no tie is decided otherwise
    data.observations = data.observations @ turn
    turned = StateGraph.from_data(data, np.zeros(2), turn.T, hop=HOP)
    np.testing.assert_array_equal(turned.centers, graph.centers)
    np.testing.assert_array_equal(turned.sources, graph.sources)


def test_state_graph_uses_a_fraction_of_transition_steps_as_default_hop():
    data = dataset(*around_the_wall(), transition_steps=10)
    assert StateGraph.from_data(data, np.zeros(2), np.ones(2)).hop == 6


def test_state_graph_does_not_depend_on_the_size_of_chunks(monkeypatch, assert_same):
    """Chunks of 97 rows, which end within trajectories, give the graph of a single chunk."""
    rng = np.random.default_rng(0)
    walks = [np.cumsum(rng.normal(0, 0.2, (150, 2)), 0).astype(np.float32) for _ in range(4)]
    whole = make_planner(*walks, nodes=20).graph
    monkeypatch.setattr(graph_planner, 'CHUNK_ROWS', 97)
    chunks = make_planner(*walks, nodes=20).graph
    assert_same(whole.state_dict(), chunks.state_dict())
    assert len(whole.costs) > 20


# ------------------------------------------------------------------------------------- checkpoints and caches
def test_state_graph_is_reproducible_and_survives_a_file(tmp_path, assert_same):
    first, second = (make_planner(*around_the_wall(), nodes=40) for _ in range(2))
    assert_same(first.graph.state_dict(), second.graph.state_dict())
    torch.save(first.graph.state_dict(), tmp_path / 'map.pth')
    loaded = StateGraph.from_state_dict(torch.load(tmp_path / 'map.pth', weights_only=True))
    assert_same(first.graph.state_dict(), loaded.state_dict())
    assert str(loaded) == str(first.graph) and loaded.nbytes == first.graph.nbytes
    goals = np.array([[1, 0], [0, 5]], np.float32)
    np.testing.assert_array_equal(first.routes(goals), GraphPlanner(loaded, identity).routes(goals))


def test_jump_model_survives_a_checkpoint(assert_same):
    planner = jump_planner(detour=5, probs=[0.5, 0.5])
    saved = planner.graph.state_dict()
    loaded = StateGraph.from_state_dict(saved)
    assert_same(saved, loaded.state_dict())
    np.testing.assert_array_equal(GraphPlanner(loaded, identity).route(1), planner.route(1))


def test_graph_planner_caches_a_bounded_number_of_routes(monkeypatch):
    monkeypatch.setattr(graph_planner, 'CACHED_ROUTES', 3)
    planner = make_planner(*around_the_wall(), nodes=40)
    first = planner.route(0)
    for node in (1, 2):
        planner.route(node)
    assert planner.route(0) is first
    for node in (1, 2, 3):  # node 0 is the least recently used
        planner.route(node)
    assert planner.route(0) is not first
    np.testing.assert_array_equal(planner.route(0), first)


def test_the_banner_counts_teleporters():
    assert ', 1 jump source(s) such as teleporters, ' in str(jump_planner(detour=2, probs=[0.5, 0.5]).graph)
    assert 'jump' not in str(make_planner(walk((0, 0), (4, 0), (4, 4))).graph)
