"""Labels by labeling: which action converged from a state of the data to the next, found by trying actions out there.

A robot that falls at once has no own steps where a demonstrator walks, so that a labeler of own steps (labeling/labeler.py)
never sees what its data show. Where a simulator can be set to a state of the data, it can try: an action is guessed, it
leads somewhere else than the data went, and the difference tells how to correct it. Of the data, only states are read.

    guess         G(s, d) -> a                 d: the change that the action made of s, in one step
    correction    C(s, a', d', d) -> a - a'    a' was tried in s as well, and made the change d'

Of two probes at the same state all that no action does drops out: gravity, momentum, the forces of the ground. So
corrections are easier to learn than guesses, and what is wrong with a guess at some state is corrected there. Both are
learned from probes alone: guesses from random ones, corrections from pairs at one state, the best that is known and the
same with noise. Of each action, noise is as large as the last network was wrong, so that what is learned is how to
correct what is wrong: where it was nearly right about a hip, an ankle is no longer lost in the hip's noise. Then
corrections are tried and corrected in turn, by a network that has learned from smaller noise.

What noise does not teach is how a demonstrator's actions differ from what is known of them: networks believe that the
difference is as random as the noise, and shrink it. So at some states actions are solved for, by least squares, and the
network of corrections learns on from those that lead where the data went.

States and changes are told from within the body: of a robot that is free to move, velocities and where is up are told
in the frame of its trunk, and its place and direction not at all. Joint angles alone then decide which force turns what.
"""

import copy
import dataclasses

import support.threads  # noqa: F401  before torch

import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco import MujocoEnv
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from torch import nn
from tqdm import tqdm

from labeling.labeler import explained
from model import mlp

BOUND = 5.0  # standard deviations; what lies further out looks like it, such as a joint that hits its limit
HELD_OUT = 0.02  # of the rows, by which networks are judged
ROWS_AT_ONCE = 1 << 14
WEIGHT_DECAY = 0.01
FAR = 1e3  # standard deviations
CONVERGED_RESIDUAL = 1e-4  # an action is solved for if it misses less than this: mean square, in standard deviations of velocities
EVALUATIONS = 15  # actions that a solver probes at most, beside those by which it measures slopes
MEASURED_EVERY = 7  # one in so many slopes is measured, those between follow from what was tried
DIFFERENCE = 0.01  # of an action's range, by which its effect is measured


