"""Controllers of scripts/data/collect_robots.py, without the simulators of gymnasium-robotics."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts' / 'data'))

import collect_robots  # noqa: E402

STEP = 0.04  # metres per step at an action of 1
CONTACT = 0.045  # distance of gripper and cube in contact


def clipped(controller, state, goal):
    return np.clip(controller.action(state, goal), -1, 1)[:3]


def test_reach_stops_at_its_goal():
    controller = collect_robots.Reach(None, np.random.default_rng(0))
    place, goal = np.array([1.34, 0.75, 0.53]), np.array([1.2, 0.85, 0.4])
    for _ in range(30):
        place = place + STEP * clipped(controller, place, goal)
    assert controller.distance(place, goal) < 0.001


@pytest.mark.parametrize('goal', [(1.4, 0.75), (1.25, 0.65), (1.34, 0.88)])
def test_push_brings_a_cube_to_its_goal_from_behind(goal):
    controller = collect_robots.Push(None, np.random.default_rng(0))
    cube, grip, goal = np.array([1.34, 0.75, 0.42]), np.array([1.4, 0.8, 0.53]), np.array([*goal, 0.42])
    for _ in range(60):
        grip = grip + STEP * clipped(controller, np.concatenate([cube, grip]), goal)
        way = cube[:2] - grip[:2]
        if grip[2] < cube[2] + 0.03 and np.linalg.norm(way) < CONTACT:
            cube[:2] = grip[:2] + CONTACT * way / np.linalg.norm(way)
    assert controller.distance(cube, goal) < controller.near
    assert grip[2] > cube[2] + 0.05, 'it leaves the cube at its goal'


def test_point_maze_goes_around_the_wall():
    walls = [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
    maze = SimpleNamespace(maze_map=walls, cell_rowcol_to_xy=lambda cell: np.array(cell, float),
                           cell_xy_to_rowcol=lambda xy: np.round(xy).astype(int))
    controller = collect_robots.PointMaze(SimpleNamespace(unwrapped=SimpleNamespace(maze=maze)), None)
    place, goal, cells = np.array([1.0, 1.0]), np.array([3.0, 1.2]), []
    for _ in range(300):
        place = place + 0.1 * np.clip(controller.action(np.append(place, [0, 0]), goal), -1, 1)
        cells.append(tuple(np.round(place).astype(int).tolist()))
    assert controller.distance(place, goal) < 0.01
    assert list(dict.fromkeys(cells)) == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
