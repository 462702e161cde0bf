"""What an agent knows, drawn on its maze by matplotlib: no renderer, no display. They tell why a run fails.

    draw_values     V(z, z_g) over the free cells: does the value rise toward each goal, and where is it trapped?
    draw_proposals  where the state-only policy f_P(z, z_g) wants to go: does each arrow lead closer?
    draw_latents    the latents in two dimensions, coloured by place: does the encoder tell places apart?
    draw_paths      evaluation episodes: where do the failed ones end?
    draw_episode    policy proposals and goal-biased ones along one episode
    draw_plan       the map of the data (planner.py), steps to each goal on it, and the way that it plans

Everything is measured at real observations of the data (`Probe`), so joint angles and speeds are plausible ones;
places without data stay empty. A latent is f(s_t), a sequence of length one, for `--head_memory history` too.
"""

import heapq
import time

import numpy as np
import torch

from ogbench_utils import episode_seed, make_env, reset_env
from support.figures import FAILURE, GOOD, INK, TASK_COLORS, pyplot, save

SPLIT = 4  # fine cells per side of a maze cell; an ant is about one of them wide
WALL, FLOOR = '#c8ccd2', '#ffffff'
EDGE, PLAN = '#8a8f98', '#D55E00'  # of the map of the data
TEXT, SMALL = 11, 10  # points, in figures about six inches wide
NEIGHBOURS = 8  # embedded observations over which a decoded proposal is averaged


class Maze:
    """Walls, tasks and walking distances of an OGBench maze. Positions xy are in the environment's units."""

    def __init__(self, env):
        maze = env.unwrapped
        self.walls, self.unit = maze.maze_map == 1, float(maze._maze_unit)
        self.low = np.array(maze.ij_to_xy((0, 0))) - self.unit / 2  # the outer corner of cell (0, 0)
        self.starts, self.goals = (np.array([info[key] for info in maze.task_infos])
                                   for key in ('init_xy', 'goal_xy'))
        self.fine_walls = self.walls.repeat(SPLIT, 0).repeat(SPLIT, 1)
        random = np.random.get_state()  # a reset seeds numpy's generator; drawing must not change a training
        self.goal_observations = np.stack([reset_env(env, task, episode_seed(0, 6, task))[1]
                                           for task in range(1, len(self.goals) + 1)])
        np.random.set_state(random)
        self.distances = np.stack([self._distances(goal) for goal in self.goals])

    @property
    def extent(self):
        rows, columns = self.walls.shape
        return self.low[0], self.low[0] + columns * self.unit, self.low[1], self.low[1] + rows * self.unit

    def fine_cell(self, xy, split=SPLIT):
        """xy (n, 2) -> (row, column), int arrays, of cells of `unit` / `split`; clipped to the maze."""
        cell = np.floor((np.asarray(xy) - self.low) / (self.unit / split)).astype(int)
        rows, columns = np.array(self.walls.shape) * split
        return np.clip(cell[..., 1], 0, rows - 1), np.clip(cell[..., 0], 0, columns - 1)

    def _distances(self, goal):
        """Walking distance to `goal` from each fine cell, inf in walls (Dijkstra over eight neighbours; a
        diagonal step needs both corners free). Teleporters are not taken."""
        distance, step = np.full(self.fine_walls.shape, np.inf), self.unit / SPLIT
        start = tuple(int(i) for i in self.fine_cell(goal))
        distance[start], queue = 0.0, [(0.0, start)]
        while queue:
            d, (i, j) = heapq.heappop(queue)
            if d > distance[i, j]:
                continue
            for di, dj in ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
                if self.fine_walls[i + di, j] or self.fine_walls[i, j + dj] or self.fine_walls[i + di, j + dj]:
                    continue
                new = d + step * (di * di + dj * dj) ** 0.5
                if new < distance[i + di, j + dj]:
                    distance[i + di, j + dj] = new
                    heapq.heappush(queue, (new, (i + di, j + dj)))
        return distance

    def average(self, xy, values, split=SPLIT):
        """Mean of `values` (n,) in each cell of `unit` / `split` -> (rows, columns), NaN where there is none."""
        shape = np.array(self.walls.shape) * split
        cell = np.ravel_multi_index(self.fine_cell(xy, split), shape)
        total, count = (np.bincount(cell, weights, minlength=shape.prod()) for weights in (values, None))
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(shape)

    def draw(self, axis, task=None):
        """Walls, and the start (ring) and the goal (star) of a task, counted from 1."""
        from matplotlib.colors import ListedColormap
        axis.imshow(np.where(self.walls, 1.0, np.nan), extent=self.extent, origin='lower', zorder=1,
                    cmap=ListedColormap([WALL]), interpolation='nearest')
        axis.set(xticks=[], yticks=[], facecolor=FLOOR)
        axis.set_xlim(self.extent[0] + 0.7 * self.unit, self.extent[1] - 0.7 * self.unit)  # half the outer walls do
        axis.set_ylim(self.extent[2] + 0.7 * self.unit, self.extent[3] - 0.7 * self.unit)
        axis.spines[:].set_visible(False)
        if task is not None:
            axis.plot(*self.starts[task - 1], 'o', ms=6, mfc='white', mec=INK, mew=1.4, zorder=6)
            axis.plot(*self.goals[task - 1], '*', ms=12, mfc='#F0E442', mec=INK, mew=0.9, zorder=6)