class Simulator:
    """A robot in MuJoCo that can be set to any state. Raises ValueError for an environment that is none.

    env: an environment derived from gymnasium's MujocoEnv. States are qpos (n, Q) and qvel (n, U), actions (n, A) in
    the environment's units.
    """

    def __init__(self, env):
        self.env = env.unwrapped
        if not isinstance(self.env, MujocoEnv):
            raise ValueError(f'{type(self.env).__name__} cannot be set to states of the data: rehearsing needs an '
                             "environment derived from gymnasium's MujocoEnv, such as those of ants and humanoids")

        self.model = self.env.model
        joints = self.model.jnt_type
        self.is_free = bool(joints[0] == mujoco.mjtJoint.mjJNT_FREE)
        turning = joints[1:] if self.is_free else joints
        if np.isin(turning, (mujoco.mjtJoint.mjJNT_FREE, mujoco.mjtJoint.mjJNT_BALL)).any():
            raise ValueError(f'{type(self.env).__name__}: only its first joint may be free, and none a ball')

    def simulate(self, qpos, qvel, actions):
        """Where do the actions lead in one step? -> (qpos, qvel) float32, of the same shapes. Raises
        FloatingPointError where the physics fail."""
        next_qpos = np.empty(qpos.shape, np.float32)
        next_qvel = np.empty(qvel.shape, np.float32)
        for i in tqdm(range(len(actions)), 'probes', leave=False, dynamic_ncols=True, mininterval=1.0):
            self.env.set_state(qpos[i].astype(np.float64), qvel[i].astype(np.float64))
            self.env.do_simulation(actions[i], self.env.frame_skip)
            next_qpos[i] = self.env.data.qpos
            next_qvel[i] = self.env.data.qvel

        finite = np.isfinite(next_qpos).all(1) & np.isfinite(next_qvel).all(1)
        if not finite.all():
            raise FloatingPointError(f'the physics failed in {np.count_nonzero(~finite)} of {len(actions)} probes')
        return next_qpos, next_qvel

    @property
    def probes_to_solve(self):
        """How many probes `solve` takes at a state, at most."""
        measurements = -(-EVALUATIONS // MEASURED_EVERY)
        return EVALUATIONS + measurements * len(self.env.action_space.low)

    def solve(self, qpos, qvel, next_qpos, next_qvel, actions, speed):
        """Improve actions (n, A) until they lead from states to the next ones -> Solved. Nonlinear least squares within
        the bounds of actions (scipy's dogbox), whose slopes are differences in each action now and then, and Broyden's
        in between. speed (U,): standard deviations of the data's velocities."""
        solved = np.empty(actions.shape, np.float32)
        residual = np.empty(len(actions), np.float32)
        probes = 0
        for i in tqdm(range(len(actions)), 'states solved', leave=False, dynamic_ncols=True, mininterval=1.0):
            step = Step(self.env, qpos[i], qvel[i], next_qpos[i], next_qvel[i], speed)
            solved[i], residual[i] = step.solve(actions[i])
            probes += step.probes
        return Solved(solved, residual < CONVERGED_RESIDUAL, probes)

    def states(self, qpos, qvel):
        """What a network is told of states -> (n, F) float32: joints and velocities from within the body, where up is,
        and how high each part of it is, which says what touches the ground."""
        seen = [qpos, qvel]
        if self.is_free:
            back = rotation_of(qpos).inv()
            up = back.apply([0.0, 0.0, 1.0])
            velocity = back.apply(qvel[:, :3])
            seen = [up, qpos[:, 7:], velocity, qvel[:, 3:]]
        return np.concatenate([*seen, self.heights(qpos)], 1).astype(np.float32)

    def heights(self, qpos):
        """-> (n, bodies)."""
        data = mujoco.MjData(self.model)
        heights = np.empty((len(qpos), self.model.nbody - 1), np.float32)
        for i, position in enumerate(qpos):
            data.qpos[:] = position
            mujoco.mj_kinematics(self.model, data)
            heights[i] = data.xpos[1:, 2]
        return heights

    def changes(self, qpos, qvel, next_qpos, next_qvel):
        """What a step changed -> (n, 2 U) float32: of a free body, in the frame in which it began."""
        if not self.is_free:
            return np.concatenate([next_qpos - qpos, next_qvel - qvel], 1)

        rotation = rotation_of(qpos)
        back = rotation.inv()
        change = [
            back.apply(next_qpos[:, :3] - qpos[:, :3]),
            (back * rotation_of(next_qpos)).as_rotvec(),
            next_qpos[:, 7:] - qpos[:, 7:],
            back.apply(next_qvel[:, :3] - qvel[:, :3]),
            next_qvel[:, 3:] - qvel[:, 3:],
        ]
        return np.concatenate(change, 1).astype(np.float32)


@dataclasses.dataclass
class Solved:
    """Actions that were solved for."""

    actions: np.ndarray  # (n, A) in the environment's units
    converged: np.ndarray  # (n,) bool: did they lead where the data went? Of the others a network may know better
    probes: int  # that it took


@dataclasses.dataclass
class Jacobian:
    """How a miss depends on an action, near one."""

    action: np.ndarray  # (A,)
    miss: np.ndarray  # (2 U,) of it
    matrix: np.ndarray  # (2 U, A)
    age: int  # steps since they were measured


class Step:
    """A step of the data whose action is solved for. speed (U,): standard deviations of velocities."""

    def __init__(self, env, qpos, qvel, next_qpos, next_qvel, speed):
        self.env = env
        self.qpos = qpos.astype(np.float64)
        self.qvel = qvel.astype(np.float64)
        self.next_qpos = next_qpos.astype(np.float64)
        self.next_qvel = next_qvel.astype(np.float64)
        self.speed = speed

        space = env.action_space
        self.low = space.low.astype(np.float64)
        self.high = space.high.astype(np.float64)
        self.probes = 0
        self.last = None  # the action at which a miss was computed last
        self.last_miss = None
        self.known = None  # Jacobian, the last ones

    def solve(self, action):
        """From a first one (A,) -> (action (A,), mean square of what it misses)."""
        start = np.clip(action.astype(np.float64), self.low, self.high)
        found = least_squares(self.miss, start, self.slopes, bounds=(self.low, self.high), method='dogbox',
                              xtol=1e-3, ftol=1e-4, max_nfev=EVALUATIONS)
        return found.x, np.square(found.fun).mean()

    def miss(self, action):
        """How far an action (A,) leads from where the data went (2 U,), in standard deviations of velocities; of
        positions, the speed that would have been lacking."""
        env = self.env
        env.set_state(self.qpos, self.qvel)
        env.do_simulation(action, env.frame_skip)
        self.probes += 1

        lacking = np.empty(env.model.nv)
        mujoco.mj_differentiatePos(env.model, lacking, env.dt, self.next_qpos, env.data.qpos)
        miss = np.concatenate([lacking, env.data.qvel - self.next_qvel]) / np.tile(self.speed, 2)
        miss = np.nan_to_num(miss, nan=FAR, posinf=FAR, neginf=-FAR)  # physics that fail lead far away
        self.last = action.copy()
        self.last_miss = miss
        return miss

    def slopes(self, action):
        """How each number of an action changes the miss (2 U, A): measured, or Broyden's (1965, eq. 4.5), which are the
        last ones, made to agree with what the last step did."""
        here = self.last_miss if np.array_equal(action, self.last) else self.miss(action)
        known = self.known
        if known is None or known.age + 1 == MEASURED_EVERY:
            self.known = Jacobian(action.copy(), here, self.measure(action, here), age=0)
            return self.known.matrix

        step = action - known.action
        unexpected = here - known.miss - known.matrix @ step
        matrix = known.matrix + np.outer(unexpected, step) / (step @ step)
        self.known = Jacobian(action.copy(), here, matrix, known.age + 1)
        return matrix

    def measure(self, action, here):
        """Jacobian (2 U, A) at an action that misses by `here`: a difference in each of its numbers."""
        inward = np.where(action < (self.low + self.high) / 2, 1, -1)
        differences = DIFFERENCE * (self.high - self.low) * inward
        columns = []
        for k, difference in enumerate(differences):
            changed = action.copy()
            changed[k] += difference
            columns.append((self.miss(changed) - here) / difference)
        return np.stack(columns, 1)


def rotation_of(qpos):
    """How free bodies (n, Q) are turned -> scipy's Rotation."""
    return Rotation.from_quat(qpos[:, 3:7], scalar_first=True)


class InverseModel(nn.Module):
    """Which action makes a change, told a context: the state and, of a correction, the try to be corrected.

    At one state, changes are nearly linear in actions, and the context decides how: products of the one with the other,
    and a network of both for the rest.
    """

    def __init__(self, context_dim, change_dim, action_dim, hidden_dim):
        super().__init__()
        self.context = mlp([context_dim, hidden_dim, hidden_dim])
        self.gates = nn.Sequential(nn.LayerNorm(hidden_dim), nn.GELU(), nn.Linear(hidden_dim, hidden_dim))
        self.parts = nn.Linear(change_dim, hidden_dim)
        self.products = nn.Linear(hidden_dim, action_dim)
        self.linear = nn.Linear(change_dim, action_dim)
        self.rest = mlp([hidden_dim + change_dim, hidden_dim, action_dim])

        self.register_buffer('context_mean', torch.zeros(context_dim))
        self.register_buffer('context_std', torch.ones(context_dim))
        self.register_buffer('change_mean', torch.zeros(change_dim))
        self.register_buffer('change_std', torch.ones(change_dim))

    def set_statistics(self, contexts, changes):
        """Take mean and standard deviation of some rows (n, ...)."""
        self.context_mean.copy_(contexts.mean(0))
        self.context_std.copy_(contexts.std(0).clamp(min=1e-6))
        self.change_mean.copy_(changes.mean(0))
        self.change_std.copy_(changes.std(0).clamp(min=1e-6))

    def forward(self, contexts, changes):
        """contexts (n, C), changes (n, D), raw -> (n, A)."""
        contexts = ((contexts - self.context_mean) / self.context_std).clamp(-BOUND, BOUND)
        changes = ((changes - self.change_mean) / self.change_std).clamp(-BOUND, BOUND)
        hidden = self.context(contexts)
        products = self.products(self.gates(hidden) * self.parts(changes))
        rest = self.rest(torch.cat([hidden, changes], -1))
        return self.linear(changes) + products + rest


@dataclasses.dataclass
class Probes:
    """What was tried at some rows, once at each."""

    actions: torch.Tensor  # (n, A) in [-1, 1]
    changes: torch.Tensor  # (n, D) that they made

    def __getitem__(self, rows):
        return Probes(self.actions[rows], self.changes[rows])


@dataclasses.dataclass
class Fit:
    """A network that has learned."""

    network: InverseModel
    errors: torch.Tensor  # (A,) standard deviations of what it residual, at rows that were held out
    r2: float  # share of the variance of actions, or differences of them, that it explains there


class ActionSearch:
    """Learns from probes which actions made the changes that the data show; all on the CPU, but for the networks.

    states (n, F) and changes (n, D): of the rows of the data at which it probes. probes: what was tried there in the last
    two rounds, each time at all of them.
    """

    def __init__(self, states, changes, action_dim, hidden_dim=512, updates=6000, batch_size=512, lr=1e-3,
                 device='cpu'):
        self.states = states
        self.changes = changes
        self.action_dim = action_dim
        self.hidden_dim = hidden_dim
        self.updates = updates
        self.batch_size = batch_size
        self.lr = lr
        self.device = device
        self.probes = []
        self.scale = changes.std(0).clamp(min=1e-6)

    def residual(self, probes):
        """How far each went from where the data did (n,): mean squared difference of the changes, in standard
        deviations of the data's."""
        return ((probes.changes - self.changes) / self.scale).clamp(-BOUND, BOUND).square().mean(1)

    # ---------------------------------------------------------------------------------------------- learning
    def fit_guess(self):
        """Learn a network of single probes -> Fit."""
        def draw(rows):
            numbers = torch.randint(len(self.probes), (len(rows),))
            probes = self._tries_at(numbers, rows)
            return self.states[rows], probes.changes, probes.actions

        return self._fit(draw, len(self.states))

    def fit_correction(self):
        """Learn a network of the pairs that the last two rounds are, one try to be made the other -> Fit."""
        def draw(rows):
            numbers = torch.randint(2, (len(rows),))
            first = self._tries_at(numbers, rows)
            second = self._tries_at(1 - numbers, rows)
            contexts = self._contexts(self.states[rows], first)
            return contexts, second.changes - first.changes, second.actions - first.actions

        return self._fit(draw, len(self.states))

    def fit_solved(self, network, rows, actions):
        """Let a copy of a network of corrections learn on, how the last two rounds at some rows (m,) become the actions
        (m, A) that were solved for there -> Fit."""
        def draw(some):
            at = rows[some]
            probes = self._tries_at(torch.randint(2, (len(at),)), at)
            contexts = self._contexts(self.states[at], probes)
            return contexts, self.changes[at] - probes.changes, actions[some] - probes.actions

        return self._fit(draw, len(rows), copy.deepcopy(network), max(1, self.updates // 3), self.lr / 2)

    def _tries_at(self, numbers, rows):
        """-> Probes (m,), at each of the rows (m,) that of its number (m,) in `probes`."""
        actions = torch.empty(len(rows), self.action_dim)
        changes = torch.empty(len(rows), self.changes.shape[1])
        for number, probes in enumerate(self.probes):
            here = numbers == number
            some = probes[rows[here]]
            actions[here] = some.actions
            changes[here] = some.changes
        return Probes(actions, changes)

    def _fit(self, draw, total, network=None, updates=None, lr=None):
        """`draw(rows)` -> (contexts, changes, actions) of random probes at the rows (m,), of `total` that there are.
        Without a network, a new one learns; without `updates` and `lr`, as many and as fast as all."""
        updates = updates or self.updates
        held_out = max(1, round(HELD_OUT * total))
        count = total - held_out

        if network is None:
            contexts, changes, actions = draw(torch.randint(count, (ROWS_AT_ONCE,)))
            network = InverseModel(contexts.shape[1], changes.shape[1], self.action_dim, self.hidden_dim)
            network.set_statistics(contexts, changes)
            network.to(self.device)

        optimizer = torch.optim.AdamW(network.parameters(), lr or self.lr, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: min(1, 2 - 2 * update / updates))
        for _ in tqdm(range(updates), 'updates', leave=False, dynamic_ncols=True, mininterval=1.0):
            batch = draw(torch.randint(count, (self.batch_size,)))
            contexts, changes, actions = (part.to(self.device) for part in batch)
            loss = (network(contexts, changes) - actions).square().mean()

            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()

        contexts, changes, actions = draw(torch.arange(count, total))
        inferred = self._infer(network, contexts, changes)
        errors = (inferred - actions).square().mean(0).sqrt()
        return Fit(network, errors, explained(inferred, actions))

    # ------------------------------------------------------------------------------------------------- labels
    def guess(self, network, states, changes):
        """-> actions (m, A) in [-1, 1] that made the changes (m, D) in the states (m, F), of whatever rows."""
        return self._infer(network, states, changes).clamp(-1, 1)

    def correct(self, network, probes):
        """-> actions (n, A) in [-1, 1], what `probes` should have been to make the changes of the data."""
        contexts = self._contexts(self.states, probes)
        return (probes.actions + self._infer(network, contexts, self.changes - probes.changes)).clamp(-1, 1)

    def _contexts(self, states, probes):
        return torch.cat([states, probes.actions, probes.changes], 1)

    def make_network(self, state):
        """-> InverseModel of a `state_dict`."""
        network = InverseModel(len(state['context_mean']), len(state['change_mean']), self.action_dim, self.hidden_dim)
        network.load_state_dict(state)
        return network.to(self.device)

    @torch.no_grad()
    def _infer(self, network, contexts, changes):
        pieces = zip(contexts.split(ROWS_AT_ONCE), changes.split(ROWS_AT_ONCE), strict=True)
        return torch.cat([network(*(part.to(self.device) for part in piece)).cpu() for piece in pieces])
