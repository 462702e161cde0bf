"""What of a state the agent is shown (--observe); data, environment and goals go through the same observation_model.

    full           all of it
    positions      no velocities
    torso          where the robot's body is and how it lies, nothing of its limbs: what a camera outside sees
    dropped:P      each reading is lost with probability P, and the one before it stays; how old it is, is not told
    noise:SIGMA    Gaussian noise on every number, of SIGMA standard deviations of the data

Which numbers of a state are positions is asked of the environment: MuJoCo's are found by moving the robot and looking
at what changes, and an environment of your own has an attribute `observed`, {'positions': [0, 1, …], 'torso': […]}.
"""

import dataclasses
import math

import gymnasium
import numpy as np

KINDS = ('full', 'positions', 'torso', 'dropped', 'noise')


@dataclasses.dataclass(frozen=True)
class ObservationModel:
    """What a setting of --observe means: builtins only, so that checkpoints can hold it. Noise needs data as well: see
    `fit`."""

    setting: str = 'full'
    dimensions: tuple | None = None  # numbers of a raw state that are shown; None: all
    drop_rate: float = 0.0  # probability that a reading is lost
    noise_fraction: float = 0.0  # of the noise on each number, in standard deviations of the data
    noise: tuple | None = None  # the same in the units of the states (S',); None: no noise, or no data yet

    @classmethod
    def from_setting(cls, setting, env):
        """`setting` of --observe, in an environment (any wrapper of it). ValueError says what is missing."""
        kind, amount = parse_setting(setting)
        if kind in ('positions', 'torso'):
            return cls(setting, dimensions=tuple(find_dimensions(env, setting)))
        if kind == 'dropped':
            return cls(setting, drop_rate=amount)
        if kind == 'noise':
            return cls(setting, noise_fraction=amount)
        return cls()

    def fit(self, std):
        """The same observation_model, with noise for data of the standard deviations `std` (S,); once there is noise, it stays."""
        if not self.noise_fraction or self.noise is not None:
            return self
        noise = self.noise_fraction * np.asarray(std, np.float64)
        return dataclasses.replace(self, noise=tuple(noise.tolist()))

    @classmethod
    def from_dict(cls, saved):
        """What `dataclasses.asdict` made; None, from before there were settings, is `full`."""
        if saved is None:
            return cls()
        as_tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
        return cls(**as_tuples)

    def __bool__(self):
        """Is anything hidden?"""
        return self.setting != 'full'

    def see(self, states, rng):
        """What is shown of raw states (T, S) that all arrive -> (T, S') float32; noise from the numpy Generator."""
        shown = states if self.dimensions is None else states[:, self.dimensions]
        if self.noise is not None:
            shown = shown + rng.standard_normal(shown.shape) * self.noise
        return shown.astype(np.float32)

    def observe_trajectories(self, observations, starts, ends, seed):
        """(N, S) raw states of trajectories -> (N, S') float32. Trajectory i is seen as an episode that is reset with
        seed [seed, i]."""
        if not self:
            return observations
        seen = [EpisodeObserver(self, [seed, i]).take(observations[start:end + 1])
                for i, (start, end) in enumerate(zip(starts, ends, strict=True))]
        return np.concatenate(seen)

    def wrap(self, env):
        """The environment as it is seen through these observation_model."""
        return PartialObservation(env, self) if self else env

    def find(self, columns):
        """Where the numbers `columns` of a raw state are in what is shown -> list of int. ValueError if nowhere."""
        if self.dimensions is None:
            return list(columns)
        return [self.dimensions.index(column) for column in columns]


FULL_STATE = ObservationModel()


class EpisodeObserver:
    """One episode through some `ObservationModel`: what arrives, and what stays where a reading is lost. The first one never is.

    Taking states one by one or many at once gives the same, since losses and noise have a generator each.
    """

    def __init__(self, observation_model, seed):
        self.observation_model = observation_model
        loss_seed, noise_seed, goal_seed = np.random.SeedSequence(seed).spawn(3)
        self.loss_rng = np.random.default_rng(loss_seed)
        self.noise_rng = np.random.default_rng(noise_seed)
        self.goal_rng = np.random.default_rng(goal_seed)
        self.last = None

    def take(self, states):
        """The next raw states (T, S) -> (T, S') float32, as they are read."""
        seen = self.observation_model.see(states, self.noise_rng)
        if self.observation_model.drop_rate:
            lost = self.loss_rng.random(len(seen)) < self.observation_model.drop_rate
            before = seen[:1] if self.last is None else self.last
            received = np.where(lost, 0, np.arange(1, len(seen) + 1))
            seen = np.concatenate([before, seen])[np.maximum.accumulate(received)]
        self.last = seen[-1:]
        return seen

    def observe_goal(self, goal):
        """A raw goal (S,) -> (S',) float32."""
        return self.observation_model.see(np.asarray(goal)[None], self.goal_rng)[0]


