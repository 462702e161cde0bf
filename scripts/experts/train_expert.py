"""Train the teacher of an expert: a robot that walks in a given direction and gets up after falls.

    python scripts/experts/train_expert.py --robot humanoid --num_decisions 1500000
    python scripts/experts/train_expert.py --robot humanoid --num_decisions 3000000 --resume

This script is a tool, not a part of OPSO. It needs requirements-expert.txt (JAX for CPUs is sufficient).

The method is soft actor-critic (Haarnoja et al. 2018) with layer norm, no minimum over critics (BRO, arXiv
2405.16158; SimbaV2, 2502.15280), categorical values (Farebrother et al. 2024, 2403.03950), and returns over
three decisions. Half of each batch is mirrored left to right.

The humanoid's state does not contain its yaw. The teacher observes velocities and the direction in the frame
of its torso, which needs the yaw. `distil_expert.py` imitates it with an expert that observes the state and
the direction.

OGBench's own reward, stand * (1 + 100 dxy . direction), is nearly zero on the ground, where every episode of
the humanoid begins. This reward adds the height of the head, so that getting up has a gradient. The
evaluation is OGBench's: success in the maze (`scripts/experts/evaluate_expert.py`).

Only time ends an episode. A walk that is cut short after a fall is bootstrapped from the value of lying
there. One policy and one critic therefore learn to walk (robots that begin upright) and to get up (robots
that begin as in the maze).
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('XLA_FLAGS',
                      '--xla_cpu_multi_thread_eigen=false')  # one core is enough for small networks

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from any folder

import support.threads  # noqa: F401, E402  its first line

import numpy as np  # noqa: E402

from ogbench_utils import make_env  # noqa: E402
from support.files import prefix_errors, write_atomic  # noqa: E402
from support.flags import run_main, summary  # noqa: E402
from support.metrics import MetricsLog  # noqa: E402
from support.npz import load_arrays  # noqa: E402

STANDING_HEAD = 1.4  # metres; height of the head of a standing humanoid in OGBench and dm_control
FALLEN_HEAD = 0.7  # metres; a walk that began upright is cut short below it
BINS = 51  # of the critics


# ----------------------------------------------------------------------------------------------------- robots
class Body:
    """Base class of robots: an OGBench environment from `make`, its data, and the orientation of the torso.
    """

    def __init__(self, seed, begins_standing):
        self.begins_standing = begins_standing
        self.env = self.make()
        self.env.reset(seed=seed)
        self.data = self.env.data
        self.rng = np.random.default_rng(seed)

    def step(self, action):
        self.env.do_simulation(action, self.env.frame_skip * self.action_repeat)

    def torso(self):
        """Return the axes of the torso in the world, the columns of a (3, 3) array."""
        return self.data.xmat[1].reshape(3, 3)

    def facing(self):
        """Return the horizontal part (2,) of the unit vector in which the chest points."""
        return self.torso()[:2, 0]


class Humanoid(Body):
    """OGBench's humanoid with a direction to walk.

    With `begins_standing` its episodes begin upright and are cut short soon after a fall. Otherwise they
    begin as in the maze, in a random pose in the air, and last the whole time.

    A robot keeps this choice for all episodes. If it were drawn per episode, short walks of 20 decisions
    would be a small fraction of all decisions beside episodes of 200.
    """

    action_repeat = 2  # 20 decisions a second
    decisions_of_episode = {True: 400, False: 200}
    top_speed = 2.0  # metres per second; the longest path of the medium maze is 40 m, an episode has 50 s

    def make(self):
        from ogbench.online_locomotion.humanoid import HumanoidEnv

        return HumanoidEnv()

    def reset(self):
        if self.begins_standing:
            self._place(bend=0.1 * self.rng.random(), tilt=0.1)
        elif self.rng.random() < 0.5:
            self._place(bend=self.rng.random(), tilt=1.0)  # partly upright
        else:
            self.env.reset()

    def _place(self, bend, tilt):
        """Place the humanoid with its lowest part just above the ground.

        Args:
            bend: weight of random joint angles, 0 to 1.
            tilt: largest tilt of the torso, in radians.
        """
        # joints between the initial and random ones
        low, high = self.env.model.jnt_range[1:].T
        qpos = self.env.init_qpos.copy()
        qpos[7:] += bend * (self.rng.uniform(low, high) - qpos[7:])

        # a random yaw, a random tilt
        yaw = self.rng.uniform(-np.pi, np.pi)
        lean = self.rng.uniform(-np.pi, np.pi)
        half = 0.5 * tilt * self.rng.random()
        qpos[3:7] = multiply(yaw_quaternion(yaw), [np.cos(half), np.sin(half) * np.cos(lean),
                                                   np.sin(half) * np.sin(lean), 0.0])

        # a small random velocity; the height follows from the pose
        qvel = 0.1 * self.rng.standard_normal(self.env.model.nv)
        self.env.set_state(qpos, qvel)
        qpos[2] -= self.data.xpos[1:, 2].min() - 0.1
        self.env.set_state(qpos, qvel)

    def features(self, direction):
        """Return features (70,): the state, with velocities and the direction (2,) in the torso's frame."""
        return humanoid_features(self.env._get_obs(), self.torso(), direction)

    def head(self):
        return self.data.xpos[2, 2]

    def speed(self, direction):
        """Return the speed of the centre of mass along the direction, in metres per second."""
        return self.data.sensordata[:2] @ direction

    def standing(self):
        return float(self.head() > 1.2)

    def fallen(self):
        return self.head() < FALLEN_HEAD

    def reward(self, direction, action):
        """Return the reward of one decision: 0 to 0.1 lying, 1 standing, 3 walking at top speed."""
        upright = 0.5 + 0.5 * self.data.xmat[1, 8]
        height = np.clip(self.head() / STANDING_HEAD, 0.0, 1.0)
        standing = np.clip((self.head() - 0.9) / 0.45, 0.0, 1.0) * upright

        speed = np.clip(self.speed(direction), -1.0, self.top_speed)
        return 0.4 * height + 0.1 * upright + standing * (0.3 + speed + 0.2 * self.facing() @ direction) \
            - 0.02 * np.square(action).mean()


