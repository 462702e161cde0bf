"""Robots of gymnasium-robotics, for --env (requirements-robots.txt).

    python offline_trainer.py --env environments.robots:fetch_reach --dataset_path fetch_reach.npz

`scripts/data/collect_robots.py` collects their data.
"""

import gymnasium
import gymnasium_robotics

gymnasium.register_envs(gymnasium_robotics)


def fetch_reach(render_mode=None):
    """Return an arm whose gripper goes to a position in the air and stays there."""
    return gymnasium.make('FetchReach-v4', render_mode=render_mode)


def fetch_push(render_mode=None):
    """Return an arm that pushes a cube to a position on the table."""
    return gymnasium.make('FetchPush-v4', render_mode=render_mode)


def point_maze(render_mode=None):
    """Return a point that goes to a position in a maze and stays there."""
    return gymnasium.make('PointMaze_UMaze-v3', render_mode=render_mode)


def point_maze_end(render_mode=None):
    """Return the same maze with episodes that end at the goal."""
    return gymnasium.make('PointMaze_UMaze-v3', render_mode=render_mode, continuing_task=False)
