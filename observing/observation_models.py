"""Observation models: which part of a state the agent observes (--observe).

    full           the state
    positions      the state without velocities
    torso          the pose of the robot's body without its limbs, as a camera would measure it
    dropped:P      each observation is dropped with probability P; the last one is repeated, unmarked
    noise:SIGMA    Gaussian noise on every dimension, SIGMA standard deviations of the data
    units:SEED, rotated:SEED, lifted:SEED, markers   the state in other coordinates (observing/transforms.py)

The data, the environment and the goals are observed through the same model. Observations are float32, which
holds seven digits. A dimension with a large offset, such as a position in UTM coordinates, is therefore
observed relative to an origin, which is subtracted in float64. The data determine it (`with_origin`).

An angle that wraps, such as from pi to -pi, would be a jump in every distance. The sine of such a dimension
is observed in its place, and the cosine in a dimension at the end. The data show which dimensions these are
(`with_angles`).

`find_dimensions` determines which dimensions are positions. It probes MuJoCo environments by moving the
simulated robot. A custom environment, or a wrapper of it, has an attribute `observed`, such as
{'positions': [0], 'torso': [0]}.
"""

import dataclasses
import functools
import math
import sys

import gymnasium
import numpy as np

from environments.checks import find_attribute, read_dimensions, short
from observing.transforms import TRANSFORMS, Markers, to_tuples
from support.contents import Number, check_layout, has_type
from support.steps import angle_note, find_period
from support.tolerances import find_origin

KINDS = ('full', 'positions', 'torso', 'dropped', 'noise', *TRANSFORMS)