def humanoid_features(state, torso, direction):
    """Return the teacher's features (70,) of a humanoid.

    Args:
        state: (67,), OGBench's observation without x, y.
        torso: (3, 3), its columns are the axes of the torso in the world.
        direction: (2,), a unit vector.
    """
    return np.concatenate([
        state[:37],  # joints (21), head height, hands and feet (12) and up (3) in the torso's frame
        0.5 * state[37:40] @ torso,  # velocity of the centre of mass
        0.5 * state[40:43] @ torso,  # velocity of the torso
        0.2 * state[43:46],  # angular velocity, in the torso's frame already
        0.1 * state[46:67],  # velocities of joints
        direction @ torso[:2],
    ]).astype(np.float32)


class Ant(Body):
    """OGBench's ant with a direction to walk, and with random pushes. All episodes begin upright.

    With `begins_standing` it walks on a plain, and an episode is cut short on its back, since ants cannot get
    up. Otherwise it walks among the walls of a maze, which it does not observe and often walks into. A fallen
    ant stays there until time is up, so that the critic learns the cost of a fall.
    """

    action_repeat = 1  # 10 decisions a second
    decisions_of_episode = {True: 400, False: 400}
    top_speed = 4.0
    mirror_features = mirror_actions = None  # a mirrored ant differs in more than signs

    def make(self):
        if not self.begins_standing:
            return make_env('antmaze-large-navigate-v0', terminate_at_goal=False,
                            disable_env_checker=True).unwrapped

        from ogbench.online_locomotion.ant import AntEnv

        return AntEnv(terminate_when_unhealthy=False)

    def reset(self):
        options = None
        if not self.begins_standing:
            free = np.argwhere(self.env.maze_map == 0)
            options = {'task_info': {'init_ij': tuple(self.rng.choice(free)),
                                     'goal_ij': tuple(self.rng.choice(free))}}
        self.env.reset(options=options)

    def step(self, action):
        if self.rng.random() < 0.02:  # a push, as from a wall
            velocity = self.data.qvel.copy()
            velocity[:2] += self.rng.normal(0.0, 1.0, 2)
            self.env.set_state(self.data.qpos, velocity)
        super().step(action)

    def state(self):
        """Return OGBench's observation without x, y (27,)."""
        return np.concatenate([self.data.qpos[2:], self.data.qvel])

    def features(self, direction):
        """Return features (29,): the state, with velocities and the direction (2,) in the torso's frame."""
        return ant_features(self.state(), self.torso(), direction)

    def head(self):
        """Return the vertical component of the torso's axis, 1 to -1, in place of the height of a head."""
        return self.data.xmat[1, 8]

    def speed(self, direction):
        return self.data.qvel[:2] @ direction

    def standing(self):
        return float(self.head() > 0.5)

    def fallen(self):
        return self.head() < 0

    def reward(self, direction, action):
        """Return the reward of one decision: 0 on its back, 0.5 standing, 2.5 walking at top speed."""
        speed = np.clip(self.speed(direction), -1.0, self.top_speed)
        return self.standing() * (0.5 + 0.5 * speed) - 0.02 * np.square(action).mean()


