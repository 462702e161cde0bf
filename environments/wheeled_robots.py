"""Two small robots on wheels, for --env: angles that wrap, and a robot that cannot move sideways.

    python scripts/data/collect_gymnasium.py --robot rover
    python offline_trainer.py --env environments.wheeled_robots:rover --dataset_path datasets/rover.npz

    two_wheels   two wheels without end stops, both turned to given angles
    rover        differential drive that goes to a position in a room
"""

import gymnasium
import numpy as np
from gymnasium.spaces import Box


def wrap(angles):
    """Return angles in [-pi, pi), in radians."""
    return (angles + np.pi) % (2 * np.pi) - np.pi


class TwoWheels(gymnasium.Env):
    """A state is the two angles, in radians, which wrap; an action turns each wheel by at most 0.1 rad."""

    observation_space = Box(-np.pi, np.pi, (2,))
    action_space = Box(-0.1, 0.1, (2,))
    tolerance = 0.15  # rad from the goal

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.angles, self.goal = self.np_random.uniform(-np.pi, np.pi, (2, 2))
        return self.angles.astype(np.float32), {'goal': self.goal.astype(np.float32)}

    def step(self, action):
        self.angles = wrap(self.angles + np.clip(action, -0.1, 0.1))
        success = bool(np.abs(wrap(self.angles - self.goal)).max() < self.tolerance)
        return self.angles.astype(np.float32), float(success), success, False, {'success': success}


class Rover(gymnasium.Env):
    """A robot with two driven wheels in a room of 6 m.

    A state is x, y in m, the heading in rad, which wraps, and the speeds of the left and the right wheel in m/s.
    An action accelerates the wheels. At a wall the robot stops.
    """

    observation_space = Box(-np.inf, np.inf, (5,))
    action_space = Box(-1, 1, (2,))
    room = 3.0  # m from the center to a wall
    axle = 0.3  # m between the wheels
    period = 0.1  # s of a step
    acceleration = 2.0  # m/s^2 at full action
    top_speed = 1.0  # m/s of a wheel
    friction = 0.05  # share of the speed that a step loses
    tolerance = 0.3  # m from the goal

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        x, y, goal_x, goal_y = self.np_random.uniform(-0.9 * self.room, 0.9 * self.room, 4)
        self.state = np.array([x, y, self.np_random.uniform(-np.pi, np.pi), 0, 0])
        self.goal = np.array([goal_x, goal_y])
        return self.state.astype(np.float32), {'goal': np.array([goal_x, goal_y, np.nan, np.nan, np.nan], np.float32)}

    def step(self, action):
        x, y, heading, *speeds = self.state

        # wheels
        change = np.clip(action, -1, 1) * self.acceleration * self.period
        speeds = np.clip((1 - self.friction) * np.array(speeds) + change, -self.top_speed, self.top_speed)

        # body
        heading = wrap(heading + self.period * (speeds[1] - speeds[0]) / self.axle)
        moved = self.period * speeds.mean() * np.array([np.cos(heading), np.sin(heading)])
        position = np.array([x, y]) + moved
        if np.abs(position).max() > self.room:
            position = np.clip(position, -self.room, self.room)
            speeds = np.zeros(2)

        self.state = np.array([*position, heading, *speeds])
        success = bool(np.linalg.norm(position - self.goal) < self.tolerance)
        return self.state.astype(np.float32), float(success), success, False, {'success': success}


def two_wheels(render_mode=None):
    return gymnasium.wrappers.TimeLimit(TwoWheels(), 150)


def rover(render_mode=None):
    return gymnasium.wrappers.TimeLimit(Rover(), 200)