class PartialObservation(gymnasium.Wrapper):
    """An environment seen through `ObservationModel`. A reset's seed decides what is lost and the noise as well."""

    def __init__(self, env, observation_model):
        super().__init__(env)
        self.observation_model = observation_model
        self.readings = None

        space = env.observation_space
        size = space.shape[0] if observation_model.dimensions is None else len(observation_model.dimensions)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), space.dtype)

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        self.readings = EpisodeObserver(self.observation_model, seed)
        return self._read(observation), self._show_goal(info)

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._read(observation), reward, terminated, truncated, self._show_goal(info)

    def _read(self, observation):
        return self.readings.take(np.asarray(observation)[None])[0]

    def _show_goal(self, info):
        return info | {'goal': self.readings.observe_goal(info['goal'])} if 'goal' in info else info


def observation_model_of(checkpoint):
    """Through which the agent of a checkpoint of a run saw its data, and sees the environment."""
    return ObservationModel.from_dict(checkpoint.get('data', {}).get('observation_model'))


def parse_setting(setting):
    """'dropped:0.5' -> ('dropped', 0.5), 'positions' -> ('positions', 0.0). ValueError for what is no setting."""
    kind, _, number = setting.partition(':')
    try:
        amount = float(number) if number else 0.0
    except ValueError:
        amount = math.nan

    limit = {'dropped': 1.0, 'noise': math.inf}.get(kind)
    takes_number = 0 < amount < limit if limit else not number
    if kind not in KINDS or not takes_number:
        raise ValueError(f'--observe {setting}: must be full, positions, torso, dropped:P with P between 0 and 1, or '
                         'noise:SIGMA with SIGMA above 0')
    return kind, amount


def find_dimensions(env, kind):
    """Numbers of a state that are `positions`, or the pose of the `torso` -> list of int, in order. ValueError where
    the environment cannot tell."""
    env = env.unwrapped
    observed = getattr(env, 'observed', None)
    if observed is not None:
        if kind not in observed:
            raise ValueError(f'--observe {kind}: `observed` of the environment has no {kind!r}')
        return [int(dimension) for dimension in observed[kind]]

    read = getattr(env, 'get_ob', None) or getattr(env, 'compute_observation', None)
    if read is None or not hasattr(env, 'model'):
        raise ValueError(f'--observe {kind}: the environment does not say which numbers these are; give it an '
                         'attribute `observed`, such as {"positions": [0, 1], "torso": [0, 1]}')
    return _probe_mujoco(env, read, kind)


def _probe_mujoco(env, read, kind):
    """Velocities are what changes when the robot's speeds do; its torso is what else changes when it is moved and
    turned as a whole."""
    import mujoco

    rng = np.random.default_rng(0)
    env.reset(seed=0)
    data = env.data
    position = data.qpos.copy()

    def observe(qpos, qvel):
        data.qpos[:] = qpos
        data.qvel[:] = qvel
        mujoco.mj_forward(env.model, data)
        return np.array(read(), np.float64)

    at_rest = observe(position, 0)
    moving = observe(position, rng.uniform(0.5, 1, data.qvel.shape))
    is_position = np.isclose(moving, at_rest, rtol=0, atol=1e-9)
    if kind == 'positions':
        return np.flatnonzero(is_position).tolist()

    free = np.flatnonzero(env.model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
    if 0 not in free:
        raise ValueError('--observe torso: the robot of this environment stands on the ground, it has no torso that '
                         'moves as a whole')
    turned = position.copy()
    for joint in free:  # a ball that is played with is seen as well
        first = env.model.jnt_qposadr[joint]
        quaternion = rng.uniform(0.5, 1, 4)
        turned[first:first + 3] += rng.uniform(0.1, 0.2, 3)
        turned[first + 3:first + 7] = quaternion / np.linalg.norm(quaternion)
    changed = ~np.isclose(observe(turned, 0), at_rest, rtol=0, atol=1e-9)
    return np.flatnonzero(is_position & changed).tolist()
