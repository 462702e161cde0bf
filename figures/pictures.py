"""Draw the figures of a run: on its maze if it has one (figures/maze_figures.py), else along trajectories.

    draw_trajectory_values   V along trajectories toward their last state
    draw_trajectory_latents  principal components of the latents, coloured by the time to the goal
    draw_episode_values      V along evaluation episodes

V is converted to the number of steps that it stands for, so that it can be compared with elapsed steps.
Latents are those of single states, f(s_t).
"""

import numpy as np
import torch

from environments.checks import closing
from figures.maze_figures import (
    FAILED_PATH_COLOR,
    GOAL_COLOR,
    LABEL_SIZE,
    TITLE_SIZE,
    Maze,
    Probe,
    draw_agent,
    draw_paths,
    make_panels,
    principal_components,
    steps_of,
)
from observing.observation_models import FULL_STATE
from ogbench_utils import make_env
from support.figures import FAILURE, INK, TASK_COLORS, Seldom, default_style, save

NUM_SEGMENTS = 6  # trajectories that are drawn
SEGMENT_STEPS = 300  # steps of each, the last ones, at most
MOST_LINES = 5  # episodes of a task that are drawn one by one


def open_maze(name, observation_model=FULL_STATE):
    """Return `maze_of` the environment of a name, which is closed."""
    with closing(make_env(name)) as env:
        return maze_of(observation_model.wrap(env), observation_model)


def maze_of(env, observation_model=FULL_STATE):
    """Return the `Maze` of an environment, observed by `observation_model`; None if there is none to draw.

    A maze of OGBench is drawn, unless its observations are turned.
    """
    required = ('maze_map', 'ij_to_xy', 'task_infos', '_maze_unit')
    has_map = all(hasattr(env.unwrapped, name) for name in required)
    return Maze(env, observation_model) if has_map and observation_model.has_dimensions else None


class TrainingPictures:
    """Figures of an offline agent on a `TrajectoryDataset`, redrawn while it trains.

    `rarity` is that of `Seldom`. Data that do not fit the maze of their name, or lie
    outside it, are drawn along their trajectories.
    """

    def __init__(self, name, data, folder, observation_model=FULL_STATE, format='png', rarity=30):
        self.data = data
        self.folder = folder
        self.format = format
        self.seldom = Seldom(rarity)
        self.probe = None

        maze = open_maze(name, observation_model)
        if maze and maze.goal_observations.shape[1:] == data.observations.shape[1:]:
            probe = Probe(maze, data.observations)
            self.probe = probe if len(probe.xy) else None

    def draw(self, agent, title, last=False):
        """Redraw if the waiting time is over, or if this is the `last` call."""
        function, data = (draw_agent, self.probe) if self.probe else (draw_trajectories, self.data)
        self.seldom.draw(lambda: function(data, agent, self.folder, title, self.format), last)


def draw_evaluation(maze, agent, episodes, path, title):
    """Draw the paths of evaluation episodes (`rollouts.Episode`) on the maze, or V along them without one."""
    if maze:
        draw_paths(maze, episodes, path, title)
    else:
        draw_episode_values(agent, episodes, path, title)


def draw_trajectories(data, agent, folder, title, format='png'):
    """Draw trajectory_values and trajectory_latents of an `OfflineAgent` in a format; return their paths."""
    segments = last_segments(data)
    values = folder / f'trajectory_values.{format}'
    latents = folder / f'trajectory_latents.{format}'
    draw_trajectory_values(segments, agent, values, f'Value along trajectories, {title}')
    draw_trajectory_latents(segments, agent, latents, f'Latents, {title}')
    return [values, latents]


def last_segments(data):
    """Return the last `SEGMENT_STEPS` + 1 states (T, S) of each of `NUM_SEGMENTS` trajectories, as a list.

    The trajectories are spread evenly over those that are long enough, or over all if none is.
    """
    candidates = np.flatnonzero(data.ends - data.starts >= SEGMENT_STEPS)
    if not len(candidates):
        candidates = np.arange(len(data.ends))

    spread = np.linspace(0, len(candidates) - 1, NUM_SEGMENTS).astype(int)
    chosen = candidates[np.unique(spread)]
    first = np.maximum(data.starts[chosen], data.ends[chosen] - SEGMENT_STEPS)
    return [data.observations[i:j + 1] for i, j in zip(first, data.ends[chosen], strict=True)]


@torch.no_grad()
def estimated_steps(agent, states, goal):
    """Return the number of steps (T,) from each of the states (T, S) to the goal (S,) that V stands for."""
    z = Probe.encode(agent, states)
    z_goal = Probe.encode(agent, goal[None]).expand_as(z)
    values = agent.targets['value'](z, z_goal).mean(0).cpu().numpy()
    return steps_of(values, agent.config.reward_scale, agent.config.discount)