def ant_features(state, torso, direction):
    """Return the teacher's features (29,) of an ant.

    Args:
        state: (27,), OGBench's observation without x, y.
        torso: (3, 3), its columns are the axes of the torso in the world.
        direction: (2,), a unit vector.
    """
    return np.concatenate([
        state[:1],  # height
        torso[2],  # up, in the torso's frame
        state[5:13],  # joints
        0.3 * state[13:16] @ torso,  # velocity
        0.2 * state[16:19],  # angular velocity, in the torso's frame already
        0.1 * state[19:27],  # velocities of joints
        direction @ torso[:2],
    ]).astype(np.float32)


# Mirroring left and right: mirrored = sign * x[order]. The sign of a joint is 1 if its axis is mirrored in
# the model.
_LEG = np.array([1, 1, 1, 1, 1, -1])  # hip x, z, y, knee, ankle y, x
_ARM = np.array([-1, -1, 1])
_JOINT_ORDER = np.r_[0:3, 9:15, 3:9, 18:21, 15:18]
_JOINT_SIGN = np.r_[-1, 1, -1, _LEG, _LEG, _ARM, _ARM]  # abdomen z, y, x
_LIMB_SIGN = np.tile([1, -1, 1], 4)
_VECTOR_SIGN = np.array([1, -1, 1])
MIRROR_FEATURES = (
    np.r_[_JOINT_ORDER, 21, 28:34, 22:28, 34:46, 46 + _JOINT_ORDER, 67:70],
    np.r_[_JOINT_SIGN, 1, _LIMB_SIGN, _VECTOR_SIGN, _VECTOR_SIGN, _VECTOR_SIGN, -_VECTOR_SIGN, _JOINT_SIGN,
          _VECTOR_SIGN].astype(np.float32))
MIRROR_ACTIONS = (  # motors: abdomen y, z, x; hip x, z, y, knee, ankle x, y of the legs; arms
    np.r_[0:3, 9:15, 3:9, 18:21, 15:18],
    np.r_[1, -1, -1, 1, 1, 1, 1, -1, 1, 1, 1, 1, 1, -1, 1, _ARM, _ARM].astype(np.float32))


Humanoid.mirror_features = MIRROR_FEATURES
Humanoid.mirror_actions = MIRROR_ACTIONS
ROBOTS = {'humanoid': Humanoid, 'ant': Ant}


def multiply(p, q):
    """Return the quaternion of rotation q followed by p, each (4,) in MuJoCo's order (w, x, y, z)."""
    p = np.asarray(p)
    q = np.asarray(q)
    return np.r_[p[0] * q[0] - p[1:] @ q[1:], p[0] * q[1:] + q[0] * p[1:] + np.cross(p[1:], q[1:])]


def yaw_quaternion(angle):
    """Return the quaternion (4,) of a rotation about the vertical axis, in MuJoCo's order (w, x, y, z)."""
    return np.array([np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)])


