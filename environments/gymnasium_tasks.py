"""Tasks of gymnasium as environments with goals: Pendulum, MountainCar and Reacher.

    python offline_trainer.py --env environments.gymnasium_tasks:reacher --dataset_path datasets/reacher.npz

scripts/data/collect_gymnasium.py makes the data. Functions and success:

    pendulum      upright at the end: within 0.2 rad, at most 1 rad/s
    mountain_car  at the flag, where the episode ends
    reacher       fingertip within 2 cm of the target at the end
"""

import gymnasium
import numpy as np


class GoalTask(gymnasium.Wrapper):
    """An environment of gymnasium with a goal.

    Subclasses define the size of a state, `state`, `goal` and `success` of an observation.
    """

    size = 0  # dimensions of a state

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self.size,))

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed)
        return self.state(observation), info | {'goal': self.goal(observation)}

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        success = bool(self.success(observation))
        return self.state(observation), reward, terminated, truncated, info | {'success': success}

    def state(self, observation):
        """Return the state (S,) of an observation, float32."""
        return np.asarray(observation, np.float32)


class Pendulum(GoalTask):
    """A state is the cosine and sine of the angle, 0 upright, and the angular velocity in rad/s."""

    size = 3

    def goal(self, observation):
        return np.array([1, 0, 0], np.float32)

    def success(self, observation):
        cosine, sine, velocity = observation
        return abs(np.arctan2(sine, cosine)) < 0.2 and abs(velocity) < 1


class MountainCar(GoalTask):
    """A state is the position, 0.45 at the flag, and the velocity per step."""

    size = 2

    def goal(self, observation):
        return np.array([0.45, 0], np.float32)

    def success(self, observation):
        return observation[0] >= 0.45


class Reacher(GoalTask):
    """A state is the fingertip (2) in m, cosines and sines of the joints (4), their velocities (2) in rad/s.

    A goal is the arm at rest with the fingertip at the target, and the elbow bent as it is at the reset.
    """

    size = 8
    goal_dims = (0, 1)
    links = 0.1, 0.11  # m

    def state(self, observation):
        fingertip = observation[8:10] + observation[4:6]
        return np.concatenate([fingertip, observation[:4], observation[6:8]]).astype(np.float32)

    def goal(self, observation):
        x, y = observation[4:6]
        first, second = self.links
        cosine = np.clip((x ** 2 + y ** 2 - first ** 2 - second ** 2) / (2 * first * second), -1, 1)
        elbow = np.copysign(np.arccos(cosine), observation[3])
        shoulder = np.arctan2(y, x) - np.arctan2(second * np.sin(elbow), first + second * cosine)
        angles = np.array([shoulder, elbow])
        return np.concatenate([[x, y], np.cos(angles), np.sin(angles), [0, 0]]).astype(np.float32)

    def success(self, observation):
        return np.linalg.norm(observation[8:10]) < 0.02


def pendulum(render_mode=None):
    return Pendulum(gymnasium.make('Pendulum-v1', render_mode=render_mode))


def mountain_car(render_mode=None):
    return MountainCar(gymnasium.make('MountainCarContinuous-v0', max_episode_steps=300, render_mode=render_mode))


def reacher(render_mode=None):
    return Reacher(gymnasium.make('Reacher-v5', render_mode=render_mode))
