"""An arm with two joints, the example of own_robot.md: `docs.own_robot:make_env` is the environment; run as a script,
this writes what somebody saw who watched such an arm move about, states only, to arm.npz."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box


class Arm(gymnasium.Env):
    """Two links of 0.5 m on servos. A state is the angles of both, as servos tell them. A goal is a state, too, and is
    reached where the hand is within 10 cm of where it is then."""

    observation_space = Box(-2.5, 2.5, (2,))
    action_space = Box(-0.05, 0.05, (2,))  # radians per step, of each servo

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.angles, self.goal = self.np_random.uniform(-2, 2, (2, 2)).astype(np.float32)
        return self.angles, {'goal': self.goal}

    def step(self, action):
        self.angles = np.clip(self.angles + np.clip(action, -0.05, 0.05), -2.5, 2.5).astype(np.float32)
        success = bool(np.linalg.norm(hand(self.angles) - hand(self.goal)) < 0.1)
        return self.angles, float(success), success, False, {'success': success}


def hand(angles):
    """Where the end of the arm is, in m."""
    first, second = angles[0], angles.sum()
    return 0.5 * np.array([np.cos(first) + np.cos(second), np.sin(first) + np.sin(second)])


def make_env():
    return gymnasium.wrappers.TimeLimit(Arm(), 200)


if __name__ == '__main__':
    arm, rng, states = Arm(), np.random.default_rng(0), []
    for recording in range(200):
        states.append(arm.reset(seed=recording)[0])
        wish = arm.goal
        for _ in range(200):
            way = wish - arm.angles
            if np.abs(way).max() < 0.1:
                wish = rng.uniform(-2.3, 2.3, 2)
            gently = way * min(0.1, 0.03 / np.abs(way).max())  # slower where a pose is near
            states.append(arm.step(gently + 0.02 * rng.standard_normal(2))[0])
    np.savez('arm.npz', observations=np.stack(states), terminals=np.arange(len(states)) % 201 == 200)
