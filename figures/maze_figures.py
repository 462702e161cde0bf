"""Draw what an agent predicts on its maze, by matplotlib without a renderer or a display.

    draw_values     V(z, z_g) over the free cells and its local maxima
    draw_proposals  next states of the state-only policy f_P(z, z_g) and whether they are closer to the goal
    draw_latents    principal components of the latents, coloured by position
    draw_paths      paths of evaluation episodes and the final positions of failed ones
    draw_episode    proposals and goal-biased subgoals along one episode
    draw_plan       the graph of the data, distances to each goal on it and the planned path

All networks are evaluated at observations of the data (`Probe`), because invented joint angles and
velocities would lie off the data. Cells without data stay empty. Latents are those of single states.
"""

import dataclasses

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from observing.observation_models import FULL_STATE
from ogbench_utils import episode_seed, reset_env
from support.figures import FAILURE, GOOD, INK, TASK_COLORS, default_style, save, subplots

OUTER_MARGIN = 0.7  # part of the outer walls that is cut off, in maze cells
CELL_SPLIT = 4  # fine cells per side of a maze cell; a fine cell is about as wide as an ant
PROBE_SAMPLES = 300_000  # observations of the data from which a probe is drawn, at most
DECODER_NEIGHBOURS = 8  # embedded observations over which a decoded proposal is averaged
MAX_STEPS = 1000  # largest distance to the goal that a value is converted to, in environment steps
MEAN_ALPHA = 0.6  # mean of the goal-biased exploration's alpha ~ U(0.2, 1)

WALL_COLOR = '#c8ccd2'
FLOOR_COLOR = '#ffffff'
GOAL_COLOR = '#F0E442'
EDGE_COLOR = '#8a8f98'  # edges of the graph of the data
JUMP_COLOR = '#7b3fb5'
PLAN_COLOR = '#D55E00'
PATH_COLOR = '#888888'
FAILED_PATH_COLOR = '#444444'

TITLE_SIZE = 11  # points, in figures about six inches wide
LABEL_SIZE = 10
LETTER_WIDTH = 0.09  # inches of a letter of a title, on average
START_AND_GOAL = (('start', 'o', 'white'), ('goal', '*', GOAL_COLOR))  # legend entries: label, marker, colour


