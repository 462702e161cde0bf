"""Coordinates that `--observe rotated:SEED` and its like write a state down in.

    units:SEED     Units      each number in a random unit, from a thousandth to a thousand times its own
    rotated:SEED   Rotation   the standardised state, turned by a random rotation
    lifted:SEED    Lift       twice as many numbers, made from it by a random network
    markers        Markers    world positions of the parts of a MuJoCo robot; no angles, no velocities

A transform maps raw states (N, S) to (N, S') float64. An `ObservationModel` holds one, and a checkpoint its
fields, which are builtin types. Random transforms depend on the mean and standard deviation of the data.
"""

import dataclasses
import functools

import numpy as np

from support.contents import has_type

LIFT_FACTOR = 2  # numbers of a lifted state, per dimension
UNIT_RANGE = 3  # decimal orders of a random unit, up or down
BIAS_STD = 0.5  # of the random network; the other part of a sum has a standard deviation of about 1


@dataclasses.dataclass(frozen=True)
class Units:
    """Each number in a random unit: s * factors."""

    factors: tuple  # (S,)

    @classmethod
    def random(cls, seed, mean, std):
        """Return the units of a seed, for data of mean and std (S,)."""
        exponents = np.random.default_rng(seed).uniform(-UNIT_RANGE, UNIT_RANGE, len(std))
        return cls(_tuples(10 ** exponents))

    @property
    def size(self):
        """Return the number of dimensions of an observation."""
        return len(self.factors)

    def check(self):
        """Raise ValueError unless all factors are numbers."""
        _check_matrix('factors', (self.factors,), 1, self.size)

    def __call__(self, states):
        """Map raw states (N, S) to (N, S) float64."""
        return states * np.array(self.factors)


@dataclasses.dataclass(frozen=True)
class Rotation:
    """The standardised state, turned by a random rotation: (s - center) @ matrix."""

    center: tuple  # (S,)
    matrix: tuple  # S rows of (S,)

    @classmethod
    def random(cls, seed, mean, std):
        """Return the rotation of a seed, for data of mean and std (S,)."""
        gaussian = np.random.default_rng(seed).standard_normal((len(std), len(std)))
        matrix = _inverse(std)[:, None] * np.linalg.qr(gaussian)[0]
        return cls(_tuples(mean), _tuples(matrix))

    @property
    def size(self):
        """Return the number of dimensions of an observation."""
        return len(self.center)

    def check(self):
        """Raise ValueError unless all fields are numbers of fitting shapes."""
        _check_matrix('matrix', self.matrix, self.size, self.size)
        _check_matrix('center', (self.center,), 1, self.size)

    def __call__(self, states):
        """Map raw states (N, S) to (N, S) float64."""
        return (states - np.array(self.center)) @ np.array(self.matrix)


@dataclasses.dataclass(frozen=True)
class Lift:
    """Features of a fixed random network of two tanh layers, twice as many as the state has dimensions."""

    center: tuple  # (S,)
    first: tuple  # S + 1 rows of (2 S,): weights of a centered state, then the bias
    second: tuple  # 2 S + 1 rows of (2 S,)

    @classmethod
    def random(cls, seed, mean, std):
        """Return the network of a seed, for data of mean and std (S,)."""
        rng = np.random.default_rng(seed)
        size = LIFT_FACTOR * len(std)

        def layer(count):
            weights = rng.standard_normal((count, size)) / np.sqrt(count)
            return np.concatenate([weights, BIAS_STD * rng.standard_normal((1, size))])

        first, second = layer(len(std)), layer(size)
        first[:-1] *= _inverse(std)[:, None]
        return cls(_tuples(mean), _tuples(first), _tuples(second))

    @property
    def size(self):
        """Return the number of dimensions of an observation."""
        return LIFT_FACTOR * len(self.center)

    def check(self):
        """Raise ValueError unless all fields are numbers of fitting shapes."""
        _check_matrix('center', (self.center,), 1, len(self.center))
        _check_matrix('first', self.first, len(self.center) + 1, self.size)
        _check_matrix('second', self.second, self.size + 1, self.size)

    def __call__(self, states):
        """Map raw states (N, S) to (N, 2 S) float64."""
        values = states - np.array(self.center)
        for layer in (np.array(self.first), np.array(self.second)):
            values = np.tanh(values @ layer[:-1] + layer[-1])
        return values


