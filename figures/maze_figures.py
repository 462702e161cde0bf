"""What an agent knows, drawn on its maze by matplotlib: no renderer, no display. They tell why a run fails.

    draw_values     V(z, z_g) over the free cells: does the value rise toward each goal, and where is it trapped?
    draw_proposals  where the state-only policy f_P(z, z_g) wants to go: does each arrow lead closer?
    draw_latents    the latents in two dimensions, coloured by place: does the encoder tell places apart?
    draw_paths      evaluation episodes: where do the failed ones end?
    draw_episode    policy proposals and goal-biased ones along one episode
    draw_plan       the map of the data (planning/planner.py), steps to each goal on it, and the way that it plans

Everything is measured at real observations of the data (`Probe`), so joint angles and speeds are plausible ones;
places without data stay empty. A latent is that of a single state, with `--memory` too.
"""

import dataclasses

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from observing.observation_models import FULL_STATE
from ogbench_utils import episode_seed, reset_env
from support.figures import FAILURE, GOOD, INK, TASK_COLORS, pyplot, save

SPLIT = 4  # fine cells per side of a maze cell; an ant is about one of them wide
WALL = '#c8ccd2'
FLOOR = '#ffffff'
EDGE = '#8a8f98'  # of the map of the data
JUMPED = '#7b3fb5'
PLAN = '#D55E00'
FAILED_PATH = '#444444'
ENDS = (('start', 'o', 'white'), ('goal', '*', '#F0E442'))  # in every legend: label, marker, colour
TEXT = 11  # points, in figures about six inches wide
SMALL = 10
NEIGHBOURS = 8  # embedded observations over which a decoded proposal is averaged


class Maze:
    """Walls, tasks and walking distances of an OGBench maze. Positions xy are in the environment's units."""

    def __init__(self, env, observation_model=FULL_STATE):
        maze = env.unwrapped
        self.walls = maze.maze_map == 1  # (rows, columns)
        self.unit = float(maze._maze_unit)
        self.low = np.array(maze.ij_to_xy((0, 0))) - self.unit / 2  # the outer corner of cell (0, 0)
        self.fine_walls = self.walls.repeat(SPLIT, 0).repeat(SPLIT, 1)

        start = 'init_xy'
        columns = [0, 1]  # of a raw state: where what has to reach the goal is
        if 'ball_init_xy' in maze.task_infos[0]:  # soccer: the ball, whose position and rotation end qpos
            start = 'ball_init_xy'
            columns = [maze.model.nq - 7, maze.model.nq - 6]
        self.columns = observation_model.columns(columns)
        self.starts = np.array([info[start] for info in maze.task_infos])
        self.goals = np.array([info['goal_xy'] for info in maze.task_infos])
        self.goal_observations = self._goal_observations(observation_model.wrap(env))
        self.distances = self._walking_distances()

    def _goal_observations(self, env):
        """(tasks, S). A reset seeds numpy's generator, but drawing must not change a training."""
        state = np.random.get_state()
        goals = []
        for task in range(1, len(self.goals) + 1):
            _, goal = reset_env(env, task, episode_seed(0, 6, task))
            goals.append(goal)
        np.random.set_state(state)
        return np.stack(goals)

    def _walking_distances(self):
        """(tasks, fine rows, fine columns): from each fine cell to each goal, inf in walls. Eight neighbours; a
        diagonal step needs both corners free. Teleporters are not taken."""
        shape = self.fine_walls.shape
        free = ~self.fine_walls
        number = np.arange(free.size).reshape(shape)
        step = self.unit / SPLIT

        sources = []
        targets = []
        lengths = []
        for di, dj in ((0, 1), (1, 0), (1, 1), (1, -1)):  # the other four are these the other way round
            rows = slice(0, shape[0] - di)
            columns = slice(max(0, -dj), shape[1] - max(0, dj))
            to_rows = slice(di, shape[0])
            to_columns = slice(max(0, dj), shape[1] - max(0, -dj))
            passable = (free[rows, columns] & free[to_rows, to_columns]
                        & free[to_rows, columns] & free[rows, to_columns])
            sources.append(number[rows, columns][passable])
            targets.append(number[to_rows, to_columns][passable])
            lengths.append(np.full(passable.sum(), step * np.hypot(di, dj)))

        edges = (np.concatenate(lengths), (np.concatenate(sources), np.concatenate(targets)))
        graph = csr_array(edges, shape=(free.size, free.size))
        goals = number[self.fine_cell(self.goals)]
        return dijkstra(graph, directed=False, indices=goals).reshape(-1, *shape)

    def places(self, observations):
        """States (..., S) -> xy (..., 2) of what has to reach the goal."""
        return observations[..., self.columns]

    @property
    def extent(self):
        """(left, right, bottom, top) in units of xy."""
        rows, columns = self.walls.shape
        return self.low[0], self.low[0] + columns * self.unit, self.low[1], self.low[1] + rows * self.unit

    def fine_cell(self, xy, split=SPLIT):
        """xy (n, 2) -> (row, column), int arrays, of cells of `unit` / `split`; clipped to the maze."""
        cell = np.floor((np.asarray(xy) - self.low) / (self.unit / split)).astype(int)
        rows, columns = np.array(self.walls.shape) * split
        return np.clip(cell[..., 1], 0, rows - 1), np.clip(cell[..., 0], 0, columns - 1)

    def average(self, xy, values, split=SPLIT):
        """Mean of `values` (n,) in each cell of `unit` / `split` -> (rows, columns), NaN where there is none."""
        shape = np.array(self.walls.shape) * split
        cell = np.ravel_multi_index(self.fine_cell(xy, split), shape)
        total = np.bincount(cell, values, minlength=shape.prod())
        count = np.bincount(cell, minlength=shape.prod())
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(shape)

    def draw(self, axis, task=None):
        """Walls, and the start (ring) and the goal (star) of a task, counted from 1."""
        from matplotlib.colors import ListedColormap

        axis.imshow(np.where(self.walls, 1.0, np.nan), extent=self.extent, origin='lower', zorder=1,
                    cmap=ListedColormap([WALL]), interpolation='nearest')

        left, right, bottom, top = self.extent
        margin = 0.7 * self.unit  # the inner part of the outer walls is enough
        axis.set_xlim(left + margin, right - margin)
        axis.set_ylim(bottom + margin, top - margin)
        axis.set(xticks=[], yticks=[], facecolor=FLOOR)
        axis.spines[:].set_visible(False)

        if task is not None:
            axis.plot(*self.starts[task - 1], 'o', ms=6, mfc='white', mec=INK, mew=1.4, zorder=6)
            axis.plot(*self.goals[task - 1], '*', ms=12, mfc='#F0E442', mec=INK, mew=0.9, zorder=6)