class Maze:
    """Walls, tasks and walking distances of an OGBench maze; positions xy in the environment's units.

    env: the environment, whose states `observation_model` observes.
    """

    def __init__(self, env, observation_model=FULL_STATE):
        maze = env.unwrapped
        self.walls = maze.maze_map == 1  # (rows, columns)
        self.unit = float(maze._maze_unit)
        self.low = np.array(maze.ij_to_xy((0, 0))) - self.unit / 2  # the outer corner of cell (0, 0)
        self.fine_walls = self.walls.repeat(CELL_SPLIT, 0).repeat(CELL_SPLIT, 1)

        # dimensions of a raw state that hold the position which has to reach the goal
        start = 'init_xy'
        columns = [0, 1]
        if 'ball_init_xy' in maze.task_infos[0]:  # soccer: the ball, whose position and rotation end qpos
            start = 'ball_init_xy'
            columns = [maze.model.nq - 7, maze.model.nq - 6]

        self.columns = observation_model.columns(columns)
        self.origin = observation_model.origin_of(self.columns).astype(np.float32)
        self.starts = np.array([info[start] for info in maze.task_infos])
        self.goals = np.array([info['goal_xy'] for info in maze.task_infos])
        self.goal_observations = self._goal_observations(env)
        self.distances = self._walking_distances()

    def _goal_observations(self, env):
        """Return a goal observation of each task, (tasks, S); numpy's global generator stays as it is."""
        generator_state = np.random.get_state()  # a reset seeds it
        goals = []
        for task in range(1, len(self.goals) + 1):
            _, goal = reset_env(env, task, episode_seed(0, 6, task))
            goals.append(goal)

        np.random.set_state(generator_state)
        return np.stack(goals)

    def _walking_distances(self):
        """Return distances from fine cells to goals, (tasks, fine rows, fine columns); inf in walls.

        A cell has eight neighbours. A diagonal step needs both corners free. Teleporters are ignored.
        """
        shape = self.fine_walls.shape
        free = ~self.fine_walls
        cell_ids = np.arange(free.size).reshape(shape)
        step = self.unit / CELL_SPLIT

        # pairs of neighbouring cells in four directions; the graph is undirected
        sources = []
        targets = []
        lengths = []
        for di, dj in ((0, 1), (1, 0), (1, 1), (1, -1)):
            rows = slice(0, shape[0] - di)
            columns = slice(max(0, -dj), shape[1] - max(0, dj))
            to_rows = slice(di, shape[0])
            to_columns = slice(max(0, dj), shape[1] - max(0, -dj))

            passable = free[rows, columns] & free[to_rows, to_columns]
            passable = passable & free[to_rows, columns] & free[rows, to_columns]
            sources.append(cell_ids[rows, columns][passable])
            targets.append(cell_ids[to_rows, to_columns][passable])
            lengths.append(np.full(passable.sum(), step * np.hypot(di, dj)))

        # shortest paths to the cell of each goal
        edges = (np.concatenate(lengths), (np.concatenate(sources), np.concatenate(targets)))
        graph = csr_array(edges, shape=(free.size, free.size))
        goals = cell_ids[self.fine_cell(self.goals)]
        return dijkstra(graph, directed=False, indices=goals).reshape(-1, *shape)

    def positions(self, observations):
        """Return xy (..., 2) of the robot, or the ball in soccer, in states (..., S)."""
        return observations[..., self.columns] + self.origin

    @property
    def extent(self):
        """The maze's borders (left, right, bottom, top) in units of xy."""
        rows, columns = self.walls.shape
        return self.low[0], self.low[0] + columns * self.unit, self.low[1], self.low[1] + rows * self.unit

    @property
    def aspect(self):
        """Height / width of the part of the maze that `draw` shows."""
        rows, columns = self.walls.shape
        return (rows - 2 * OUTER_MARGIN) / (columns - 2 * OUTER_MARGIN)

    def fine_cell(self, xy, split=CELL_SPLIT):
        """Return row and column, int arrays, of the cell of `unit` / `split` at each xy (n, 2), clipped."""
        cell = np.floor((np.asarray(xy) - self.low) / (self.unit / split)).astype(int)
        rows, columns = np.array(self.walls.shape) * split
        return np.clip(cell[..., 1], 0, rows - 1), np.clip(cell[..., 0], 0, columns - 1)

    def average(self, xy, values, split=CELL_SPLIT):
        """Average values over the cells of the maze.

        Args:
            xy: (n, 2) positions.
            values: (n,) one value for each position.
            split: cells per side of a maze cell.

        Returns:
            (rows, columns) mean of each cell, NaN in cells without a position.
        """
        shape = np.array(self.walls.shape) * split
        cell = np.ravel_multi_index(self.fine_cell(xy, split), shape)
        total = np.bincount(cell, values, minlength=shape.prod())
        count = np.bincount(cell, minlength=shape.prod())
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(shape)

    def draw(self, axis, task=None):
        """Draw the walls, and the start (ring) and the goal (star) of a task, counted from 1."""
        from matplotlib.colors import ListedColormap

        axis.imshow(np.where(self.walls, 1.0, np.nan), extent=self.extent, origin='lower', zorder=1,
                    cmap=ListedColormap([WALL_COLOR]), interpolation='nearest')

        # the inner part of the outer walls is enough
        left, right, bottom, top = self.extent
        margin = OUTER_MARGIN * self.unit
        axis.set_xlim(left + margin, right - margin)
        axis.set_ylim(bottom + margin, top - margin)
        axis.set(xticks=[], yticks=[], facecolor=FLOOR_COLOR)
        axis.spines[:].set_visible(False)

        if task is not None:
            axis.plot(*self.starts[task - 1], 'o', ms=6, mfc='white', mec=INK, mew=1.4, zorder=6)
            axis.plot(*self.goals[task - 1], '*', ms=12, mfc=GOAL_COLOR, mec=INK, mew=0.9, zorder=6)


@dataclasses.dataclass
class AgentOutputs:
    """Outputs of an agent at the n observations of a `Probe`, for the goal of each task."""

    z: np.ndarray  # (n, D) latents
    embeddings: np.ndarray  # (n, E) V's embedding of them
    values: np.ndarray  # (tasks, n)
    proposed_xy: np.ndarray  # (tasks, n, 2) positions that f_P proposes, decoded