class DirectedRobot:
    """A robot with a direction that changes, mostly by up to a right angle, as in a maze."""

    resample_decisions = (30, 160)  # a direction holds for 1.5 to 8 seconds

    def __init__(self, body, seed, begins_standing):
        self.body = body(seed, begins_standing)
        self.rng = np.random.default_rng([seed, 1])
        self.reset()

    def reset(self):
        self.body.reset()
        self.decision = 0
        self.down = 0  # decisions since a fall
        spread = 0.5 if self.rng.random() < 0.5 else np.pi
        x, y = self.body.facing()
        self._turn_to(np.arctan2(y, x) + self.rng.uniform(-spread, spread))

    def _turn_to(self, angle):
        self.angle = angle
        self.direction = np.array([np.cos(angle), np.sin(angle)])
        self.next_direction = self.decision + self.rng.integers(*self.resample_decisions)

    def features(self):
        return self.body.features(self.direction)

    def step(self, action):
        """Execute one decision.

        Returns:
            reward;
            features after the decision, before a change of direction or a reset;
            cut, whether the next decision has another direction or episode;
            ended, whether the episode is over.
        """
        self.body.step(action)
        reward = self.body.reward(self.direction, action)
        features = self.features()
        self.decision += 1

        self.down = self.down + 1 if self.body.fallen() else 0
        fell = self.body.begins_standing and self.down > 3
        ended = fell or self.decision >= self.body.decisions_of_episode[self.body.begins_standing]
        cut = ended or self.decision == self.next_direction
        if cut and not ended:
            spread = np.pi / 2 if self.rng.random() < 0.8 else np.pi
            self._turn_to(self.angle + self.rng.uniform(-spread, spread))
        return reward, features, cut, ended


# ----------------------------------------------------------------------------------------------------- replay
class Replay:
    """The last `rows` decisions of N robots, in order, for returns over several decisions."""

    def __init__(self, rows, num_envs, feature_dim, action_dim):
        self.features = np.zeros((rows, num_envs, feature_dim), np.float32)
        self.next_features = np.zeros((rows, num_envs, feature_dim), np.float32)
        self.actions = np.zeros((rows, num_envs, action_dim), np.float32)
        self.rewards = np.zeros((rows, num_envs), np.float32)
        self.cut = np.ones((rows, num_envs), bool)
        self.next = 0
        self.size = 0

    def add(self, features, actions, rewards, next_features, cut):
        row = self.next
        self.features[row] = features
        self.actions[row] = actions
        self.rewards[row] = rewards
        self.next_features[row] = next_features
        self.cut[row] = cut
        self.next = (row + 1) % len(self.cut)
        self.size = min(self.size + 1, len(self.cut))

    def sample(self, rng, count, horizon, discount):
        """Sample decisions.

        Returns:
            features, actions, returns over up to `horizon` decisions, features after them, discounts there.
        """
        rows = self.next - self.size + rng.integers(0, self.size - horizon + 1, count)
        envs = rng.integers(0, self.cut.shape[1], count)

        # sum rewards until a cut or the horizon
        last = rows.copy()
        total = np.zeros(count, np.float32)
        factor = np.ones(count, np.float32)
        active = np.ones(count, bool)
        for _ in range(horizon):
            at = last % len(self.cut)
            total += np.where(active, factor * self.rewards[at, envs], 0)
            factor = np.where(active, factor * discount, factor).astype(np.float32)
            active &= ~self.cut[at, envs]
            last = last + active

        last = np.minimum(last, rows + horizon - 1) % len(self.cut)
        first = rows % len(self.cut)
        return (self.features[first, envs], self.actions[first, envs], total,
                self.next_features[last, envs], factor)

    def save(self, path, rows):
        """Save the newest `rows` rows, in half precision."""
        at = np.arange(self.next - min(rows, self.size), self.next) % len(self.cut)
        arrays = {name: getattr(self, name)[at].astype(np.float16) for name in
                  ('features', 'actions', 'rewards', 'next_features')}
        write_atomic(path, lambda file: np.savez(file, cut=self.cut[at], **arrays))

    def load(self, path):
        """Append the rows of a file from `save`."""
        arrays = load_arrays(path, ('features', 'actions', 'rewards', 'next_features', 'cut'))
        for row in zip(*arrays.values(), strict=True):
            self.add(*row)
        self.cut[self.next - 1] = True