@dataclasses.dataclass(frozen=True)
class ObservationModel:
    """The meaning of a setting of --observe, in builtin types that a checkpoint can hold.

    The noise of `noise:SIGMA` and random transforms depend on the data: see `with_noise_scale` and
    `with_transform`.
    """

    setting: str = 'full'
    dimensions: tuple | None = None  # observed dimensions of a raw state; None: all
    drop_rate: float = 0.0  # probability that an observation is dropped
    noise_fraction: float = 0.0  # std of the noise, in standard deviations of the data
    noise: tuple | None = None  # (S',) std of the noise in units of the state; None: none, or not yet scaled
    origin: tuple | None = None  # (S',) zero point of observations; (): all 0; None: not yet determined
    angles: tuple = ()  # of angles that wrap: column of the sine, of the cosine, and the period
    transform: object = None  # other coordinates, one of `TRANSFORMS`; None: none, or not yet determined

    @classmethod
    def from_setting(cls, setting, env):
        """Return the observation model of a setting in an environment, which may be wrapped.

        Raises:
            ValueError: the setting is invalid, or the environment does not define its dimensions.
        """
        kind, amount = parse_setting(setting)
        if kind in ('positions', 'torso'):
            return cls(setting, dimensions=tuple(find_dimensions(env, setting)))
        if kind == 'dropped':
            return cls(setting, drop_rate=amount)
        if kind == 'noise':
            return cls(setting, noise_fraction=amount)
        if kind == 'markers':
            return cls._of_markers(setting, env)
        return cls(setting)

    @classmethod
    def _of_markers(cls, setting, env):
        """Return the model of `markers`: dimensions that the environment names, or geoms of its robot."""
        if find_attribute(env, 'observed') is not None:
            return cls(setting, dimensions=tuple(find_dimensions(env, setting)))
        return cls(setting, transform=Markers.of(env))

    @classmethod
    def from_dict(cls, saved):
        """Return the observation model that `dataclasses.asdict` saved; JSON makes lists of its tuples.

        It keeps its origin, whatever data it is used with.

        Raises:
            ValueError: `saved` is none.
        """
        values = {name: to_tuples(value) for name, value in saved.items()}
        kind = parse_setting(values['setting'])[0]
        if values['transform'] is not None:
            fields = {name: to_tuples(value) for name, value in values['transform'].items()}
            values['transform'] = TRANSFORMS[kind](**fields)
            values['transform'].check()
        model = cls(**values | {'origin': values['origin'] or ()})
        if not model.has_dimensions and model.transform is None:
            raise ValueError(f'the observation model of --observe {model.setting} has no `transform`')
        check_layout(values, {'drop_rate': Number(float, least=0), 'noise_fraction': Number(float, least=0)})
        for name, kind in (('dimensions', int), ('noise', float)):
            if not all(has_type(value, kind) and value >= 0 for value in values[name] or ()):
                raise ValueError(f'`{name}` of the observation model is {values[name]}')
        if not all(has_type(value, float) for value in model.origin):
            raise ValueError(f'`origin` of the observation model is {model.origin}')
        if not all(isinstance(angle, tuple) and [type(value) for value in angle] == [int, int, float]
                   and min(angle) >= 0 and angle[2] > 0 for angle in model.angles):
            raise ValueError(f'`angles` of the observation model are {model.angles}')
        return model

    def with_noise_scale(self, std):
        """Return this model with noise for data of standard deviations `std` (S,); a set scale is kept."""
        if not self.noise_fraction or self.noise is not None:
            return self
        noise = self.noise_fraction * np.asarray(std, np.float64)
        return dataclasses.replace(self, noise=tuple(noise.tolist()))

    def with_origin(self, states):
        """Return this model with the origin that raw states (N, S) need in float32; a set origin is kept."""
        if self.origin is not None:
            return self
        origin = find_origin(self._select(states))
        return dataclasses.replace(self, origin=tuple(origin.tolist()) if origin.any() else ())

    def with_angles(self, states, ends):
        """Return this model with the angles that wrap in raw states (N, S); set ones are kept.

        Args:
            ends: (n,) last row of each trajectory.
        """
        is_set = self.angles or self.origin is not None  # of a checkpoint
        if is_set or self.transform is not None:  # markers need the states as they are
            return self
        states = states if self.dimensions is None else states[:, self.dimensions]
        periods = [find_period(values, ends) for values in states.T]
        columns = [column for column, period in enumerate(periods) if period]
        angles = [(column, len(periods) + i, periods[column]) for i, column in enumerate(columns)]
        return dataclasses.replace(self, angles=tuple(angles))

    @property
    def note(self):
        """Return a line on the angles that wrap, or ''."""
        columns = [sine for sine, *_ in self.angles]
        return angle_note(columns if self.dimensions is None else [self.dimensions[i] for i in columns])

    def with_transform(self, mean, std):
        """Return this model with its transform for data of mean and std (S,); a set transform is kept."""
        if self.has_dimensions or self.transform is not None:
            return self
        kind, _, seed = self.setting.partition(':')
        return dataclasses.replace(self, transform=TRANSFORMS[kind].random(int(seed), mean, std))

    def __bool__(self):
        """Return whether observations differ from states."""
        return self.setting != 'full' or bool(self.angles)

    def observe(self, states, rng):
        """Observe states without dropping any.

        Args:
            states: (T, S) raw states.
            rng: numpy Generator of the noise.

        Returns:
            (T, S') float32 observations.
        """
        observations = self._select(states)
        if self.noise is not None:
            observations = observations + rng.standard_normal(observations.shape) * self.noise
        if self.origin:
            observations = observations - np.array(self.origin)
        return observations.astype(np.float32)

    def unwrapped(self, states):
        """Return the observed dimensions of raw states (T, S), with sines and cosines of the angles."""
        states = states if self.dimensions is None else states[:, self.dimensions]
        if not self.angles:
            return states
        sines, _, periods = map(list, zip(*self.angles, strict=True))
        phases = (states[:, sines] * (2 * np.pi / np.array(periods))).astype(states.dtype)
        states = np.concatenate([states, np.cos(phases)], 1)
        states[:, sines] = np.sin(phases)
        return states

    def _select(self, states):
        """Return the observed dimensions, or other coordinates, of raw states (T, S)."""
        states = self.unwrapped(states)
        return states if self.transform is None else self.transform(states)

    def observe_trajectories(self, states, starts, ends, seed):
        """Observe each trajectory i as an episode whose reset has the seed [seed, i].

        Args:
            states: (N, S) raw states.
            starts, ends: (n,) first and last row of each trajectory.
            seed: int.

        Returns:
            (N, S') float32 observations; `states` itself if they are float32 and fully observed.
        """
        if not self and not self.origin:
            return states.astype(np.float32, copy=False)

        observations = []
        for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
            observer = EpisodeObserver(self, [seed, i])
            observations.append(observer.observe(states[start:end + 1]))
        return np.concatenate(observations)

    def wrap(self, env):
        """Return the environment with observations of this model."""
        return PartialObservation(env, self) if self or self.origin else env

    def columns(self, dimensions):
        """Return the indices in an observation of some dimensions of a raw state, then of their cosines.

        Raises:
            ValueError: a dimension is not observed.
        """
        if not self.has_dimensions:
            raise ValueError(f'--observe {self.setting}: no dimension of the state is observed by itself; '
                             'use --observe full')
        columns = list(dimensions)
        if self.dimensions is not None:
            hidden = sorted(set(dimensions) - set(self.dimensions))
            if hidden:
                raise ValueError(f'--observe {self.setting}: dimensions {hidden} of the state are not '
                                 'observed; use --observe full')
            columns = [self.dimensions.index(dimension) for dimension in dimensions]
        return columns + [cosine for sine, cosine, _ in self.angles if sine in columns]

    @property
    def has_dimensions(self):
        """Return whether each number of an observation is a dimension of the state."""
        return self.dimensions is not None or self.setting.partition(':')[0] not in TRANSFORMS

    def size(self, num_dimensions):
        """Return the number of dimensions of an observation of a state of `num_dimensions`."""
        if self.transform is not None:
            return self.transform.size
        observed = num_dimensions if self.dimensions is None else len(self.dimensions)
        return observed + len(self.angles)

    def origin_of(self, columns):
        """Return the origin (n,) float64 of some columns of an observation."""
        return np.array(self.origin)[columns] if self.origin else np.zeros(len(columns))


