"""A car in a yard, the example of own_robot.md: `docs.own_robot:make_env` is the environment; run as a script, this
writes drives of somebody who drives around at random, states only, to car.npz."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box


class Car(gymnasium.Env):
    """A yard of 10 x 10 m with a wall across most of it. A state is x, y, cos and sin of the heading, and the speed."""

    observation_space = Box(-np.inf, np.inf, (5,))
    action_space = Box(-1, 1, (2,))  # throttle, steering

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.goal = self.free_place(), self.free_place()
        self.heading, self.speed = self.np_random.uniform(-np.pi, np.pi), 0.0
        return self.state(), {'goal': np.array([*self.goal, 1, 0, 0], np.float32)}  # a state, too: any heading will do

    def step(self, action):
        throttle, steering = np.clip(action, -1, 1)
        self.speed = np.clip(self.speed + 0.1 * throttle, -0.2, 0.4)  # m per step
        self.heading += 0.8 * self.speed * steering
        ahead = self.place + self.speed * np.array([np.cos(self.heading), np.sin(self.heading)])
        if self.is_free(ahead):
            self.place = ahead
        else:
            self.speed = 0.0
        success = bool(np.linalg.norm(self.place - self.goal) < 0.5)
        return self.state(), float(success), success, False, {'success': success}

    def state(self):
        return np.array([*self.place, np.cos(self.heading), np.sin(self.heading), self.speed], np.float32)

    def is_free(self, place):
        x, y = place
        return 0 < x < 10 and 0 < y < 10 and not (x < 7 and 4.5 < y < 5.5)

    def free_place(self):
        while True:
            place = self.np_random.uniform(0, 10, 2)
            if self.is_free(place):
                return place


def make_env():
    return gymnasium.wrappers.TimeLimit(Car(), 300)


if __name__ == '__main__':
    car, rng, states = Car(), np.random.default_rng(0), []
    for drive in range(200):
        states.append(car.reset(seed=drive)[0])
        for step in range(300):
            if step % 20 == 0:  # drive on as before for two seconds, mostly forward
                wish = rng.uniform(-0.5, 1), rng.uniform(-1, 1)
            states.append(car.step(wish + 0.3 * rng.standard_normal(2))[0])
    np.savez('car.npz', observations=np.stack(states), terminals=np.arange(len(states)) % 301 == 300)
