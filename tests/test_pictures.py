"""Test figures along trajectories, for environments without a maze, with agents whose V is known."""

import numpy as np
import pytest
import torch

from figures import pictures
from figures.maze_figures import value_of
from figures.pictures import (
    TrainingPictures,
    draw_episode_values,
    draw_trajectories,
    estimated_steps,
    last_segments,
    open_maze,
    quartiles_of,
)
from rollouts import Episode
from support.figures import FAILURE, TASK_COLORS
from trajectories import TrajectoryDataset

ANT = 'antmaze-medium-navigate-v0'


@pytest.fixture
def figures(monkeypatch):
    """Return the list of (file name, figure) passed to `save`."""
    saved = []
    monkeypatch.setattr(pictures, 'save', lambda figure, path: saved.append((path.name, figure)))
    return saved


def line(length, dim=5):
    """Return states (length, dim) whose first dimension counts the steps."""
    states = np.zeros((length, dim), np.float32)
    states[:, 0] = np.arange(length)
    return states


def dataset(*lengths):
    """Return a dataset of a `line` for each length."""
    ends = np.cumsum(lengths) - 1
    return TrajectoryDataset(np.concatenate([line(n) for n in lengths]), np.append(0, ends[:-1] + 1), ends)


@pytest.fixture
def counting_agent(make_agent, stub):
    """Return an agent with z = s whose V is the difference of the first dimension in steps."""
    agent = make_agent()

    def value(z, z_goal):
        steps = (z - z_goal)[..., 0].abs()
        values = value_of(steps.numpy(), agent.config.reward_scale, agent.config.discount)
        return torch.as_tensor(values).expand(2, -1)

    network = stub(value)
    network.embed = lambda z: z.expand(2, *z.shape)
    agent.targets['value'] = network
    agent.targets['encoder'].encode_features = lambda states: states
    return agent


def titles(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def test_estimated_steps_convert_v_to_steps(counting_agent):
    steps = estimated_steps(counting_agent, line(60), line(60)[-1])
    np.testing.assert_allclose(steps, np.arange(60)[::-1], atol=1e-2)


def test_last_segments_are_the_ends_of_long_trajectories():
    segments = last_segments(dataset(*[400] * 20, 30))
    assert len(segments) == 6
    for states in segments:
        np.testing.assert_array_equal(states[:, 0], np.arange(99, 400))


def test_last_segments_of_short_trajectories_are_whole():
    assert [len(states) for states in last_segments(dataset(40, 30))] == [40, 30]


def test_draw_trajectories_compares_v_with_elapsed_steps(counting_agent, figures, tmp_path):
    counting_agent.config.discount = 0.99
    paths = draw_trajectories(dataset(50, 40), counting_agent, tmp_path, 'title')
    names = [path.name for path in paths]
    assert names == [name for name, _ in figures] == ['trajectory_values.png', 'trajectory_latents.png']

    values, latents = (figure for _, figure in figures)
    assert titles(values) == ['Spearman 1.00', 'Spearman 1.00']
    elapsed, estimated = values.axes[0].lines
    np.testing.assert_allclose(estimated.get_xydata(), elapsed.get_xydata(), atol=0.02)

    for axis in latents.axes[:2]:
        assert axis.get_title().endswith('100% of variance')
        goals, = (marks.get_xydata() for marks in axis.lines)
        assert len(goals) == 2
        colors = axis.collections[0].get_array()
        np.testing.assert_array_equal(colors, [*range(50)[::-1], *range(40)[::-1]])


def test_draw_episode_values_has_a_panel_per_task_and_marks_failures(counting_agent, figures, tmp_path):
    goal = line(40)[-1]
    episodes = [Episode(0, task, 0, goal, line(40 if success else 20), np.zeros((0, 2)), success=success)
                for task in range(1, 8) for success in (1.0, 0.0)]
    draw_episode_values(counting_agent, episodes, tmp_path / 'x.png', 'title')
    (_, figure), = figures
    assert titles(figure) == [f'task {task}: 1 of 2 solved' for task in range(1, 8)]
    for task, axis in enumerate(figure.axes[:7], 1):
        colors = [drawn.get_color() for drawn in axis.lines]
        assert colors.count(TASK_COLORS[(task - 1) % 5]) == 1 and colors.count(FAILURE) == 1
        cross, = (drawn for drawn in axis.lines if drawn.get_marker() == 'x')
        assert cross.get_xdata() == [19] and cross.get_ydata()[0] == pytest.approx(20, abs=0.02)


def test_draw_episode_values_draws_many_solved_episodes_as_a_band(counting_agent, figures, tmp_path):
    goal = line(40)[-1]
    lengths = [20, 30, 40, 40, 40, 40, 40, 40]
    episodes = [Episode(0, 1, 0, goal, line(40)[:n], np.zeros((0, 2)), success=1.0) for n in lengths]
    draw_episode_values(counting_agent, episodes, tmp_path / 'x.png', 'title')
    axis = figures[0][1].axes[0]
    assert [len(drawn.get_xdata()) for drawn in axis.lines] == [40] and len(axis.collections) == 1
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ['median', 'middle half']


def test_quartiles_are_over_all_curves_and_keep_the_last_values():
    low, median, high = quartiles_of([np.array([4.0, 2]), np.array([6.0, 4, 2, 0]), np.array([8.0, 6, 4])])
    np.testing.assert_allclose(median, [6, 4, 2, 2])
    np.testing.assert_allclose(low, [5, 3, 2, 1])
    np.testing.assert_allclose(high, [7, 5, 3, 3])


def test_open_maze_returns_none_without_a_maze():
    assert open_maze('antsoccer-arena-stitch-v0').goals.shape == (5, 2)
    assert open_maze('cube-single-play-v0') is None


def test_maze_positions_in_soccer_are_those_of_the_ball():
    """The ball has to reach the goal: dimensions 15 and 16 of a state."""
    maze = open_maze('antsoccer-medium-navigate-v0')
    np.testing.assert_allclose(maze.positions(maze.goal_observations), maze.goals, atol=2 ** 0.5)
    assert maze.columns == [15, 16]
    starts = np.array([maze.starts[k] for k in range(5)])
    assert len(np.unique(starts, axis=0)) == 5


def test_training_pictures_are_rare_and_always_drawn_at_the_end(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, 'draw_agent', lambda *args: drawn.append('maze'))
    monkeypatch.setattr(pictures, 'draw_trajectories', lambda *args: drawn.append('trajectories'))
    rng = np.random.default_rng(0)

    def data(low, high, dim):
        states = rng.standard_normal((2000, dim)).astype(np.float32)
        states[:, :2] = rng.uniform(low, high, (2000, 2))
        return TrajectoryDataset(states, np.array([0]), np.array([1999]))

    never = TrainingPictures(ANT, data(0, 20, 29), tmp_path, rarity=1e9)
    for last in (False, False, True):
        never.draw(None, 'title', last)
    assert drawn == ['maze'] * 2, 'the first and the last'

    always = TrainingPictures(ANT, data(0, 20, 29), tmp_path, rarity=0)
    for _ in range(3):
        always.draw(None, 'title')
    assert drawn == ['maze'] * 5

    TrainingPictures(ANT, data(0, 20, 5), tmp_path).draw(None, 'title', last=True)
    TrainingPictures(ANT, data(-1000, -900, 29), tmp_path).draw(None, 'title', last=True)
    assert drawn[5:] == ['trajectories'] * 2, 'other dimensions, and positions outside the maze'

    TrainingPictures('cube-single-play-v0', data(0, 1, 28), tmp_path).draw(None, 'title', last=True)
    assert drawn[7:] == ['trajectories']
