"""Test maze figures: geometry against OGBench's, and metrics in titles against agents of known quality."""

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from figures import maze_figures
from figures.maze_figures import (
    AgentOutputs,
    Maze,
    Probe,
    draw_latents,
    draw_paths,
    draw_plan,
    draw_proposals,
    draw_values,
)
from offline_agent import OfflineAgent
from ogbench_utils import make_env
from planning.graph_planner import GraphPlanner, JumpModel, StateGraph
from rollouts import Episode
from support.figures import FAILURE, GOOD, TASK_COLORS
from trajectories import TrajectoryDataset

ANT = 'antmaze-medium-navigate-v0'


@pytest.fixture(scope='module')
def env():
    return make_env(ANT)


@pytest.fixture(scope='module')
def maze(env):
    return Maze(env)


@pytest.fixture(scope='module')
def observations(maze):
    """Return random states of 29 dimensions all over the maze, its walls included."""
    rng = np.random.default_rng(0)
    low, high = np.array(maze.extent[::2]), np.array(maze.extent[1::2])
    states = rng.standard_normal((20_000, 29)).astype(np.float32)
    states[:, :2] = rng.uniform(low, high, (20_000, 2))
    return states


@pytest.fixture(scope='module')
def probe(maze, observations):
    return Probe(maze, observations)


@pytest.fixture
def figure(monkeypatch):
    """Return a function that returns the last figure passed to `save`."""
    saved = []
    monkeypatch.setattr(maze_figures, 'save', lambda figure, path: saved.append(figure))
    return lambda: saved[-1]


def cell_centers(maze, i, j):
    """Return xy (n, 2) of fine cells in rows i and columns j."""
    return maze.low + (np.stack([j, i], 1) + 0.5) * maze.unit / maze_figures.CELL_SPLIT


def optimal_outputs(probe):
    """Return the outputs of an agent whose values are walking distances and whose proposals decrease them."""
    maze = probe.maze
    distances = np.stack([d[maze.fine_cell(probe.xy)] for d in maze.distances])

    # the best position within one maze cell
    i, j = np.nonzero(~maze.fine_walls)
    positions = cell_centers(maze, i, j)
    near = np.linalg.norm(probe.xy[:, None] - positions, axis=-1) <= maze.unit
    proposed = []
    for distance in maze.distances:
        best = np.where(near, distance[i, j], np.inf).argmin(1)
        proposed.append(positions[best])

    values = maze_figures.value_of(5 * distances, 0.05, 0.99)
    return AgentOutputs(probe.observations, probe.xy, values, np.stack(proposed))


def crosses(figure):
    """Return the number of positions that a figure of five tasks marks by a cross."""
    lines = [line for axis in figure.axes[:5] for line in axis.lines if line.get_marker() == 'x']
    return sum(len(line.get_xdata()) for line in lines)


def percentages(figure):
    return [int(title.split(': ')[1].split('%')[0]) for title in titles(figure)]


def arrow_colors(axis):
    return [to_hex(color) for color in axis.collections[0].get_facecolor()]


