"""The pictures of a run: on its maze where there is one (figures/maze_figures.py), along trajectories everywhere else.

    draw_trajectory_values   V along trajectories toward their last state: does it rise as the goal comes nearer?
    draw_trajectory_latents  the latents in two dimensions, coloured by the time to the goal: are they in order?
    draw_episode_values      V along evaluation episodes: where does a failed one stop to come nearer?

V is shown as the number of steps that it stands for, so that it can be compared with the steps that were taken. A
latent is f(s_t), a sequence of length one, as in maze_figures.
"""

import time

import numpy as np
import torch

from figures.maze_figures import (
    FAILED_PATH,
    SMALL,
    TEXT,
    Maze,
    Probe,
    draw_knowledge,
    draw_paths,
    principal_components,
    steps_of,
)
from observing.observation_models import FULL_STATE
from ogbench_utils import make_env
from support.figures import FAILURE, INK, TASK_COLORS, pyplot, save

PIECES = 6  # trajectories that are shown
STEPS = 300  # at most, of each: its last ones


def open_maze(name, observation_model=FULL_STATE):
    """The `Maze` of an environment's name, its goals as `observation_model` show them; None where it has none."""
    env = make_env(name)
    maze = Maze(env, observation_model) if hasattr(env.unwrapped, 'maze_map') else None
    env.close()
    return maze


class TrainingPictures:
    """What an offline agent knows of a `TrajectoryDataset`, drawn while training, at most once in `rarity` times as
    long as it takes, so that it costs little however fast the updates are. Data that do not fit the maze of their name,
    or lie outside it, are drawn along their trajectories."""

    def __init__(self, name, data, folder, observation_model=FULL_STATE, rarity=30):
        self.data = data
        self.folder = folder
        self.rarity = rarity
        self.next_time = -float('inf')
        self.probe = None

        maze = open_maze(name, observation_model)
        if maze and maze.goal_observations.shape[1:] == data.observations.shape[1:]:
            probe = Probe(maze, data.observations)
            self.probe = probe if len(probe.xy) else None

    def draw(self, agent, title, last=False):
        """Redraw if it is time to, or for the `last` time."""
        begin = time.perf_counter()
        if last or begin > self.next_time:
            if self.probe:
                draw_knowledge(self.probe, agent, self.folder, title)
            else:
                draw_trajectories(self.data, agent, self.folder, title)
            end = time.perf_counter()
            self.next_time = end + self.rarity * (end - begin)


def draw_evaluation(maze, agent, episodes, path, title):
    """Evaluation episodes (`rollouts.Episode`) of an `OfflineAgent`: their paths on the maze, or V along them."""
    if maze:
        draw_paths(maze, episodes, path, title)
    else:
        draw_episode_values(agent, episodes, path, title)


def draw_trajectories(data, agent, folder, title):
    """trajectory_values.png and trajectory_latents.png of an `OfflineAgent` in `folder` -> their paths."""
    pieces = last_pieces(data)
    values, latents = (folder / f'trajectory_{name}.png' for name in ('values', 'latents'))
    draw_trajectory_values(pieces, agent, values, f'Value along trajectories, {title}')
    draw_trajectory_latents(pieces, agent, latents, f'Latents, {title}')
    return [values, latents]


def last_pieces(data):
    """-> list of states (T, S): the last `STEPS` + 1 of `PIECES` trajectories, evenly spread over those with that
    many, or over all where none is so long."""
    long = np.flatnonzero(data.ends - data.starts >= STEPS)
    if not len(long):
        long = np.arange(len(data.ends))
    chosen = long[np.unique(np.linspace(0, len(long) - 1, PIECES).astype(int))]
    first = np.maximum(data.starts[chosen], data.ends[chosen] - STEPS)
    return [data.observations[i:j + 1] for i, j in zip(first, data.ends[chosen], strict=True)]


@torch.no_grad()
def steps_to(agent, states, goal):
    """states (T, S), goal (S,) -> (T,), how many steps V says there are to the goal."""
    z = Probe.encode(agent, states)
    z_goal = Probe.encode(agent, goal[None]).expand_as(z)
    values = agent.targets['value'](z, z_goal).mean(0).cpu().numpy()
    return steps_of(values, agent.config.reward_scale, agent.config.discount)