class Probe:
    """Observations (n, S) of the data, spread evenly over the free fine cells: at most `per_cell` in each."""

    def __init__(self, maze, observations, per_cell=6, seed=0):
        # a random order of the data, without observations inside walls
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(observations))[:PROBE_SAMPLES]
        i, j = maze.fine_cell(maze.positions(observations)[rows])
        free = ~maze.fine_walls[i, j]
        rows = rows[free]
        cell = (i * maze.fine_walls.shape[1] + j)[free]

        # the first `per_cell` of each cell
        order = np.argsort(cell, kind='stable')
        cell = cell[order]
        begin_of_cell = np.searchsorted(cell, cell)
        rank_in_cell = np.arange(len(cell)) - begin_of_cell
        kept = rows[order][rank_in_cell < per_cell]

        self.maze = maze
        self.observations = np.ascontiguousarray(observations[kept])
        self.xy = maze.positions(self.observations)

    @torch.no_grad()
    def evaluate(self, agent):
        """Return the `AgentOutputs` of an `OfflineAgent` at these observations.

        A proposed latent has no position, only distances to other latents in V's embedding. It is decoded to
        the mean position of the `DECODER_NEIGHBOURS` observations whose embeddings are nearest.
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

        return AgentOutputs(
            z=z.cpu().numpy(),
            embeddings=embeddings.cpu().numpy(),
            values=np.stack(values),
            proposed_xy=np.stack(proposed_xy),
        )

    @staticmethod
    def encode(agent, observations):
        """Return the latents (n, D) of raw observations (n, S)."""
        return agent.targets['encoder'].encode_features(torch.as_tensor(observations, device=agent.device))

    @staticmethod
    def embed(agent, z):
        """Return V's embeddings (n, E) of latents (n, D), all ensemble members side by side."""
        return agent.targets['value'].embed(z).movedim(0, -2).flatten(-2)

    def decode(self, embeddings, queries):
        """Decode embedded latents to positions.

        Args:
            embeddings: (n, E) embeddings of the probe's observations.
            queries: (m, E) embeddings to decode.

        Returns:
            (m, 2) mean xy of the nearest observations.
        """
        count = min(DECODER_NEIGHBOURS, len(embeddings))
        nearest = torch.cdist(queries, embeddings).topk(count, largest=False).indices
        return self.xy[nearest.cpu().numpy()].mean(1)