# ---------------------------------------------------------------------------------------------------- learner
def make_learner(flags, body, feature_dim, action_dim):
    """Return the initial state, a nested dict of arrays, and two compiled functions of it: act and update."""
    import jax
    import jax.numpy as jnp

    support = jnp.linspace(flags.value_range[0], flags.value_range[1], BINS)
    spacing = (flags.value_range[1] - flags.value_range[0]) / (BINS - 1)

    def layers(key, sizes, copies=()):
        keys = jax.random.split(key, len(sizes) - 1)
        return [{'w': jax.random.normal(k, (*copies, n_in, n_out)) / n_in ** 0.5,
                 'b': jnp.zeros((*copies, 1, n_out))}
                for k, n_in, n_out in zip(keys, sizes[:-1], sizes[1:], strict=True)]

    def normalize(x):
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)

    def network(params, x):
        for layer in params[:-1]:
            x = jax.nn.relu(normalize(x @ layer['w'] + layer['b']))
        return x @ params[-1]['w'] + params[-1]['b']

    def policy(params, x, noise):
        """Return actions (B, A) in (-1, 1) and their log densities (B,)."""
        mean, log_std = jnp.split(network(params, x), 2, -1)
        log_std = -4.0 + 2.5 * (jnp.tanh(log_std) + 1)  # -4 to 1
        raw = mean + jnp.exp(log_std) * noise
        slope = 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))
        log_prob = (-0.5 * noise ** 2 - log_std - 0.919 - slope).sum(-1)
        return jnp.tanh(raw), log_prob

    def critic(params, x, actions):
        """Return logits (critics, B, BINS)."""
        x = jnp.concatenate([x, actions], -1)
        return network(params, jnp.broadcast_to(x, (flags.critics, *x.shape)))

    def value_of(logits):
        """Return the mean values (B,) over bins and critics."""
        return (jax.nn.softmax(logits) * support).sum(-1).mean(0)

    def adam(params, gradient, moments, step, lr):
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments['first'], gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, moments['second'], gradient)
        bias = jnp.sqrt(1 - 0.999 ** step) / (1 - 0.9 ** step)
        params = jax.tree.map(lambda p, m, v: p - lr * bias * m / (jnp.sqrt(v) + 1e-8), params, first, second)
        return params, {'first': first, 'second': second}

    def zeros(params):
        return {'first': jax.tree.map(jnp.zeros_like, params), 'second': jax.tree.map(jnp.zeros_like, params)}

    def mirror(x, exchange):
        """Mirror half of the rows."""
        if exchange is None:
            return x
        half = len(x) // 2
        order, sign = exchange
        return jnp.concatenate([x[:half], x[half:][:, order] * sign])

    def update_critic(state, batch):
        x, actions, rewards, next_x, discount, noise, _ = batch
        x, next_x = mirror(x, body.mirror_features), mirror(next_x, body.mirror_features)
        actions = mirror(actions, body.mirror_actions)
        step = state['step'] + 1

        next_actions, log_prob = policy(state['actor'], next_x, noise)
        next_value = value_of(critic(state['target'], next_x,
                                     next_actions)) - jnp.exp(state['log_alpha']) * log_prob
        value = jnp.clip(rewards + discount * next_value, support[0], support[-1])
        target = jnp.clip(1 - jnp.abs(value[:, None] - support) / spacing, 0,
                          1)  # weights of the two nearest bins

        def loss(params):
            return -flags.critics * (jax.nn.log_softmax(critic(params, x, actions)) * target).sum(-1).mean()

        error, gradient = jax.value_and_grad(loss)(state['critic'])
        params, moments = adam(state['critic'], gradient, state['critic_adam'], step, flags.lr)
        slow = jax.tree.map(lambda t, p: t + flags.target_rate * (p - t), state['target'], params)
        state = state | {'critic': params, 'critic_adam': moments, 'target': slow, 'step': step}
        return state, (x, {'critic_loss': error, 'value': value.mean()})

    def update_actor(state, x, noise):
        step = state['step'] / 2

        def loss(params):
            actions, log_prob = policy(params, x, noise)
            value = value_of(critic(state['critic'], x, actions))
            return (jnp.exp(state['log_alpha']) * log_prob - value).mean(), log_prob.mean()

        (_, log_prob), gradient = jax.value_and_grad(loss, has_aux=True)(state['actor'])
        params, moments = adam(state['actor'], gradient, state['actor_adam'], step, flags.lr)

        surplus = -log_prob - flags.entropy * action_dim
        log_alpha = state['log_alpha'] - flags.lr * jnp.clip(surplus, -10, 10)
        return state | {'actor': params, 'actor_adam': moments, 'log_alpha': log_alpha}, log_prob

    def update_twice(state, batches):
        """Update the critics twice and the actor once."""
        state, _ = update_critic(state, jax.tree.map(lambda x: x[0], batches))
        state, (x, metrics) = update_critic(state, jax.tree.map(lambda x: x[1], batches))
        state, log_prob = update_actor(state, x, batches[-1][1])
        return state, metrics | {'entropy': -log_prob, 'alpha': jnp.exp(state['log_alpha'])}

    @jax.jit
    def update(state, batches):
        """Update with batches (U, 2, B, ...) of `Replay.sample` and of normal noise for two policies."""
        state, metrics = jax.lax.scan(update_twice, state, batches)
        return state, jax.tree.map(jnp.mean, metrics)

    @jax.jit
    def act(actor, x, noise):
        return policy(actor, x, noise)[0]

    keys = jax.random.split(jax.random.PRNGKey(flags.seed), 2)
    hidden = [flags.hidden, flags.hidden]
    actor = layers(keys[0], [feature_dim, 256, 256, 2 * action_dim])
    critics = layers(keys[1], [feature_dim + action_dim, *hidden, BINS], copies=(flags.critics,))
    for params in (actor, critics):
        params[-1]['w'] *= 0.01
    critics[-1]['b'] -= 0.5 * jnp.square(support / (2 * spacing))  # initial values are about 0

    state = {'actor': actor, 'critic': critics, 'target': critics, 'actor_adam': zeros(actor),
             'critic_adam': zeros(critics), 'log_alpha': jnp.log(jnp.asarray(flags.alpha)),
             'step': jnp.zeros(())}
    return state, act, update