@dataclasses.dataclass(frozen=True)
class Markers:
    """World positions of the geoms of a MuJoCo robot and of other moving bodies.

    The states of its environment begin with the pose `qpos`, whose forward kinematics give the positions.
    """

    environment: str  # id of a gymnasium environment

    @classmethod
    def of(cls, env):
        """Return the markers of an environment, which may be wrapped.

        Raises:
            ValueError: it is none of MuJoCo, or its states do not begin with the pose.
        """
        refusal = ('--observe markers: only for registered MuJoCo environments whose states begin with the '
                   'pose `qpos`, as those of point and ant mazes; use --observe positions')
        spec = getattr(env, 'spec', None)
        env = getattr(env, 'unwrapped', env)
        if spec is None or not hasattr(env, 'model') or not hasattr(env, 'data'):
            raise ValueError(refusal)
        state = env.reset(seed=0)[0]
        pose = env.data.qpos
        if np.shape(state) < pose.shape or not np.allclose(state[:len(pose)], pose, rtol=1e-5):
            raise ValueError(refusal)
        markers = cls(spec.id)
        markers.check()
        return markers

    @property
    def size(self):
        """Return the number of dimensions of an observation."""
        return 3 * len(_robot(self.environment)[2])

    def check(self):
        """Raise ValueError unless the environment exists and has parts that move."""
        if not has_type(self.environment, str):
            raise ValueError(f'`environment` of the markers is {self.environment}')
        _robot(self.environment)

    def __call__(self, states):
        """Map raw states (N, S) to (N, 3 M) float64, positions of M markers in metres."""
        import mujoco

        model, data, geoms = _robot(self.environment)
        positions = np.empty((len(states), len(geoms), 3))
        for state, row in zip(states, positions, strict=True):
            data.qpos[:] = state[:model.nq]
            mujoco.mj_kinematics(model, data)
            row[:] = data.geom_xpos[geoms]
        return positions.reshape(len(states), -1)


@functools.cache
def _robot(environment):
    """Return the MuJoCo model of an environment, data for its kinematics, and the geoms (M,) that can move.

    Raises:
        ValueError: there is no such environment.
    """
    import gymnasium
    import mujoco
    import ogbench  # noqa: F401  registers its environments

    try:
        env = gymnasium.make(environment)
    except gymnasium.error.Error as error:
        raise ValueError(f'--observe markers: there is no environment {environment} ({error})') from error
    model = env.unwrapped.model
    env.close()
    moves = model.body_dofnum[model.body_rootid] > 0
    return model, mujoco.MjData(model), np.flatnonzero(moves[model.geom_bodyid])


TRANSFORMS = {'units': Units, 'rotated': Rotation, 'lifted': Lift, 'markers': Markers}  # by kind of setting


def _inverse(std):
    """Return 1 / std (S,), with 0 for dimensions that never vary."""
    std = np.asarray(std, np.float64)
    return np.divide(1, std, np.zeros_like(std), where=std > 0)


def _tuples(array):
    """Return an array as nested tuples of floats."""
    return to_tuples(np.asarray(array, np.float64).tolist())


def to_tuples(value):
    """Return a value with tuples in place of its lists, also of nested ones."""
    return tuple(map(to_tuples, value)) if isinstance(value, list | tuple) else value


def _check_matrix(name, rows, count, width):
    """Raise ValueError unless `rows` are `count` tuples of `width` floats."""
    if not (isinstance(rows, tuple) and len(rows) == count
            and all(isinstance(row, tuple) and len(row) == width for row in rows)
            and all(has_type(value, float) and np.isfinite(value) for row in rows for value in row)):
        raise ValueError(f'`{name}` of the observation model must be {count} x {width} numbers')