def make_panels(count, title, columns=3, size=(2.3, 2.0)):
    """Return a figure with `count` panels of `size` (width, height) inches, up to `columns` side by side."""
    columns = min(count, columns)
    rows = -(-count // columns)
    width, height = size
    figsize = (max(width * columns, 3.2, LETTER_WIDTH * len(title)), height * rows + 0.3)

    figure, axes = subplots(rows, columns, figsize)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    figure.suptitle(title, fontsize=TITLE_SIZE)

    for axis in axes.flat:
        axis.tick_params(labelsize=LABEL_SIZE)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, axes.flat[:count]


def make_maze_panels(maze, title, count=6, columns=3):
    """Return a figure with `count` panels of the maze's shape, legible at half the width of a column."""
    width = 2.06
    title_height = 0.25
    return make_panels(count, title, columns, (width, width * maze.aspect + title_height))


def draw_agent(probe, agent, folder, title, format='png'):
    """Draw maze_{values,proposals,latents} of an `OfflineAgent` in a format; return their paths."""
    outputs = probe.evaluate(agent)
    values = folder / f'maze_values.{format}'
    proposals = folder / f'maze_proposals.{format}'
    latents = folder / f'maze_latents.{format}'

    draw_values(probe, outputs, values, f'Value, {title}', agent.config.reward_scale, agent.config.discount)
    draw_proposals(probe, outputs, proposals, f'Proposals, {title}')
    draw_latents(probe, outputs, latents, f'Latents, {title}')
    return [values, proposals, latents]


@default_style()
def draw_values(probe, outputs, path, title, reward_scale=0.05, discount=0.99):
    """Draw V(z, z_g) as a heat map for each task, with one colour scale.

    Each title has Spearman's rank correlation of V with the negative walking distance. Crosses mark maze
    cells that are local maxima of V.
    """
    from scipy.stats import spearmanr

    maze = probe.maze
    figure, axes = make_maze_panels(maze, title)
    steps = steps_of(outputs.values, reward_scale, discount)
    most = np.quantile(steps, 0.98)
    any_maximum = False

    for task, (axis, values) in enumerate(zip(axes[:-1], outputs.values, strict=False), 1):
        # values as distances in steps
        image = axis.imshow(maze.average(probe.xy, steps[task - 1]), extent=maze.extent, origin='lower',
                            cmap='viridis_r', vmin=0, vmax=most)
        maze.draw(axis, task)

        # local maxima other than the goal
        maxima = local_maxima(np.where(maze.walls, np.nan, maze.average(probe.xy, values, 1)))
        maxima[maze.fine_cell(maze.goals[task - 1], 1)] = False
        any_maximum |= maxima.any()
        i, j = np.nonzero(maxima)
        x = maze.low[0] + (j + 0.5) * maze.unit
        y = maze.low[1] + (i + 0.5) * maze.unit
        axis.plot(x, y, 'x', ms=7, mew=2, color=FAILURE, zorder=7)

        distances = maze.distances[task - 1][maze.fine_cell(probe.xy)]
        correlation = spearmanr(values, -distances).statistic
        axis.set_title(f'task {task}: Spearman {correlation:.2f}', fontsize=TITLE_SIZE)

    # one scale with steps on its right and values on its left
    legend = axes[-1]
    legend.axis('off')
    bar = _draw_colorbar(figure, image, legend, (0.2, 0.02, 0.08, 0.86))
    ticks = [tick for tick in bar.get_ticks() if 0 <= tick <= most]
    bar.set_ticks(ticks, labels=[f'{tick:.0f}' for tick in ticks])
    as_values = bar.ax.secondary_yaxis('left')
    value_labels = [f'{value_of(tick, reward_scale, discount):.1f}' for tick in ticks]
    as_values.set_yticks(ticks, value_labels, fontsize=LABEL_SIZE)
    legend.text(0.18, 0.93, '$V$', fontsize=LABEL_SIZE, ha='right', transform=legend.transAxes)
    legend.text(0.3, 0.93, 'steps to goal', fontsize=LABEL_SIZE, transform=legend.transAxes)

    entries = list(START_AND_GOAL)
    if any_maximum:
        entries.append(('local max.', 'x', FAILURE))
    if (np.isnan(maze.average(probe.xy, probe.xy[:, 0])) & ~maze.fine_walls).any():
        entries.append(('no data', 's', 'white'))
    _draw_legend(legend, entries, bbox_to_anchor=(0.41, 0.45), loc='center left', handletextpad=0.2)
    save(figure, path)


def value_of(steps, reward_scale, discount):
    """Return V of a state `steps` from the goal: minus the discounted sum of `reward_scale` per step."""
    return reward_scale * (discount ** np.asarray(steps, float) - 1) / (1 - discount)


def steps_of(values, reward_scale, discount, most=MAX_STEPS):
    """Return the inverse of `value_of`, clipped at `most` steps."""
    remaining = np.maximum(1 + np.asarray(values, float) * (1 - discount) / reward_scale, discount ** most)
    return np.log(remaining) / np.log(discount)


def _draw_colorbar(figure, image, axis, box):
    """Draw a colour bar, smallest value on top, in the `box` (left, bottom, width, height) of an axis."""
    bar = figure.colorbar(image, cax=axis.inset_axes(box))
    bar.ax.invert_yaxis()
    bar.ax.tick_params(labelsize=LABEL_SIZE)
    return bar


def _draw_legend(axis, entries, **options):
    """Draw a legend of `entries` (label, marker, colour) in its own panel; the marker '--' gives a line."""
    from matplotlib.lines import Line2D

    handles = []
    for label, marker, color in entries:
        if marker == '--':
            handles.append(Line2D([], [], color=color, lw=2, label=label))
        elif marker == 'x':
            handles.append(Line2D([], [], ls='', marker='x', label=label, ms=7, mec=color, mew=2))
        else:
            style = {'ms': 11 if marker == '*' else 7, 'mfc': color, 'mec': INK, 'mew': 1}
            handles.append(Line2D([], [], ls='', marker=marker, label=label, **style))
    axis.legend(handles=handles, fontsize=LABEL_SIZE, frameon=False, **options)

    # what this panel holds takes no space from the others
    for artist in axis.get_children():
        artist.set_in_layout(False)


def local_maxima(grid):
    """Return a bool mask of the cells of `grid` (rows, columns) that none of their four neighbours exceeds.

    NaN marks cells without a value: they are no maxima and exceed nothing.
    """
    padded = np.pad(np.where(np.isnan(grid), -np.inf, grid), 1, constant_values=-np.inf)
    neighbours = np.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
    return ~np.isnan(grid) & (grid >= neighbours.max(0))


def _draw_arrows(axis, start, end, color, **options):
    """Draw arrows from the positions `start` (n, 2) to the positions `end` (n, 2)."""
    x, y = start.T
    dx, dy = (end - start).T
    head = {'headwidth': 4, 'headlength': 4.5, 'headaxislength': 4}
    axis.quiver(x, y, dx, dy, color=color, angles='xy', scale_units='xy', scale=1, **head, **options)


@default_style()
def draw_proposals(probe, outputs, path, title):
    """Draw arrows from positions to where f_P(z, z_g) proposes to be `transition_steps` later.

    Green arrows decrease the walking distance to the goal. Proposals are decoded by `Probe.evaluate` and
    averaged over quarters of maze cells.
    """
    maze = probe.maze
    figure, axes = make_maze_panels(maze, title)

    any_farther = False

    def cell_means(values):
        return maze.average(probe.xy, values, 2).ravel()

    for task, (axis, proposed) in enumerate(zip(axes[:-1], outputs.proposed_xy, strict=False), 1):
        maze.draw(axis, task)

        # mean decrease of the walking distance in each cell
        distance = maze.distances[task - 1]
        decrease = distance[maze.fine_cell(probe.xy)] - distance[maze.fine_cell(proposed)]
        gain = cell_means(np.where(np.isfinite(decrease), decrease, 0.0))
        has_data = ~np.isnan(gain)
        any_farther |= bool((gain[has_data] <= 0).any())

        start = np.stack([cell_means(probe.xy[:, 0]), cell_means(probe.xy[:, 1])], 1)
        end = np.stack([cell_means(proposed[:, 0]), cell_means(proposed[:, 1])], 1)
        color = np.where(gain > 0, GOOD, FAILURE)
        _draw_arrows(axis, start[has_data], end[has_data], color[has_data], width=0.01, zorder=3)
        axis.set_title(f'task {task}: {np.mean(gain[has_data] > 0):.0%} closer', fontsize=TITLE_SIZE)

    legend = axes[-1]
    legend.axis('off')
    entries = [*START_AND_GOAL, ('closer to the goal', '--', GOOD)]
    if any_farther:
        entries.append(('farther away', '--', FAILURE))
    _draw_legend(legend, entries, loc='center')
    save(figure, path)


def position_colors(maze, xy):
    """Return a colour for each xy (n, 2), mixed from the four colours of the maze's corners."""
    corners = np.array([[(0, 114, 178), (213, 94, 0)], [(0, 158, 115), (240, 228, 66)]]) / 255  # Okabe-Ito
    low = maze.low + maze.unit
    high = np.array(maze.extent[1::2]) - maze.unit
    u, v = np.clip((np.asarray(xy) - low) / (high - low), 0, 1).T[..., None]

    bottom = (1 - u) * corners[0, 0] + u * corners[1, 0]
    top = (1 - u) * corners[0, 1] + u * corners[1, 1]
    return (1 - v) * bottom + v * top


def principal_components(points):
    """Project points (n, D) on their first two principal components.

    Returns:
        components: (n, 2)
        share: the fraction of the variance in them.
    """
    points = points - points.mean(0)
    variance, directions = np.linalg.eigh(points.T @ points)  # ascending
    return points @ directions[:, [-1, -2]], variance[-2:].sum() / max(variance.sum(), 1e-12)


def nearest_neighbour_distance(points, xy):
    """Return the median distance in xy (n, 2) between each of the points (n, D) and its nearest neighbour."""
    rows = torch.from_numpy(points)
    nearest = torch.cdist(rows, rows).fill_diagonal_(torch.inf).argmin(1).numpy()
    return np.median(np.linalg.norm(xy[nearest] - xy, axis=1))


@default_style()
def draw_latents(probe, outputs, path, title):
    """Draw two principal components of z and of V's embedding e(z), coloured by position in the maze.

    Each title has the median distance in the maze between nearest neighbours (1-NN), in maze cells.
    """
    colors = position_colors(probe.maze, probe.xy)
    figure, axes = make_maze_panels(probe.maze, title, 3)
    probe.maze.draw(axes[0])
    axes[0].scatter(*probe.xy.T, c=colors, s=3, lw=0, zorder=3)
    axes[0].set_title('position', fontsize=TITLE_SIZE)

    clouds = {'$z$': outputs.z, '$e(z)$': outputs.embeddings}
    for axis, (name, points) in zip(axes[1:], clouds.items(), strict=True):
        components, share = principal_components(points)
        axis.scatter(*components.T, c=colors, s=3, lw=0)

        distance = nearest_neighbour_distance(points, probe.xy) / probe.maze.unit
        axis.set_title(f'{name}: 1-NN {distance:.2f} cells', fontsize=TITLE_SIZE)
        axis.text(0.98, 0.02, f'{share:.0%} of variance', fontsize=LABEL_SIZE, ha='right',
                  transform=axis.transAxes)
        axis.margins(y=0.12)
        axis.set_box_aspect(probe.maze.aspect)
        axis.set(xticks=[], yticks=[])
    save(figure, path)


@default_style()
def draw_paths(maze, episodes, path, title):
    """Draw the paths of evaluation episodes (`rollouts.Episode`), one panel for each task."""
    figure, axes = make_maze_panels(maze, title)
    for task, axis in enumerate(axes[:-1], 1):
        maze.draw(axis, task)
        task_episodes = [episode for episode in episodes if episode.task == task]

        for episode in sorted(task_episodes, key=lambda episode: -episode.success):  # failures on top
            x, y = maze.positions(episode.observations).T
            if episode.success:
                axis.plot(x, y, color=TASK_COLORS[task - 1], lw=1.0, alpha=0.75, zorder=3)
            else:
                axis.plot(x, y, color=FAILED_PATH_COLOR, lw=0.8, alpha=0.8, zorder=4)
                axis.plot(x[-1], y[-1], 'x', color=FAILURE, ms=7, mew=2, zorder=5)

        solved = sum(bool(episode.success) for episode in task_episodes)
        axis.set_title(f'task {task}: {solved} of {len(task_episodes)} solved', fontsize=TITLE_SIZE)

    legend = axes[-1]
    legend.axis('off')
    entries = [*START_AND_GOAL, ('success', '--', TASK_COLORS[0])]
    if not all(episode.success for episode in episodes):
        entries += [('failure', '--', FAILED_PATH_COLOR), ('final position', 'x', FAILURE)]
    _draw_legend(legend, entries, loc='center')
    save(figure, path)


@default_style()
@torch.no_grad()
def draw_episode(probe, agent, episode, path, title, every=25):
    """Draw one episode and two kinds of subgoal, `every` this many steps (dots).

    The subgoals are z' of the proposer f_P(z, z_g) and the goal-biased z + alpha (z_g - z) at its mean
    alpha. `Probe.decode` gives their positions.
    """
    maze = probe.maze
    embeddings = probe.embed(agent, probe.encode(agent, probe.observations))
    states = episode.observations[:-1:every]
    z = probe.encode(agent, states)
    z_goal = probe.encode(agent, episode.goal[None])

    figure, axes = make_maze_panels(maze, title, 2, 2)
    subgoals = {
        'proposer: $f_P(z, z_g)$': agent.nets['proposer'](z, z_goal.expand_as(z)),
        f'goal-biased: $z + {MEAN_ALPHA}\\,(z_g - z)$': z + MEAN_ALPHA * (z_goal - z),
    }
    for axis, (name, proposed), color in zip(axes, subgoals.items(), TASK_COLORS, strict=False):
        maze.draw(axis, episode.task)
        axis.plot(*maze.positions(episode.observations).T, color=PATH_COLOR, lw=1.2, zorder=2)

        start = maze.positions(states)
        end = probe.decode(embeddings, probe.embed(agent, proposed))
        _draw_arrows(axis, start, end, color, width=0.011, zorder=4)
        axis.plot(*start.T, 'o', color=INK, ms=2.5, zorder=5)
        axis.set_title(name, fontsize=TITLE_SIZE)
    save(figure, path)


@default_style()
def draw_plan(maze, planner, path, title):
    """Draw the graph of the data (`GraphPlanner`) and, for each task, distances to the goal and the planned path.

    Nodes are coloured by their distance to the goal in hops. Crosses mark nodes without a path to it. Jumps
    lead from the mean of their source nodes to a landing node; their width is the landing's probability.
    """
    from matplotlib.collections import LineCollection

    figure, axes = make_maze_panels(maze, title)
    graph = planner.graph
    xy = maze.positions(graph.states)
    edges = np.stack([xy[graph.sources], xy[graph.targets]], 1)
    jumps, probs = _jump_lines(graph.jumps, xy)
    goals = planner.locate(maze.goal_observations)
    # the node nearest to the start position, whatever its other dimensions
    starts = [int(np.linalg.norm(xy - start, axis=1).argmin()) for start in maze.starts]

    unreachable = np.full(len(xy), np.inf)
    hops = [planner.distances(goal) / graph.hop if goal >= 0 else unreachable for goal in goals]
    finite = np.concatenate(hops)
    finite = finite[np.isfinite(finite)]
    most = np.quantile(finite, 0.98) if len(finite) else 1.0

    for task, (axis, distance) in enumerate(zip(axes[:-1], hops, strict=False), 1):
        maze.draw(axis, task)
        axis.add_collection(LineCollection(edges, colors=EDGE_COLOR, linewidths=0.25, alpha=0.35, zorder=2,
                                           rasterized=True))
        axis.add_collection(LineCollection(jumps, colors=JUMP_COLOR, linewidths=0.3 + 6 * probs, alpha=0.6,
                                           zorder=2))
        reached = np.isfinite(distance)
        image = axis.scatter(*xy[reached].T, c=distance[reached], cmap='viridis_r', vmin=0, vmax=most, s=4,
                             lw=0, zorder=3)
        axis.plot(*xy[~reached].T, 'x', color=INK, ms=2.5, mew=0.7, zorder=3)

        way = planner.path(starts[task - 1], goals[task - 1])
        axis.plot(*xy[way].T, '-', color='white', lw=3.2, zorder=4)
        axis.plot(*xy[way].T, '-o', color=PLAN_COLOR, lw=1.6, ms=2.6, zorder=5)
        length = f'{len(way) - 1} hops' if way else 'no path'
        axis.set_title(f'task {task}: {length}', fontsize=TITLE_SIZE)

    legend = axes[-1]
    legend.axis('off')
    _draw_colorbar(figure, image, legend, (0.12, 0.04, 0.08, 0.82))
    legend.text(0.0, 0.92, f'hops ({graph.hop} steps) to goal', fontsize=LABEL_SIZE,
                transform=legend.transAxes)
    entries = [*START_AND_GOAL, ('plan', '--', PLAN_COLOR), ('edges', '--', EDGE_COLOR)]
    if len(jumps):
        entries.append(('jumps', '--', JUMP_COLOR))
    if not all(np.isfinite(distance).all() for distance in hops):
        entries.append(('no path', 'x', INK))
    _draw_legend(legend, entries, bbox_to_anchor=(0.44, 0.45), loc='center left')
    save(figure, path)


def _jump_lines(jump_model, xy):
    """Return lines from each jump source to its landing nodes.

    Args:
        jump_model: a `JumpModel` of P landings.
        xy: (K, 2) positions of the graph's nodes.

    Returns:
        lines: (P, 2, 2), each from the mean of the source's nodes to a landing node.
        probs: (P,) probability of each landing.
    """
    middles = np.zeros((jump_model.source_ids.max(initial=-1) + 1, 2))
    for number in range(len(middles)):
        middles[number] = xy[jump_model.source_nodes[jump_model.source_ids == number]].mean(0)
    lines = np.stack([middles[jump_model.landing_source_ids], xy[jump_model.landing_nodes]], 1)
    return lines, jump_model.landing_probs