def flatten(tree, prefix=''):
    """Return {'a/0/b': array} of nested dicts and lists of arrays."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    flat = {}
    for name, value in items:
        path = f'{prefix}/{name}' if prefix else str(name)
        flat |= flatten(value, path) if isinstance(value, dict | list) else {path: np.asarray(value)}
    return flat


def unflatten(like, flat, prefix=''):
    """Return the arrays of `flatten` in the structure of `like`."""
    if isinstance(like, dict):
        return {name: unflatten(value, flat, f'{prefix}/{name}' if prefix else name) for name,
                value in like.items()}
    if isinstance(like, list):
        return [unflatten(value, flat, f'{prefix}/{i}') for i, value in enumerate(like)]
    return flat[prefix]


# ---------------------------------------------------------------------------------------------------- command
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument('--robot', choices=sorted(ROBOTS), default='humanoid')
    parser.add_argument('--num_decisions', type=int, default=1_500_000,
                        help='total number of decisions (default: 1.5 million)')
    parser.add_argument('--num_envs', type=int, default=16, help='number of robots (default: 16)')
    parser.add_argument('--standing_envs', type=int, default=10,
                        help='robots that begin upright, or ants on a plain (default: 10)')
    parser.add_argument('--updates', type=int, default=8,
                        help='critic updates per decision of all robots (default: 8)')
    parser.add_argument('--batch', type=int, default=128, help='decisions per update (default: 128)')
    parser.add_argument('--hidden', type=int, default=256, help='width of the critics (default: 256)')
    parser.add_argument('--critics', type=int, default=1,
                        help='number of critics, whose mean is the value (default: 1)')
    parser.add_argument('--lr', type=float, default=3e-4, help='learning rate (default: 3e-4)')
    parser.add_argument('--alpha', type=float, default=0.05,
                        help='initial weight of the entropy (default: 0.05)')
    parser.add_argument('--entropy', type=float, default=-0.5,
                        help='target entropy per motor (default: -0.5)')
    parser.add_argument('--discount', type=float, default=0.97, help='discount per decision (default: 0.97)')
    parser.add_argument('--horizon', type=int, default=3, help='decisions in a return (default: 3)')
    parser.add_argument('--target_rate', type=float, default=0.005,
                        help='update rate of the target critics (default: 0.005)')
    parser.add_argument('--value_range', type=float, nargs=2, default=(-5.0, 105.0), help='range of returns')
    parser.add_argument('--first_decisions', type=int, default=8000,
                        help='random decisions at the start (default: 8,000)')
    parser.add_argument('--replay', type=int, default=1_500_000,
                        help='capacity in decisions (default: 1.5 million)')
    parser.add_argument('--save_minutes', type=float, default=5.0,
                        help='minutes between checkpoints (default: 5)')
    parser.add_argument('--seed', type=int, default=0, help='(default: 0)')
    parser.add_argument('--output_dir', default='', help='folder (default: experts/<robot>)')
    parser.add_argument('--replay_path', default='', help='npz file for the newest 300,000 decisions')
    parser.add_argument('--resume', action='store_true',
                        help='continue from teacher.npz in the output folder')
    return parser.parse_args(argv)


class Meters:
    """Means of metrics between two rows of the curve."""

    def __init__(self):
        self.sums = {}

    def add(self, name, value):
        total, count = self.sums.get(name, (0.0, 0))
        self.sums[name] = (total + float(value), count + 1)

    def means(self):
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums = {}
        return means


def train(flags):
    """Collect and learn until `num_decisions`; return the learner's state."""
    folder = Path(flags.output_dir or ROOT / 'experts' / flags.robot)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'teacher.npz'
    if path.exists() and not flags.resume:
        raise ValueError(f'{path} exists: add --resume, or name another --output_dir')

    body = ROBOTS[flags.robot]
    np.random.seed(flags.seed)  # mazes draw from numpy's global generator
    robots = [DirectedRobot(body, 1000 * flags.seed + i, i < flags.standing_envs)
              for i in range(flags.num_envs)]
    action_dim = robots[0].body.env.action_space.shape[0]
    state, act, update = make_learner(flags, body, len(robots[0].features()), action_dim)
    replay = Replay(flags.replay // flags.num_envs, flags.num_envs, len(robots[0].features()), action_dim)
    decisions = 0

    if flags.resume:
        flat = load_arrays(path)
        with prefix_errors(path):
            decisions = int(flat.pop('decisions'))
            state = unflatten(state, flat)
        if flags.replay_path and Path(flags.replay_path).exists():
            replay.load(flags.replay_path)

    def save():
        arrays = flatten(state) | {'decisions': np.array(decisions)}
        write_atomic(path, lambda file: np.savez(file, **arrays))
        if flags.replay_path:
            replay.save(Path(flags.replay_path), 300_000 // flags.num_envs)

    rng = np.random.default_rng([flags.seed, decisions])
    log = MetricsLog(folder / 'curve.csv', decisions)
    meters = Meters()
    features = np.stack([robot.features() for robot in robots])
    saved = began = time.perf_counter()
    logged = decisions

    try:
        while decisions < flags.num_decisions:
            # actions of all robots
            if decisions < flags.first_decisions:
                actions = rng.uniform(-1, 1, (flags.num_envs, action_dim)).astype(np.float32)
            else:
                noise = rng.standard_normal((flags.num_envs, action_dim), np.float32)
                actions = np.asarray(act(state['actor'], features, noise))

            # one decision of each
            rewards = np.zeros(flags.num_envs, np.float32)
            cut = np.zeros(flags.num_envs, bool)
            next_features = np.zeros_like(features)
            following = np.zeros_like(features)
            for i, robot in enumerate(robots):
                rewards[i], next_features[i], cut[i], ended = robot.step(actions[i])
                kind = 'walk' if robot.body.begins_standing else 'ground'
                meters.add(f'{kind}/reward', rewards[i])
                meters.add(f'{kind}/head', robot.body.head())
                meters.add(f'{kind}/standing', robot.body.standing())
                if robot.body.standing():
                    meters.add(f'{kind}/speed', robot.body.speed(robot.direction))
                if ended:
                    meters.add(f'{kind}/length', robot.decision)
                    meters.add(f'{kind}/stands_at_end', robot.body.standing())
                    robot.reset()
                following[i] = robot.features() if cut[i] else next_features[i]

            replay.add(features, actions, rewards, next_features, cut)
            features = following
            decisions += flags.num_envs

            # updates
            if replay.size * flags.num_envs >= flags.first_decisions:
                count = flags.updates * flags.batch
                parts = [*replay.sample(rng, count, flags.horizon, flags.discount),
                         *rng.standard_normal((2, count, action_dim), np.float32)]
                batches = tuple(x.reshape(flags.updates // 2, 2, flags.batch, *x.shape[1:]) for x in parts)
                state, metrics = update(state, batches)
                for name, value in metrics.items():
                    meters.add(name, value)

            # log and save
            now = time.perf_counter()
            if decisions - logged >= 10_000:
                row = meters.means() | {'decisions_per_second': (decisions - logged) / (now - began)}
                log.log(decisions, row)
                text = json.dumps({name: float(f'{value:.3g}') for name, value in row.items()})
                print(f'{decisions:,} {text}', flush=True)
                logged, began = decisions, now
            if now - saved > 60 * flags.save_minutes:
                save()
                saved = now
    finally:
        save()
    return state


def main():
    train(parse_args())


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM saves, as Ctrl-C does
    run_main(main)