@dataclasses.dataclass
class Knowledge:
    """What an agent thinks of the n observations of a `Probe` and of the tasks' goals."""

    z: np.ndarray  # (n, D) latents
    embeddings: np.ndarray  # (n, E) V's embedding of them
    values: np.ndarray  # (tasks, n)
    proposed_xy: np.ndarray  # (tasks, n, 2) where f_P wants to go, decoded


class Probe:
    """Observations (n, S) spread evenly over the free fine cells: up to `per_cell` of the data for each."""

    def __init__(self, maze, observations, per_cell=6, seed=0):
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(observations))[:300_000]
        i, j = maze.fine_cell(maze.places(observations)[rows])
        free = ~maze.fine_walls[i, j]
        rows = rows[free]
        cell = (i * maze.fine_walls.shape[1] + j)[free]

        order = np.argsort(cell, kind='stable')
        cell = cell[order]
        begin_of_cell = np.searchsorted(cell, cell)
        rank_in_cell = np.arange(len(cell)) - begin_of_cell
        kept = rows[order][rank_in_cell < per_cell]

        self.maze = maze
        self.observations = np.ascontiguousarray(observations[kept])
        self.xy = maze.places(self.observations)

    @torch.no_grad()
    def look(self, agent):
        """-> the `Knowledge` of an `OfflineAgent` (of an online agent: its `offline`).

        A proposal has no position: only its distance to other latents in V's embedding means anything. It is
        decoded to the mean xy of the `NEIGHBOURS` observations of the probe whose embeddings are nearest.
        """
        z = self.encode(agent, self.observations)
        z_goal = self.encode(agent, self.maze.goal_observations)
        embeddings = self.embed(agent, z)

        values = []
        proposed_xy = []
        for goal in z_goal:
            goal = goal.expand_as(z)
            proposed = self.embed(agent, agent.nets['proposer'](z, goal))
            values.append(agent.targets['value'](z, goal).mean(0).cpu().numpy())
            proposed_xy.append(self.decode(embeddings, proposed))
        return Knowledge(z.cpu().numpy(), embeddings.cpu().numpy(), np.stack(values), np.stack(proposed_xy))

    @staticmethod
    def encode(agent, observations):
        return agent.targets['encoder'].encode_features(torch.as_tensor(observations, device=agent.device))

    @staticmethod
    def embed(agent, z):
        """z (n, D) -> (n, E), the members of V's embedding side by side."""
        return agent.targets['value'].embed(z).movedim(0, -2).flatten(-2)

    def decode(self, embeddings, queries):
        """queries (m, E) -> xy (m, 2), the mean over the nearest of the probe's `embeddings` (n, E)."""
        count = min(NEIGHBOURS, len(embeddings))
        nearest = torch.cdist(queries, embeddings).topk(count, largest=False).indices
        return self.xy[nearest.cpu().numpy()].mean(1)