class Probe:
    """Observations (n, S) spread evenly over the free fine cells: up to `per_cell` of the data for each."""

    def __init__(self, maze, observations, per_cell=6, seed=0):
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(observations))[:300_000]
        i, j = maze.fine_cell(observations[rows, :2])
        rows, cell = (a[~maze.fine_walls[i, j]] for a in (rows, i * maze.fine_walls.shape[1] + j))
        order = np.argsort(cell, kind='stable')
        cell = cell[order]
        first = np.searchsorted(cell, cell)  # where each cell's rows begin
        self.maze = maze
        self.observations = np.ascontiguousarray(observations[rows[order][np.arange(len(cell)) - first < per_cell]])
        self.xy = self.observations[:, :2]

    @torch.no_grad()
    def look(self, agent):
        """-> what an `OfflineAgent` (of an online agent: its `offline`) thinks of these observations and the tasks'
        goals: latents z (n, D), embeddings (n, E), values (tasks, n), proposed_xy (tasks, n, 2).

        A proposal has no position: only its distance to other latents in V's embedding means anything. It is
        decoded to the mean xy of the `NEIGHBOURS` observations of the probe whose embeddings are nearest.
        """
        z = self.encode(agent, self.observations)
        z_goal = self.encode(agent, self.maze.goal_observations)
        embeddings = self.embed(agent, z)
        values, proposed_xy = [], []
        for goal in z_goal:
            goal = goal.expand_as(z)
            values.append(agent.targets['value'](z, goal).mean(0).cpu().numpy())
            proposed_xy.append(self.decode(embeddings, self.embed(agent, agent.nets['proposer'](z, goal))))
        return {'z': z.cpu().numpy(), 'embeddings': embeddings.cpu().numpy(), 'values': np.stack(values),
                'proposed_xy': np.stack(proposed_xy)}

    @staticmethod
    def encode(agent, observations):
        return agent.targets['encoder'].encode_slow(torch.as_tensor(observations, device=agent.device))

    @staticmethod
    def embed(agent, z):
        """z (n, D) -> (n, E), the members of V's embedding side by side."""
        return agent.targets['value'].embed(z).movedim(0, -2).flatten(-2)

    def decode(self, embeddings, queries):
        """queries (m, E) -> xy (m, 2), the mean over the nearest of the probe's `embeddings` (n, E)."""
        nearest = torch.cdist(queries, embeddings).topk(min(NEIGHBOURS, len(embeddings)), largest=False).indices
        return self.xy[nearest.cpu().numpy()].mean(1)