def draw_trajectory_values(pieces, agent, path, title):
    """Steps to the last state of each trajectory, as V sees them (line) and as they were taken (dashes). V is
    optimistic: below the dashes it knows a shorter way. In each title: the rank correlation of V with the time."""
    from scipy.stats import spearmanr

    figure, axes = _panels(len(pieces), title)
    for axis, states in zip(axes, pieces, strict=True):
        left = np.arange(len(states))[::-1]
        steps = steps_to(agent, states, states[-1])
        axis.plot(left, left, '--', color=FAILED_PATH, lw=1, label='taken')
        axis.plot(left, steps, color=TASK_COLORS[0], lw=1.4, label='by V')
        axis.invert_xaxis()
        order = spearmanr(steps, left).statistic if np.ptp(steps) else 0.0
        axis.set_title(f'order {order:.2f}', fontsize=TEXT)
    axes[0].legend(fontsize=SMALL, frameon=False)
    _label(figure, 'steps before the goal', 'steps to the goal')
    save(figure, path)


@torch.no_grad()
def draw_trajectory_latents(pieces, agent, path, title):
    """First two principal components of z and of V's embedding e(z) of the trajectories, each state coloured by the
    time to the goal, which is the last state of its trajectory (star)."""
    z = Probe.encode(agent, np.concatenate(pieces))
    clouds = {'$z$': z.cpu().numpy(), '$e(z)$': Probe.embed(agent, z).cpu().numpy()}
    left = np.concatenate([np.arange(len(states))[::-1] for states in pieces])
    goals = np.cumsum([len(states) for states in pieces]) - 1

    figure, axes = pyplot().subplots(1, 2, figsize=(6.4, 3.2), layout='constrained')
    figure.suptitle(title, fontsize=TEXT)
    for axis, (name, points) in zip(axes, clouds.items(), strict=True):
        xy, share = principal_components(points)
        dots = axis.scatter(*xy.T, c=left, cmap='viridis_r', s=4, lw=0)
        axis.plot(*xy[goals].T, '*', ls='', ms=11, mfc='#F0E442', mec=INK, mew=0.9)
        axis.set_title(f'{name}, {share:.0%} of variance', fontsize=TEXT)
        axis.set(xticks=[], yticks=[])
    bar = figure.colorbar(dots, ax=axes, label='steps to the goal')
    bar.ax.invert_yaxis()
    save(figure, path)


def draw_episode_values(agent, episodes, path, title):
    """Steps to the goal, as V sees them, along evaluation episodes, one panel per task: failed ones are dark and end in
    a cross."""
    tasks = sorted({episode.task for episode in episodes})
    figure, axes = _panels(len(tasks), title)
    for axis, task in zip(axes, tasks, strict=True):
        part = [episode for episode in episodes if episode.task == task]
        for episode in sorted(part, key=lambda episode: -episode.success):  # failures on top
            steps = steps_to(agent, episode.observations, episode.goal)
            color = TASK_COLORS[(task - 1) % len(TASK_COLORS)] if episode.success else FAILED_PATH
            axis.plot(steps, color=color, lw=0.9, alpha=0.8)
            if not episode.success:
                axis.plot(len(steps) - 1, steps[-1], 'x', color=FAILURE, ms=7, mew=2)

        solved = sum(bool(episode.success) for episode in part)
        axis.set_title(f'task {task}: {solved} of {len(part)} solved', fontsize=TEXT)
        axis.set_ylim(bottom=0)
    _label(figure, 'step of the episode', 'steps to the goal')
    save(figure, path)


def _panels(count, title):
    """-> (figure, axes (count,)): up to three side by side."""
    columns = min(count, 3)
    rows = -(-count // columns)
    size = (max(2.3 * columns, 3.2), 2.0 * rows + 0.6)
    figure, axes = pyplot().subplots(rows, columns, figsize=size, squeeze=False, layout='constrained')
    figure.suptitle(title, fontsize=TEXT)
    for axis in axes.flat:
        axis.tick_params(labelsize=SMALL)
        axis.spines[['top', 'right']].set_visible(False)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, axes.flat[:count]


def _label(figure, x, y):
    figure.supxlabel(x, fontsize=SMALL)
    figure.supylabel(y, fontsize=SMALL)