FULL_STATE = ObservationModel()


class EpisodeObserver:
    """Observes one episode through an `ObservationModel`. The first observation is never dropped.

    Drops, noise and noise of goals have one generator each, so that observing states one by one or many at
    once gives the same observations.
    """

    def __init__(self, observation_model, seed):
        self.observation_model = observation_model
        drop_seed, noise_seed, goal_seed = np.random.SeedSequence(seed).spawn(3)
        self.drop_rng = np.random.default_rng(drop_seed)
        self.noise_rng = np.random.default_rng(noise_seed)
        self.goal_rng = np.random.default_rng(goal_seed)
        self.last = None  # (1, S') the last observation

    def observe(self, states):
        """Return the observations (T, S') float32 of the next raw states (T, S) of the episode."""
        observations = self.observation_model.observe(states, self.noise_rng)

        if self.observation_model.drop_rate:
            dropped = self.drop_rng.random(len(observations)) < self.observation_model.drop_rate
            last = observations[:1] if self.last is None else self.last

            # each row repeats the latest received one; row 0 is the last observation of the previous call
            received = np.where(dropped, 0, np.arange(1, len(observations) + 1))
            observations = np.concatenate([last, observations])[np.maximum.accumulate(received)]

        self.last = observations[-1:]
        return observations

    def observe_goal(self, goal):
        """Return the observation (S',) float32 of a raw goal (S,)."""
        return self.observation_model.observe(np.asarray(goal)[None], self.goal_rng)[0]


class PartialObservation(gymnasium.Wrapper):
    """Observe an environment through an `ObservationModel`; a reset's seed determines drops and noise."""

    def __init__(self, env, observation_model):
        super().__init__(env)
        self.observation_model = observation_model
        self.observer = None

        space = env.observation_space
        size = observation_model.size(space.shape[0])
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), space.dtype)

    def reset(self, *, seed=None, options=None):
        state, info = self.env.reset(seed=seed, options=options)
        if self.observation_model.origin and np.can_cast(np.asarray(state).dtype, np.float32):
            _warn_of_float32()
        self.observer = EpisodeObserver(self.observation_model, seed)
        return self._observe(state), self._observe_goal(info)

    def step(self, action):
        state, reward, terminated, truncated, info = self.env.step(action)
        return self._observe(state), reward, terminated, truncated, self._observe_goal(info)

    def _observe(self, state):
        return self.observer.observe(np.asarray(state)[None])[0]

    def _observe_goal(self, info):
        if 'goal' not in info:
            return info
        return info | {'goal': self.observer.observe_goal(info['goal'])}


@functools.cache
def _warn_of_float32():
    """Print once that an environment rounds states for which float32 has too few digits."""
    print('warning: the states of the data are float64 and far from zero, but the environment returns '
          'float32, which has lost digits; let its reset and step return float64', file=sys.stderr)