def _panels(maze, title, count=6, columns=3):
    """-> (figure, axes (count,)): a grid of mazes in letters large enough to be read at half a column."""
    rows, (height, width) = -(-count // columns), maze.walls.shape
    panel, head, gap = 2.0 * (height - 1.4) / (width - 1.4), 0.27, 0.06  # inches, as all here
    size = 2.0 * columns + gap * (columns + 1), rows * (panel + head) + 0.3
    figure = pyplot().figure(figsize=size)
    figure.text(0.5, 1 - 0.16 / size[1], title, fontsize=TEXT, ha='center', va='center')
    axes = []
    for k in range(count):
        x, y = gap + k % columns * (2.0 + gap), size[1] - 0.3 - (k // columns + 1) * (panel + head) + gap
        axes.append(figure.add_axes((x / size[0], y / size[1], 2.0 / size[0], panel / size[1])))
    return figure, axes


def draw_knowledge(probe, agent, folder, title):
    """maze_values.png, maze_proposals.png and maze_latents.png of an `OfflineAgent` in `folder` -> their paths."""
    paths, look = [folder / f'maze_{name}.png' for name in ('values', 'proposals', 'latents')], probe.look(agent)
    draw_values(probe, look, paths[0], f'Value, {title}', agent.config.reward_scale, agent.config.discount)
    draw_proposals(probe, look, paths[1], f'Proposals, {title}')
    draw_latents(probe, look, paths[2], f'Latents, {title}')
    return paths


class TrainingPictures:
    """`draw_knowledge` while training: at most once in `rarely` times as long as it takes, so that it costs little
    however fast the updates are. Draws nothing where the data do not fit the environment of their name."""

    def __init__(self, dataset, observations, folder, rarely=30):
        self.folder, self.rarely, self.probe = folder, rarely, None
        self.next = -float('inf')
        env = make_env(dataset)
        if env.observation_space.shape == observations.shape[1:]:
            self.probe = Probe(Maze(env), observations)
        env.close()

    def draw(self, agent, title, last=False):
        """Redraw if it is time to, or for the `last` time."""
        begin = time.perf_counter()
        if self.probe is not None and len(self.probe.xy) and (last or begin > self.next):
            draw_knowledge(self.probe, agent, self.folder, title)
            end = time.perf_counter()
            self.next = end + self.rarely * (end - begin)


def draw_values(probe, look, path, title, reward_scale=0.05, discount=0.99):
    """Heat maps of V(z, z_g), one per task, on one colour scale: equal colours are equal numbers of steps.

    In each title: the rank correlation of V with the walking distance (1: every place in the right order).
    Crosses: maze cells without a better neighbour, where whoever climbs V stays.
    """
    maze = probe.maze
    figure, axes = _panels(maze, title)
    steps = steps_of(look['values'], reward_scale, discount)
    most = np.quantile(steps, 0.98)
    for task, (axis, values) in enumerate(zip(axes[:-1], look['values'], strict=False), 1):
        image = axis.imshow(maze.average(probe.xy, steps[task - 1]), extent=maze.extent, origin='lower',
                            cmap='viridis_r', vmin=0, vmax=most)
        maze.draw(axis, task)
        traps = local_maxima(np.where(maze.walls, np.nan, maze.average(probe.xy, values, 1)))
        traps[maze.fine_cell(maze.goals[task - 1], 1)] = False
        i, j = np.nonzero(traps)
        axis.plot(maze.low[0] + (j + 0.5) * maze.unit, maze.low[1] + (i + 0.5) * maze.unit, 'x', ms=7, mew=2,
                  color=FAILURE, zorder=7)
        order = rank_correlation(values, -maze.distances[task - 1][maze.fine_cell(probe.xy)])
        axis.set_title(f'task {task}: order {order:.2f}', fontsize=TEXT)
    key = axes[-1]
    key.axis('off')
    bar = figure.colorbar(image, cax=key.inset_axes((0.2, 0.02, 0.08, 0.86)))
    bar.ax.invert_yaxis()
    ticks = [t for t in bar.get_ticks() if 0 <= t <= most]
    bar.set_ticks(ticks, labels=[f'{t:.0f}' for t in ticks])
    bar.ax.tick_params(labelsize=SMALL)
    values = bar.ax.secondary_yaxis('left')
    values.set_yticks(ticks, [f'{value_of(t, reward_scale, discount):.1f}' for t in ticks], fontsize=SMALL)
    key.text(0.18, 0.93, '$V$', fontsize=SMALL, ha='right', transform=key.transAxes)
    key.text(0.3, 0.93, 'in steps', fontsize=SMALL, transform=key.transAxes)
    _key(key, [('start', 'o', 'white'), ('goal', '*', '#F0E442'), ('trap', 'x', FAILURE),
               ('no data', 's', 'white')], bbox_to_anchor=(0.48, 0.5), loc='center left')
    save(figure, path)


def value_of(steps, reward_scale, discount):
    """V of a place so many steps from the goal: minus the discounted sum of `reward_scale` per step."""
    return reward_scale * (discount ** np.asarray(steps, float) - 1) / (1 - discount)


def steps_of(values, reward_scale, discount, most=1000):
    """The inverse of `value_of`; at most `most` for values that no number of steps gives."""
    left = np.maximum(1 + np.asarray(values, float) * (1 - discount) / reward_scale, discount ** most)
    return np.log(left) / np.log(discount)


def _key(axis, entries, **options):
    from matplotlib.lines import Line2D
    handles = [Line2D([], [], ls='', marker=marker, label=label, mfc=color, mec=color if marker == 'x' else INK,
                      ms=11 if marker == '*' else 7, mew=2 if marker == 'x' else 1)
               if len(marker) == 1 else Line2D([], [], color=color, lw=2, label=label)
               for label, marker, color in entries]
    axis.legend(handles=handles, fontsize=SMALL, frameon=False, **({'loc': 'center right'} | options))


def local_maxima(grid):
    """grid (rows, columns), NaN where nothing is -> bool mask of cells with no better one of four neighbours."""
    padded = np.pad(np.where(np.isnan(grid), -np.inf, grid), 1, constant_values=-np.inf)
    around = np.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
    return ~np.isnan(grid) & (grid >= around.max(0))


def rank_correlation(a, b):
    """Spearman's correlation of two arrays (n,) of finite numbers, without averaging ties."""
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def draw_proposals(probe, look, path, title):
    """Arrows from places to where f_P(z, z_g) wants to be `transition_steps` later, decoded by `Probe.look`."""
    maze, split = probe.maze, 2
    figure, axes = _panels(maze, title)
    for task, (axis, proposed) in enumerate(zip(axes[:-1], look['proposed_xy'], strict=False), 1):
        maze.draw(axis, task)
        distance = maze.distances[task - 1]
        closer = distance[maze.fine_cell(probe.xy)] - distance[maze.fine_cell(proposed)]
        x, y, to_x, to_y, gain = (maze.average(probe.xy, a, split).ravel() for a in (
            *probe.xy.T, *proposed.T, np.where(np.isfinite(closer), closer, 0.0)))
        seen = ~np.isnan(x)
        color = np.where(gain > 0, GOOD, FAILURE)
        axis.quiver(x[seen], y[seen], (to_x - x)[seen], (to_y - y)[seen], color=color[seen], angles='xy',
                    scale_units='xy', scale=1, width=0.01, headwidth=4, headlength=4.5, headaxislength=4, zorder=3)
        axis.set_title(f'task {task}: {np.mean(gain[seen] > 0):.0%} lead closer', fontsize=TEXT)
    axes[-1].axis('off')
    _key(axes[-1], [('start', 'o', 'white'), ('goal', '*', '#F0E442'), ('leads closer', '--', GOOD),
                    ('leads away', '--', FAILURE)], loc='center')
    save(figure, path)


def place_colors(maze, xy):
    """A colour for each place: the corners of the maze are blue, red, green and yellow, mixed in between."""
    corners = np.array([[(0, 114, 178), (213, 94, 0)], [(0, 158, 115), (240, 228, 66)]]) / 255  # Okabe-Ito
    low, high = maze.low + maze.unit, np.array(maze.extent[1::2]) - maze.unit
    u, v = np.clip((np.asarray(xy) - low) / (high - low), 0, 1).T[..., None]
    return (1 - v) * ((1 - u) * corners[0, 0] + u * corners[1, 0]) + v * ((1 - u) * corners[0, 1] + u * corners[1, 1])


def draw_latents(probe, look, path, title):
    """First two principal components of z and of V's embedding e(z), each point coloured by its place in the maze
    (left). In the titles: how far apart in the maze nearest neighbours are, in maze cells (median)."""
    colors = place_colors(probe.maze, probe.xy)
    figure, axes = _panels(probe.maze, title, 3)
    probe.maze.draw(axes[0])
    axes[0].scatter(*probe.xy.T, c=colors, s=3, lw=0, zorder=3)
    axes[0].set_title('place', fontsize=TEXT)
    for axis, (name, points) in zip(axes[1:], (('$z$', look['z']), ('$e(z)$', look['embeddings'])), strict=True):
        points = points - points.mean(0)
        variance, directions = np.linalg.eigh(points.T @ points)
        share = variance[:-3:-1] / variance.sum()
        axis.scatter(*(points @ directions[:, :-3:-1]).T, c=colors, s=3, lw=0)
        near = torch.cdist(*(torch.from_numpy(points),) * 2).fill_diagonal_(torch.inf).argmin(1).numpy()
        apart = np.median(np.linalg.norm(probe.xy[near] - probe.xy, axis=1)) / probe.maze.unit
        axis.set_title(f'{name}, nearest {apart:.2f} off', fontsize=TEXT)
        axis.margins(y=0.12)
        axis.text(0.98, 0.02, f'{share.sum():.0%} of variance', fontsize=SMALL, ha='right', transform=axis.transAxes)
        axis.set(xticks=[], yticks=[])
    save(figure, path)


def draw_paths(maze, episodes, path, title):
    """Paths of evaluation `episodes` (`run_episodes`'s dicts), one panel per task."""
    figure, axes = _panels(maze, title)
    for task, axis in enumerate(axes[:-1], 1):
        maze.draw(axis, task)
        part = sorted((e for e in episodes if e['task'] == task), key=lambda e: -e['success'])  # failures on top
        for episode in part:
            x, y = episode['observations'][:, :2].T
            if episode['success']:
                axis.plot(x, y, color=TASK_COLORS[task - 1], lw=1.0, alpha=0.75, zorder=3)
            else:
                axis.plot(x, y, color='#444444', lw=0.8, alpha=0.8, zorder=4)
                axis.plot(x[-1], y[-1], 'x', color=FAILURE, ms=7, mew=2, zorder=5)
        axis.set_title(f'task {task}: {sum(bool(e["success"]) for e in part)} of {len(part)} solved', fontsize=TEXT)
    axes[-1].axis('off')
    _key(axes[-1], [('start', 'o', 'white'), ('goal', '*', '#F0E442'),
                    ('solved', '--', TASK_COLORS[0]), ('failed', '--', '#444444'),
                    ('its end', 'x', FAILURE)], loc='center')
    save(figure, path)


@torch.no_grad()
def draw_episode(probe, agent, episode, path, title, every=25):
    """One episode, and every so many steps (dots) what was proposed there: z' of the policy f_P(z, z_g), and the
    goal-biased z + 0.6 (z_g - z), 0.6 being the mean of its alpha. Decoded as `Probe.look` does."""
    maze = probe.maze
    embeddings = probe.embed(agent, probe.encode(agent, probe.observations))
    states = episode['observations'][:-1:every]
    z, z_goal = probe.encode(agent, states), probe.encode(agent, episode['goal'][None])
    proposals = {'policy: $f_P(z, z_g)$': (agent.nets['proposer'](z, z_goal.expand_as(z)), TASK_COLORS[0]),
                 'biased: $z + 0.6\\,(z_g - z)$': (z + 0.6 * (z_goal - z), TASK_COLORS[1])}
    figure, axes = _panels(maze, title, 2, 2)
    for axis, (name, (proposed, color)) in zip(axes, proposals.items(), strict=True):
        maze.draw(axis, episode['task'])
        axis.plot(*episode['observations'][:, :2].T, color='#888888', lw=1.2, zorder=2)
        xy, to = states[:, :2], probe.decode(embeddings, probe.embed(agent, proposed))
        axis.quiver(*xy.T, *(to - xy).T, color=color, angles='xy', scale_units='xy', scale=1, width=0.011,
                    headwidth=4, headlength=4.5, headaxislength=4, zorder=4)
        axis.plot(*xy.T, 'o', color=INK, ms=2.5, zorder=5)
        axis.set_title(name, fontsize=TEXT)
    save(figure, path)


def draw_plan(maze, state_map, path, title):
    """The `StateMap` of the data: its edges, its nodes coloured by their cost to each task's goal, in hops, and the
    plan from the task's start. Crosses: nodes from which no path leads there. A hop is a little longer than what is
    walked in its steps, since it leads from anywhere in one node to anywhere in the next."""
    from matplotlib.collections import LineCollection
    figure, axes = _panels(maze, title)
    xy = state_map.states[:, :2]
    edges = np.stack([xy[state_map.sources], xy[state_map.targets]], 1)
    goals = state_map.locate(maze.goal_observations)
    # a task is known by the place where it starts, so that any node there will do
    starts = [int(np.linalg.norm(xy - start, axis=1).argmin()) for start in maze.starts]
    hops = [state_map.distances(goal) / state_map.hop if goal >= 0 else np.full(len(xy), np.inf) for goal in goals]
    finite = np.concatenate(hops)
    finite = finite[np.isfinite(finite)]
    most = np.quantile(finite, 0.98) if len(finite) else 1.0

    for task, (axis, distance) in enumerate(zip(axes[:-1], hops, strict=False), 1):
        maze.draw(axis, task)
        axis.add_collection(LineCollection(edges, colors=EDGE, linewidths=0.25, alpha=0.35, zorder=2, rasterized=True))
        reached = np.isfinite(distance)
        image = axis.scatter(*xy[reached].T, c=distance[reached], cmap='viridis_r', vmin=0, vmax=most, s=4, lw=0,
                             zorder=3)
        axis.plot(*xy[~reached].T, 'x', color=INK, ms=2.5, mew=0.7, zorder=3)

        way = state_map.path(starts[task - 1], goals[task - 1])
        axis.plot(*xy[way].T, '-', color='white', lw=3.2, zorder=4)
        axis.plot(*xy[way].T, '-o', color=PLAN, lw=1.6, ms=2.6, zorder=5)
        length = f'{len(way) - 1} hops' if way else 'no path'
        axis.set_title(f'task {task}: {length}', fontsize=TEXT)

    key = axes[-1]
    key.axis('off')
    bar = figure.colorbar(image, cax=key.inset_axes((0.12, 0.04, 0.08, 0.82)))
    bar.ax.invert_yaxis()
    bar.ax.tick_params(labelsize=SMALL)
    key.text(0.12, 0.92, f'hops of {state_map.hop} steps to the goal', fontsize=SMALL, transform=key.transAxes)
    entries = [('start', 'o', 'white'), ('goal', '*', '#F0E442'), ('plan', '--', PLAN), ('edges', '--', EDGE)]
    if not all(np.isfinite(distance).all() for distance in hops):
        entries.append(('no path', 'x', INK))
    _key(key, entries, bbox_to_anchor=(0.44, 0.45), loc='center left')
    save(figure, path)
