"""An arm with two joints, the example of own_robot.md: `docs.own_robot:make_env` is the environment; run as a script,
this writes what somebody saw who watched such an arm move about, states only, to arm.npz."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box


class Arm(gymnasium.Env):
    """Two links of 0.5 m, turned by motors. A state is cos and sin of both angles and both speeds. A goal is a state,
    too, and is reached where the hand is within 5 cm of where it is then."""

    observation_space = Box(-np.inf, np.inf, (6,))
    action_space = Box(-1, 1, (2,))  # torque of each motor

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.angles, self.speeds = self.np_random.uniform(-2, 2, 2), np.zeros(2)
        self.goal = self.np_random.uniform(-2, 2, 2)
        return state(self.angles, self.speeds), {'goal': state(self.goal, np.zeros(2))}

    def step(self, action):
        self.speeds = 0.8 * self.speeds + 0.04 * np.clip(action, -1, 1)  # friction, torque; radians per step
        self.angles = np.clip(self.angles + self.speeds, -2.5, 2.5)
        success = bool(np.linalg.norm(hand(self.angles) - hand(self.goal)) < 0.05)
        return state(self.angles, self.speeds), float(success), success, False, {'success': success}


def state(angles, speeds):
    return np.concatenate([np.cos(angles), np.sin(angles), speeds]).astype(np.float32)


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
        for step in range(200):
            if step % 50 == 0:
                wish = rng.uniform(-2.2, 2.2, 2)
            torque = 3 * (wish - arm.angles) - 5 * arm.speeds + 0.5 * rng.standard_normal(2)
            states.append(arm.step(torque)[0])
    np.savez('arm.npz', observations=np.stack(states), terminals=np.arange(len(states)) % 201 == 200)