def observation_model_of(checkpoint):
    """Return the observation model of the data that the agent of a checkpoint was trained on."""
    return ObservationModel.from_dict(checkpoint['data']['observation_model'])


def parse_setting(setting):
    """Parse a setting: 'dropped:0.5' -> ('dropped', 0.5), 'positions' -> ('positions', 0.0).

    Raises:
        ValueError: the setting is invalid.
    """
    kind, _, number = setting.partition(':')
    try:
        amount = float(number) if number else 0.0
    except ValueError:
        amount = math.nan

    limit = {'dropped': 1.0, 'noise': math.inf}.get(kind)
    is_valid_amount = 0 < amount < limit if limit else not number
    if hasattr(TRANSFORMS.get(kind), 'random'):  # of a seed
        is_valid_amount = number.isdecimal()
    if kind not in KINDS or not is_valid_amount:
        raise ValueError(f'--observe {setting}: must be full, positions, torso, dropped:P with P between 0 '
                         'and 1, noise:SIGMA with SIGMA above 0, units:SEED, rotated:SEED, lifted:SEED, '
                         'or markers')
    return kind, amount


def find_dimensions(env, kind):
    """Determine which dimensions of a state are positions or the pose of the torso.

    Args:
        env: environment, which may be wrapped.
        kind: 'positions' or 'torso'.

    Returns:
        List of int, in the order of the observation.

    Raises:
        ValueError: the environment does not define them.
    """
    observed = find_attribute(env, 'observed')
    if observed is not None:
        return _read_observed(observed, kind, env.observation_space.shape[0])

    env = getattr(env, 'unwrapped', env)
    get_state = getattr(env, 'get_ob', None) or getattr(env, 'compute_observation', None)
    if get_state is None or not hasattr(env, 'model'):
        raise ValueError(f'--observe {kind}: the environment does not define these dimensions; give it an '
                         'attribute `observed`, such as {"positions": [0, 1], "torso": [0, 1]}')
    return _probe_mujoco(env, get_state, kind)


def _read_observed(observed, kind, size):
    """Return the list of int `observed[kind]`, distinct dimensions of a state of `size` dimensions."""
    if not isinstance(observed, dict) or kind not in observed:
        raise ValueError(f'--observe {kind}: `observed` of the environment has no {kind!r}; add this '
                         'list of dimensions')
    dimensions = read_dimensions(observed[kind], size)
    if dimensions is None:
        raise ValueError(f'--observe {kind}: `observed` of the environment gives {short(observed[kind])}; it '
                         f'must be a list of distinct dimensions, 0 to {size - 1}')
    return dimensions


def _probe_mujoco(env, get_state, kind):
    """Find the dimensions by setting poses and velocities of the simulated robot.

    A velocity changes with the joint velocities. A dimension of the torso is a position that changes when the
    free joints are translated and rotated.
    """
    import mujoco

    rng = np.random.default_rng(0)
    env.reset(seed=0)
    data = env.data
    pose = data.qpos.copy()

    def state_of(qpos, qvel):
        data.qpos[:] = qpos
        data.qvel[:] = qvel
        mujoco.mj_forward(env.model, data)
        return np.array(get_state(), np.float64)

    # dimensions that do not depend on velocities
    at_rest = state_of(pose, 0)
    moving = state_of(pose, rng.uniform(0.5, 1, data.qvel.shape))
    is_position = np.isclose(moving, at_rest, rtol=1e-9, atol=0)
    if kind == 'positions':
        return np.flatnonzero(is_position).tolist()

    # the robot has a torso if its first joint is free; other free joints are those of balls
    free_joints = np.flatnonzero(env.model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
    if 0 not in free_joints:
        raise ValueError('--observe torso: the robot is fixed to the ground and has no torso; '
                         'use --observe positions')

    # dimensions that depend on the poses of the free joints
    moved_pose = pose.copy()
    for joint in free_joints:
        first = env.model.jnt_qposadr[joint]
        quaternion = rng.uniform(0.5, 1, 4)
        moved_pose[first:first + 3] += rng.uniform(0.1, 0.2, 3)
        moved_pose[first + 3:first + 7] = quaternion / np.linalg.norm(quaternion)
    has_changed = ~np.isclose(state_of(moved_pose, 0), at_rest, rtol=1e-9, atol=0)
    return np.flatnonzero(is_position & has_changed).tolist()