@default_style()
def draw_trajectory_values(segments, agent, path, title):
    """Draw the steps to the last state of each trajectory: those left (dashed), estimated by V (solid).

    An optimistic V lies below the steps left. Each title has Spearman's rank correlation of the two.
    """
    from scipy.stats import spearmanr

    figure, axes = _make_plots(len(segments), title)
    for axis, states in zip(axes, segments, strict=True):
        left = np.arange(len(states))[::-1]
        steps = estimated_steps(agent, states, states[-1])
        axis.plot(left, left, '--', color=FAILED_PATH_COLOR, lw=1, label='steps left')
        axis.plot(left, steps, color=TASK_COLORS[0], lw=1.4, label='V')
        axis.invert_xaxis()

        correlation = spearmanr(steps, left).statistic if np.ptp(steps) else 0.0
        axis.set_title(f'Spearman {correlation:.2f}', fontsize=TITLE_SIZE)

    axes[0].legend(fontsize=LABEL_SIZE, frameon=False)
    _label(figure, 'steps before the last state', 'steps to the last state')
    save(figure, path)


@default_style()
@torch.no_grad()
def draw_trajectory_latents(segments, agent, path, title):
    """Draw two principal components of z and of V's embedding e(z), coloured by the time to the goal.

    The goal of each trajectory is its last state (star).
    """
    z = Probe.encode(agent, np.concatenate(segments))
    clouds = {'$z$': z.cpu().numpy(), '$e(z)$': Probe.embed(agent, z).cpu().numpy()}
    remaining = np.concatenate([np.arange(len(states))[::-1] for states in segments])
    goals = np.cumsum([len(states) for states in segments]) - 1

    figure, axes = make_panels(2, title, size=(3.2, 3.0))
    for axis, (name, points) in zip(axes, clouds.items(), strict=True):
        components, share = principal_components(points)
        dots = axis.scatter(*components.T, c=remaining, cmap='viridis_r', s=4, lw=0)
        axis.plot(*components[goals].T, '*', ls='', ms=11, mfc=GOAL_COLOR, mec=INK, mew=0.9)
        axis.set_title(f'{name}, {share:.0%} of variance', fontsize=TITLE_SIZE)
        axis.set(xticks=[], yticks=[])

    bar = figure.colorbar(dots, ax=list(axes), label='steps to the goal')
    bar.ax.invert_yaxis()
    save(figure, path)


@default_style()
def draw_episode_values(agent, episodes, path, title):
    """Draw V's estimate of the steps to the goal along evaluation episodes, one panel for each task.

    Up to `MOST_LINES` solved episodes are single lines. Of more, the median and the middle half are drawn; an
    episode that has ended keeps its last value. The first failed ones are dark and end in a cross.
    """
    tasks = sorted({episode.task for episode in episodes})
    figure, axes = _make_plots(len(tasks), title)
    entries = {}  # of the legend: label -> artist
    for axis, task in zip(axes, tasks, strict=True):
        task_episodes = [episode for episode in episodes if episode.task == task]
        task_color = TASK_COLORS[(task - 1) % len(TASK_COLORS)]
        curves = [estimated_steps(agent, episode.observations, episode.goal) for episode in task_episodes]
        solved = [curve for curve, episode in zip(curves, task_episodes, strict=True) if episode.success]
        failed = [curve for curve, episode in zip(curves, task_episodes, strict=True) if not episode.success]

        # solved episodes
        if len(solved) > MOST_LINES:
            low, median, high = quartiles_of(solved)
            band = axis.fill_between(np.arange(len(median)), low, high, color=task_color, alpha=0.25, lw=0)
            line, = axis.plot(median, color=task_color, lw=1.6)
            entries = {'median': line, 'middle half': band} | entries
        else:
            for curve in solved:
                entries['solved'], = axis.plot(curve, color=task_color, lw=1.0, alpha=0.8)

        # failures
        for curve in failed[:MOST_LINES]:
            axis.plot(curve, color=FAILED_PATH_COLOR, lw=0.8, alpha=0.8)
            entries['failure'], = axis.plot(len(curve) - 1, curve[-1], 'x', color=FAILURE, ms=7, mew=2)

        axis.set_title(f'task {task}: {len(solved)} of {len(task_episodes)} solved', fontsize=TITLE_SIZE)
        axis.set_ylim(bottom=0)

    # the legend stands in an empty place, if there is one
    *_, place = figure.axes
    if len(figure.axes) == len(axes):
        place = axes[0]
    else:
        place.set_visible(True)
        place.axis('off')
    place.legend(entries.values(), entries, fontsize=LABEL_SIZE - 1, frameon=False, handlelength=1.2,
                 labelspacing=0.2)
    _label(figure, 'environment step', 'steps to the goal (V)')
    save(figure, path)


def quartiles_of(curves):
    """Return the quartiles, three arrays (T,), over curves of different lengths; a curve keeps its last value."""
    longest = max(map(len, curves))
    values = [np.pad(curve, (0, longest - len(curve)), mode='edge') for curve in curves]
    return np.quantile(values, [0.25, 0.5, 0.75], axis=0)


def _make_plots(count, title):
    """Return a figure with `count` plots, up to three side by side."""
    figure, axes = make_panels(count, title)
    for axis in axes:
        axis.spines[['top', 'right']].set_visible(False)
    return figure, axes


def _label(figure, x, y):
    figure.supxlabel(x, fontsize=LABEL_SIZE)
    figure.supylabel(y, fontsize=LABEL_SIZE)