def titles(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def test_maze_geometry_matches_ogbench(env, maze):
    u = env.unwrapped
    for k, (start, goal) in enumerate(zip(maze.starts, maze.goals, strict=True)):
        for xy in (start, goal, start + 1.9, goal - 1.9):
            assert tuple(int(i) for i in maze.fine_cell(xy, 1)) == u.xy_to_ij(xy)
        assert np.linalg.norm(maze.goal_observations[k][:2] - goal) <= 2 ** 0.5
        cells = u.get_oracle_subgoal(start, goal)[1][u.xy_to_ij(start)]  # maze cells from start to goal
        walk = maze.distances[k][maze.fine_cell(start)]
        assert 0.6 * cells * maze.unit <= walk <= cells * maze.unit, 'only diagonal steps shorten a path'
        assert maze.distances[k][maze.fine_cell(goal)] == 0
        assert np.isinf(maze.distances[k][maze.fine_walls]).all()
        assert np.isfinite(maze.distances[k][~maze.fine_walls]).all()


def test_maze_keeps_numpy_generator_state(env):
    np.random.seed(3)
    expected = np.random.random(4)
    np.random.seed(3)
    Maze(env)
    np.testing.assert_array_equal(np.random.random(4), expected)


def test_probe_spreads_rows_of_the_data_over_free_cells(maze, probe, observations):
    cells, counts = np.unique(np.stack(maze.fine_cell(probe.xy)), axis=1, return_counts=True)
    assert not maze.fine_walls[tuple(cells)].any()
    assert counts.max() == 6 and len(counts) > 0.95 * (~maze.fine_walls).sum()
    rows = {row.tobytes() for row in observations}
    assert all(row.tobytes() in rows for row in probe.observations)


def test_probe_decodes_an_embedding_to_the_position_of_its_neighbours(probe):
    embeddings = torch.from_numpy(probe.xy * 3 + 1)  # V's embedding is the position
    target = np.array([[0.5, 0.5], [19.0, 20.0]], np.float32)
    decoded = probe.decode(embeddings, torch.from_numpy(target * 3 + 1))
    assert np.abs(decoded - target).max() < 0.6


def test_probe_evaluates_the_target_networks(maze, probe, make_config):
    torch.manual_seed(0)
    agent = OfflineAgent(29, make_config())
    outputs = probe.evaluate(agent)
    n = len(probe.xy)
    assert outputs.values.shape == (5, n) and outputs.proposed_xy.shape == (5, n, 2)

    state = torch.from_numpy(probe.observations[7])
    goal = torch.from_numpy(maze.goal_observations[2])
    with torch.no_grad():
        z, z_goal = (agent.targets['encoder'].encode_features(tensor) for tensor in (state, goal))
        value = agent.targets['value'](z, z_goal).mean().item()
    assert value == pytest.approx(outputs.values[2, 7], abs=1e-4)


def test_steps_of_inverts_value_of():
    steps = np.array([0.0, 10.0, 200.0])
    values = maze_figures.value_of(steps, 0.05, 0.99)
    assert values[1] == pytest.approx(-0.05 * sum(0.99 ** i for i in range(10)))
    np.testing.assert_allclose(maze_figures.steps_of(values, 0.05, 0.99), steps, atol=1e-6)
    too_low = maze_figures.steps_of(-7.0, 0.05, 0.99)
    assert too_low == pytest.approx(1000), 'a value below all possible ones is clipped'


def test_local_maxima_have_no_better_neighbour():
    grid = np.array([[1, 2, np.nan], [0, 1, 5]], float)
    expected = [[False, True, False], [False, False, True]]
    np.testing.assert_array_equal(maze_figures.local_maxima(grid), expected)


def test_draw_values_reports_rank_correlation_and_local_maxima(probe, figure):
    outputs = optimal_outputs(probe)
    draw_values(probe, outputs, 'x.png', 'title')
    assert titles(figure()) == [f'task {k}: Spearman 1.00' for k in range(1, 6)]
    assert crosses(figure()) == 0

    outputs.values = np.where(probe.xy[:, 0] < 2, 0, outputs.values)  # a plateau away from the goals
    draw_values(probe, outputs, 'x.png', 'title')
    assert crosses(figure()) >= 5


def test_draw_proposals_separates_decreasing_from_increasing_distances(probe, figure):
    outputs = optimal_outputs(probe)
    draw_proposals(probe, outputs, 'x.png', 'title')
    assert min(percentages(figure())) > 90
    colors = arrow_colors(figure().axes[0])
    assert colors.count(GOOD.lower()) > 0.9 * len(colors)

    outputs.proposed_xy = 2 * probe.xy - outputs.proposed_xy  # the opposite direction
    draw_proposals(probe, outputs, 'x.png', 'title')
    assert max(percentages(figure())) < 50
    assert FAILURE.lower() in arrow_colors(figure().axes[0])


def test_draw_latents_reports_the_distance_of_nearest_neighbours(probe, figure):
    draw_latents(probe, optimal_outputs(probe), 'x.png', 'title')
    _, z, e = titles(figure())
    z, e = (float(title.split('1-NN ')[1].split()[0]) for title in (z, e))
    assert e < 0.1 < z, 'an embedding that is the position, and one that is mostly noise'


def test_draw_paths_marks_failed_episodes(maze, figure):
    rng = np.random.default_rng(0)
    episodes = []
    for task in range(1, 6):
        for solved in (True, task < 3):
            observations = rng.standard_normal((10, 29)).astype(np.float32)
            goal = maze.goal_observations[task - 1]
            episodes.append(Episode(0, task, 0, goal, observations, np.zeros((9, 8)), success=float(solved)))

    draw_paths(maze, episodes, 'x.png', 'title')
    assert titles(figure()) == [f'task {k}: {2 if k < 3 else 1} of 2 solved' for k in range(1, 6)]
    for k, axis in enumerate(figure().axes[:5], 1):
        ends = [line for line in axis.lines if line.get_marker() == 'x']
        colors = [line.get_color() for line in axis.lines if len(line.get_xdata()) == 10]
        assert len(ends) == (k >= 3)
        assert colors.count(TASK_COLORS[k - 1]) == (2 if k < 3 else 1)
        final_position = tuple(episodes[2 * k - 1].observations[-1, :2])
        for line in ends:
            assert (line.get_xdata()[0], line.get_ydata()[0]) == final_position


def test_draw_plan_leads_from_start_to_goal_through_free_cells(maze, figure):
    """The data are random walks of short steps over the whole maze that enter no wall."""
    rng = np.random.default_rng(0)
    free = np.argwhere(~maze.fine_walls)
    free_cells = {tuple(cell) for cell in free}
    walks = []
    for cell in free[rng.permutation(len(free))]:
        cells = [tuple(cell)]
        while len(cells) < 40:
            step = ((0, 1), (0, -1), (1, 0), (-1, 0))[rng.integers(4)]
            new = cells[-1][0] + step[0], cells[-1][1] + step[1]
            cells.append(new if new in free_cells else cells[-1])
        i, j = np.array(cells).T
        states = np.zeros((len(cells), 29), np.float32)
        states[:, :2] = cell_centers(maze, i, j)
        walks.append(states)
    ends = np.cumsum([len(walk) for walk in walks]) - 1
    data = TrajectoryDataset(np.concatenate(walks), np.append(0, ends[:-1] + 1), ends)
    position_scale = np.eye(29)[:2].sum(0)
    graph = StateGraph.from_data(data, np.zeros(29), position_scale, hop=4, nodes=400)

    draw_plan(maze, GraphPlanner(graph, lambda states: states), 'x.png', 'title')
    assert [title.split()[-1] for title in titles(figure())[:5]] == ['hops'] * 5
    for task, axis in enumerate(figure().axes[:5]):
        way = next(line for line in axis.lines if line.get_color() == maze_figures.PLAN_COLOR).get_xydata()
        assert np.linalg.norm(way[0] - maze.starts[task]) < maze.unit
        assert np.linalg.norm(way[-1] - maze.goals[task]) < maze.unit
        assert not maze.fine_walls[maze.fine_cell(way)].any()

    def lines(axis):
        return [len(drawn.get_segments()) for drawn in axis.collections if hasattr(drawn, 'get_segments')]

    assert lines(figure().axes[0]) == [len(graph.sources), 0]
    ends = np.array([20, 21], np.int32)
    one_source = np.zeros(2, np.int32)
    probs = np.array([0.25, 0.75], np.float32)
    jumps = JumpModel(np.array([3, 4], np.int32), one_source, one_source, ends, probs)
    with_jumps = GraphPlanner(dataclasses.replace(graph, jumps=jumps), lambda states: states)
    draw_plan(maze, with_jumps, 'x.png', 'title')
    assert lines(figure().axes[0]) == [len(graph.sources), 2]
    jumps = figure().axes[0].collections[1].get_segments()
    xy = maze.positions(graph.states)
    for jump, end in zip(jumps, ends, strict=True):
        assert np.allclose(jump, [xy[[3, 4]].mean(0), xy[end]])