def _panels(maze, title, count=6, columns=3):
    """-> (figure, axes (count,)): a grid of mazes in letters large enough to be read at half a column."""
    height, width = maze.walls.shape
    rows = -(-count // columns)

    # all in inches
    gap = 0.06
    direction = 0.3
    panel_title = 0.27
    panel_width = 2.0
    panel_height = panel_width * (height - 1.4) / (width - 1.4)
    figure_width = panel_width * columns + gap * (columns + 1)
    figure_height = rows * (panel_height + panel_title) + direction

    figure = pyplot().figure(figsize=(figure_width, figure_height))
    figure.text(0.5, 1 - 0.16 / figure_height, title, fontsize=TEXT, ha='center', va='center')

    axes = []
    for k in range(count):
        row, column = divmod(k, columns)
        left = gap + column * (panel_width + gap)
        bottom = figure_height - direction - (row + 1) * (panel_height + panel_title) + gap
        box = (left / figure_width, bottom / figure_height, panel_width / figure_width, panel_height / figure_height)
        axes.append(figure.add_axes(box))
    return figure, axes


def draw_knowledge(probe, agent, folder, title):
    """maze_values.png, maze_proposals.png and maze_latents.png of an `OfflineAgent` in `folder` -> their paths."""
    knowledge = probe.look(agent)
    values, proposals, latents = (folder / f'maze_{name}.png' for name in ('values', 'proposals', 'latents'))

    draw_values(probe, knowledge, values, f'Value, {title}', agent.config.reward_scale, agent.config.discount)
    draw_proposals(probe, knowledge, proposals, f'Proposals, {title}')
    draw_latents(probe, knowledge, latents, f'Latents, {title}')
    return [values, proposals, latents]


def draw_values(probe, knowledge, path, title, reward_scale=0.05, discount=0.99):
    """Heat maps of V(z, z_g), one per task, on one colour scale: equal colours are equal numbers of steps.

    In each title: the rank correlation of V with the walking distance (1: every place in the right order).
    Crosses: maze cells without a better neighbour, where whoever climbs V stays.
    """
    from scipy.stats import spearmanr

    maze = probe.maze
    figure, axes = _panels(maze, title)
    steps = steps_of(knowledge.values, reward_scale, discount)
    most = np.quantile(steps, 0.98)

    for task, (axis, values) in enumerate(zip(axes[:-1], knowledge.values, strict=False), 1):
        image = axis.imshow(maze.average(probe.xy, steps[task - 1]), extent=maze.extent, origin='lower',
                            cmap='viridis_r', vmin=0, vmax=most)
        maze.draw(axis, task)

        traps = local_maxima(np.where(maze.walls, np.nan, maze.average(probe.xy, values, 1)))
        traps[maze.fine_cell(maze.goals[task - 1], 1)] = False
        i, j = np.nonzero(traps)
        axis.plot(maze.low[0] + (j + 0.5) * maze.unit, maze.low[1] + (i + 0.5) * maze.unit, 'x', ms=7, mew=2,
                  color=FAILURE, zorder=7)

        distances = maze.distances[task - 1][maze.fine_cell(probe.xy)]
        order = spearmanr(values, -distances).statistic
        axis.set_title(f'task {task}: order {order:.2f}', fontsize=TEXT)

    legend = axes[-1]
    legend.axis('off')
    bar = _colorbar(figure, image, legend, (0.2, 0.02, 0.08, 0.86))
    ticks = [tick for tick in bar.get_ticks() if 0 <= tick <= most]
    bar.set_ticks(ticks, labels=[f'{tick:.0f}' for tick in ticks])
    as_values = bar.ax.secondary_yaxis('left')
    as_values.set_yticks(ticks, [f'{value_of(tick, reward_scale, discount):.1f}' for tick in ticks], fontsize=SMALL)
    legend.text(0.18, 0.93, '$V$', fontsize=SMALL, ha='right', transform=legend.transAxes)
    legend.text(0.3, 0.93, 'in steps', fontsize=SMALL, transform=legend.transAxes)

    entries = [*ENDS, ('trap', 'x', FAILURE), ('no data', 's', 'white')]
    _legend(legend, entries, bbox_to_anchor=(0.48, 0.5), loc='center left')
    save(figure, path)


def value_of(steps, reward_scale, discount):
    """V of a place so many steps from the goal: minus the discounted sum of `reward_scale` per step."""
    return reward_scale * (discount ** np.asarray(steps, float) - 1) / (1 - discount)


def steps_of(values, reward_scale, discount, most=1000):
    """The inverse of `value_of`; at most `most` for values that no number of steps gives."""
    left = np.maximum(1 + np.asarray(values, float) * (1 - discount) / reward_scale, discount ** most)
    return np.log(left) / np.log(discount)


def _colorbar(figure, image, axis, box):
    """A colour bar with its least number above, in the part `box` (left, bottom, width, height) of an axis."""
    bar = figure.colorbar(image, cax=axis.inset_axes(box))
    bar.ax.invert_yaxis()
    bar.ax.tick_params(labelsize=SMALL)
    return bar


def _legend(axis, entries, **options):
    """entries: (label, marker, color); '--' as the marker gives a line."""
    from matplotlib.lines import Line2D

    handles = []
    for label, marker, color in entries:
        if marker == '--':
            handles.append(Line2D([], [], color=color, lw=2, label=label))
        else:
            cross = marker == 'x'
            handles.append(Line2D([], [], ls='', marker=marker, label=label, ms=11 if marker == '*' else 7, mfc=color,
                                  mec=color if cross else INK, mew=2 if cross else 1))
    axis.legend(handles=handles, fontsize=SMALL, frameon=False, **options)


def local_maxima(grid):
    """grid (rows, columns), NaN where nothing is -> bool mask of cells with no better one of four neighbours."""
    padded = np.pad(np.where(np.isnan(grid), -np.inf, grid), 1, constant_values=-np.inf)
    around = np.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
    return ~np.isnan(grid) & (grid >= around.max(0))


def _arrows(axis, start, end, color, **options):
    """Arrows from the places `start` (n, 2) to the places `end` (n, 2)."""
    x, y = start.T
    dx, dy = (end - start).T
    axis.quiver(x, y, dx, dy, color=color, angles='xy', scale_units='xy', scale=1, headwidth=4, headlength=4.5,
                headaxislength=4, **options)


def draw_proposals(probe, knowledge, path, title):
    """Arrows from places to where f_P(z, z_g) wants to be `transition_steps` later, decoded by `Probe.look`."""
    maze = probe.maze
    figure, axes = _panels(maze, title)

    def by_place(values):
        return maze.average(probe.xy, values, 2).ravel()

    for task, (axis, proposed) in enumerate(zip(axes[:-1], knowledge.proposed_xy, strict=False), 1):
        maze.draw(axis, task)
        distance = maze.distances[task - 1]
        closer = distance[maze.fine_cell(probe.xy)] - distance[maze.fine_cell(proposed)]
        gain = by_place(np.where(np.isfinite(closer), closer, 0.0))

        seen = ~np.isnan(gain)
        start = np.stack([by_place(probe.xy[:, 0]), by_place(probe.xy[:, 1])], 1)
        end = np.stack([by_place(proposed[:, 0]), by_place(proposed[:, 1])], 1)
        color = np.where(gain > 0, GOOD, FAILURE)
        _arrows(axis, start[seen], end[seen], color[seen], width=0.01, zorder=3)
        axis.set_title(f'task {task}: {np.mean(gain[seen] > 0):.0%} lead closer', fontsize=TEXT)

    axes[-1].axis('off')
    _legend(axes[-1], [*ENDS, ('leads closer', '--', GOOD), ('leads away', '--', FAILURE)], loc='center')
    save(figure, path)


def place_colors(maze, xy):
    """A colour for each place: the corners of the maze are blue, red, green and yellow, mixed in between."""
    corners = np.array([[(0, 114, 178), (213, 94, 0)], [(0, 158, 115), (240, 228, 66)]]) / 255  # Okabe-Ito
    low = maze.low + maze.unit
    high = np.array(maze.extent[1::2]) - maze.unit
    u, v = np.clip((np.asarray(xy) - low) / (high - low), 0, 1).T[..., None]

    bottom = (1 - u) * corners[0, 0] + u * corners[1, 0]
    top = (1 - u) * corners[0, 1] + u * corners[1, 1]
    return (1 - v) * bottom + v * top


def principal_components(points):
    """points (n, D) -> (their first two principal components (n, 2), the share of the variance in these)."""
    points = points - points.mean(0)
    variance, directions = np.linalg.eigh(points.T @ points)  # ascending
    return points @ directions[:, [-1, -2]], variance[-2:].sum() / max(variance.sum(), 1e-12)


def draw_latents(probe, knowledge, path, title):
    """First two principal components of z and of V's embedding e(z), each point coloured by its place in the maze
    (left). In the titles: how far apart in the maze nearest neighbours are, in maze cells (median)."""
    colors = place_colors(probe.maze, probe.xy)
    figure, axes = _panels(probe.maze, title, 3)
    probe.maze.draw(axes[0])
    axes[0].scatter(*probe.xy.T, c=colors, s=3, lw=0, zorder=3)
    axes[0].set_title('place', fontsize=TEXT)

    clouds = {'$z$': knowledge.z, '$e(z)$': knowledge.embeddings}
    for axis, (name, points) in zip(axes[1:], clouds.items(), strict=True):
        components, share = principal_components(points)
        axis.scatter(*components.T, c=colors, s=3, lw=0)

        rows = torch.from_numpy(points)
        nearest = torch.cdist(rows, rows).fill_diagonal_(torch.inf).argmin(1).numpy()
        apart = np.median(np.linalg.norm(probe.xy[nearest] - probe.xy, axis=1)) / probe.maze.unit
        axis.set_title(f'{name}, nearest {apart:.2f} off', fontsize=TEXT)
        axis.text(0.98, 0.02, f'{share:.0%} of variance', fontsize=SMALL, ha='right', transform=axis.transAxes)
        axis.margins(y=0.12)
        axis.set(xticks=[], yticks=[])
    save(figure, path)


def draw_paths(maze, episodes, path, title):
    """Paths of evaluation episodes (`rollouts.Episode`), one panel per task."""
    figure, axes = _panels(maze, title)
    for task, axis in enumerate(axes[:-1], 1):
        maze.draw(axis, task)
        part = [episode for episode in episodes if episode.task == task]

        for episode in sorted(part, key=lambda episode: -episode.success):  # failures on top
            x, y = maze.places(episode.observations).T
            if episode.success:
                axis.plot(x, y, color=TASK_COLORS[task - 1], lw=1.0, alpha=0.75, zorder=3)
            else:
                axis.plot(x, y, color=FAILED_PATH, lw=0.8, alpha=0.8, zorder=4)
                axis.plot(x[-1], y[-1], 'x', color=FAILURE, ms=7, mew=2, zorder=5)

        solved = sum(bool(episode.success) for episode in part)
        axis.set_title(f'task {task}: {solved} of {len(part)} solved', fontsize=TEXT)

    axes[-1].axis('off')
    entries = [*ENDS, ('solved', '--', TASK_COLORS[0]), ('failed', '--', FAILED_PATH), ('its end', 'x', FAILURE)]
    _legend(axes[-1], entries, loc='center')
    save(figure, path)


@torch.no_grad()
def draw_episode(probe, agent, episode, path, title, every=25):
    """One episode, and every so many steps (dots) what was proposed there: z' of the policy f_P(z, z_g), and the
    goal-biased z + 0.6 (z_g - z), 0.6 being the mean of its alpha. Decoded as `Probe.look` does."""
    maze = probe.maze
    embeddings = probe.embed(agent, probe.encode(agent, probe.observations))
    states = episode.observations[:-1:every]
    z = probe.encode(agent, states)
    z_goal = probe.encode(agent, episode.goal[None])

    figure, (left, right) = _panels(maze, title, 2, 2)

    def panel(axis, name, proposed, color):
        maze.draw(axis, episode.task)
        axis.plot(*maze.places(episode.observations).T, color='#888888', lw=1.2, zorder=2)
        start = maze.places(states)
        end = probe.decode(embeddings, probe.embed(agent, proposed))
        _arrows(axis, start, end, color, width=0.011, zorder=4)
        axis.plot(*start.T, 'o', color=INK, ms=2.5, zorder=5)
        axis.set_title(name, fontsize=TEXT)

    panel(left, 'policy: $f_P(z, z_g)$', agent.nets['proposer'](z, z_goal.expand_as(z)), TASK_COLORS[0])
    panel(right, 'biased: $z + 0.6\\,(z_g - z)$', z + 0.6 * (z_goal - z), TASK_COLORS[1])
    save(figure, path)


def draw_plan(maze, planner, path, title):
    """The StateGraph of a GraphPlanner: its edges, jumps (from the middle of a gate to where it converged, thicker where more
    often), nodes coloured by their cost to each task's goal, in hops, and the plan from the task's start. Crosses:
    nodes from which no path leads there. A hop is a little longer than what is walked in its steps, since it leads from
    anywhere in one node to anywhere in the next."""
    from matplotlib.collections import LineCollection

    figure, axes = _panels(maze, title)
    graph = planner.graph
    xy = maze.places(graph.states)
    edges = np.stack([xy[graph.sources], xy[graph.targets]], 1)
    jumps, probs = _jump_lines(graph.jumps, xy)
    goals = planner.locate(maze.goal_observations)
    # a task is known by the place where it starts, so that any node there will do
    starts = [int(np.linalg.norm(xy - start, axis=1).argmin()) for start in maze.starts]

    unreachable = np.full(len(xy), np.inf)
    hops = [planner.distances(goal) / graph.hop if goal >= 0 else unreachable for goal in goals]
    finite = np.concatenate(hops)
    finite = finite[np.isfinite(finite)]
    most = np.quantile(finite, 0.98) if len(finite) else 1.0

    for task, (axis, distance) in enumerate(zip(axes[:-1], hops, strict=False), 1):
        maze.draw(axis, task)
        axis.add_collection(LineCollection(edges, colors=EDGE, linewidths=0.25, alpha=0.35, zorder=2, rasterized=True))
        axis.add_collection(LineCollection(jumps, colors=JUMPED, linewidths=0.3 + 6 * probs, alpha=0.6, zorder=2))
        reached = np.isfinite(distance)
        image = axis.scatter(*xy[reached].T, c=distance[reached], cmap='viridis_r', vmin=0, vmax=most, s=4, lw=0,
                             zorder=3)
        axis.plot(*xy[~reached].T, 'x', color=INK, ms=2.5, mew=0.7, zorder=3)

        way = planner.path(starts[task - 1], goals[task - 1])
        axis.plot(*xy[way].T, '-', color='white', lw=3.2, zorder=4)
        axis.plot(*xy[way].T, '-o', color=PLAN, lw=1.6, ms=2.6, zorder=5)
        length = f'{len(way) - 1} hops' if way else 'no path'
        axis.set_title(f'task {task}: {length}', fontsize=TEXT)

    legend = axes[-1]
    legend.axis('off')
    _colorbar(figure, image, legend, (0.12, 0.04, 0.08, 0.82))
    legend.text(0.0, 0.92, f'hops of {graph.hop} steps to the goal', fontsize=SMALL, transform=legend.transAxes)
    entries = [*ENDS, ('plan', '--', PLAN), ('edges', '--', EDGE)]
    if len(jumps):
        entries.append(('jumps', '--', JUMPED))
    if not all(np.isfinite(distance).all() for distance in hops):
        entries.append(('no path', 'x', INK))
    _legend(legend, entries, bbox_to_anchor=(0.44, 0.45), loc='center left')
    save(figure, path)


def _jump_lines(jump_model, xy):
    """-> (lines (P, 2, 2) from the middle of a gate to a node in which it converged, how likely each is (P,)); xy (K, 2): the
    places of the nodes."""
    middles = np.zeros((jump_model.source_ids.max(initial=-1) + 1, 2))
    for number in range(len(middles)):
        middles[number] = xy[jump_model.source_nodes[jump_model.source_ids == number]].mean(0)
    return np.stack([middles[jump_model.landing_source_ids], xy[jump_model.landing_nodes]], 1), jump_model.landing_probs
