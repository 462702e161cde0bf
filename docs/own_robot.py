"""The example of own_robot.md: an arm with two joints. `docs.own_robot:make_env` is the environment.

Run as a script, this file writes recorded states of the moving arm to arm.npz, without actions."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box


class Arm(gymnasium.Env):
    """Two links of 0.5 m on servos.

    A state is the two measured joint angles. A goal is a state; it is reached when the hand is within 10 cm
    of its position in that state.
    """

    observation_space = Box(-2.5, 2.5, (2,))
    action_space = Box(-0.05, 0.05, (2,))  # radians per step, of each servo

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.angles, self.goal = self.np_random.uniform(-2, 2, (2, 2)).astype(np.float32)
        return self.angles, {'goal': self.goal}

    def step(self, action):
        self.angles = np.clip(self.angles + np.clip(action, -0.05, 0.05), -2.5, 2.5).astype(np.float32)
        success = bool(np.linalg.norm(hand_position(self.angles) - hand_position(self.goal)) < 0.1)
        return self.angles, float(success), success, False, {'success': success}


def hand_position(angles):
    """Return the position (2,) of the end of the arm, in m."""
    first, second = angles[0], angles.sum()
    return 0.5 * np.array([np.cos(first) + np.cos(second), np.sin(first) + np.sin(second)])


def make_env():
    return gymnasium.wrappers.TimeLimit(Arm(), 200)


if __name__ == '__main__':
    arm, rng, states = Arm(), np.random.default_rng(0), []
    for recording in range(200):
        states.append(arm.reset(seed=recording)[0])
        target = arm.goal
        for _ in range(200):
            difference = target - arm.angles
            if np.abs(difference).max() < 0.1:
                target = rng.uniform(-2.3, 2.3, 2)
            action = difference * min(0.1, 0.03 / np.abs(difference).max())  # slower near the target
            states.append(arm.step(action + 0.02 * rng.standard_normal(2))[0])
    np.savez('arm.npz', observations=np.stack(states), terminals=np.arange(len(states)) % 201 == 200)
