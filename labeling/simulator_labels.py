"""Simulator labels: infer the actions of state-only data by probing actions in a simulator.

A robot that falls at once never visits the states of a walking demonstrator. A labeler of the agent's steps
(labeling/labeler.py) then has no training data near the demonstrations. A simulator that can be set to a
state of the data can test actions there instead. A probe is one action, simulated for one step from one
state. The actions of the data are never read.

    guess         G(s, d) -> a                 d: change of the state in one step
    correction    C(s, a', d', d) -> a - a'    a' was probed at s and made the change d'

The difference between two probes at one state does not depend on gravity, momentum and contact forces that
act in both. Corrections are therefore easier to learn than guesses. Both networks learn from probes alone: G
from random probes, C from two probes at each state, the best action so far and the same action with noise.
The noise is scaled per action dimension to the error of the previous network, so that C is trained on errors
of the size that it must fix. The corrected actions are probed and corrected again in the next stage, by a
network that is trained on smaller noise.

The errors of the best actions are not distributed like this noise, and C shrinks their corrections. Actions
at a subset of the states are therefore solved for by nonlinear least squares. C is fine-tuned on the
solutions whose residual is below `CONVERGED_RESIDUAL`.

Features of states and changes are relative to the body of a robot with a free root joint. Velocities and the
vertical are in the frame of the root body; its position and yaw are left out. The effect of a force then
depends on joint angles alone.
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
from torch.optim.lr_scheduler import LambdaLR

from labeling.labeler import r2_score
from model import mlp
from support.progress import progress_bar
from support.tolerances import divisor

MAX_DEVIATION = 5.0  # standard deviations; clips inputs and residuals, such as changes at a joint limit
HELD_OUT_FRACTION = 0.02  # of the rows, to evaluate networks
NETWORK_CHUNK = 1 << 14  # rows in a prediction, and rows for the statistics of the inputs
WEIGHT_DECAY = 0.01
GRAD_CLIP = 1.0  # norm
FINE_TUNE_UPDATE_DIVISOR = 3  # of the updates of a new network
FINE_TUNE_LR_DIVISOR = 2  # of the learning rate of a new network

# comparison of the simulation with steps of the environment
CHECKED_STEPS = 16
STEP_TOL = 0.05  # largest difference of a step, in effects of its action; rounding and contacts cause less
MAX_DIFFERENT_STEPS = 1  # a teleporter may be near one of the states

# nonlinear least squares
CONVERGED_RESIDUAL = 1e-4  # mean square, in standard deviations of velocities
FAILED_RESIDUAL = 1e3  # standard deviations, of a probe at which the physics fails
MAX_EVALUATIONS = 15  # probes of a solver at one state, without those of finite differences
JACOBIAN_INTERVAL = 7  # iterations between finite differences, with Broyden updates in between
DIFFERENCE_STEP = 0.01  # of finite differences, in action ranges


# ------------------------------------------------------------------------------------------------ simulator
@dataclasses.dataclass
class PhysicsStates:
    """States of a MuJoCo model, or one state without the first dimension."""

    qpos: np.ndarray  # (n, Q) positions
    qvel: np.ndarray  # (n, U) velocities

    def __len__(self):
        return len(self.qpos)

    def __getitem__(self, rows):
        return PhysicsStates(self.qpos[rows], self.qvel[rows])


class Simulator:
    """A robot in MuJoCo that can be set to any state; actions (n, A) are in the environment's units.

    A probe calls `do_simulation`, which stands for a step of the environment. `check_steps` compares both.

    Raises:
        ValueError: the environment is not derived from gymnasium's MujocoEnv, or has joints without features
            or actuators with a state of their own.
    """

    def __init__(self, env):
        self.wrapped_env = env
        self.env = env.unwrapped
        name = type(self.env).__name__
        if not isinstance(self.env, MujocoEnv):
            raise ValueError(f'{name} cannot be set to states of the data: simulator labels need an '
                             "environment derived from gymnasium's MujocoEnv, such as those of ants")

        self.model = self.env.model
        joints = self.model.jnt_type
        self.has_free_root = bool(joints[0] == mujoco.mjtJoint.mjJNT_FREE)
        other_joints = joints[1:] if self.has_free_root else joints
        if np.isin(other_joints, (mujoco.mjtJoint.mjJNT_FREE, mujoco.mjtJoint.mjJNT_BALL)).any():
            raise ValueError(f'{name}: simulator labels need a robot whose joints are hinges or slides, '
                             'except for a free first joint')
        if self.model.na:
            raise ValueError(f'{name}: {self.model.na} actuators have a state of their own, such as muscles; '
                             'simulator labels need a robot whose qpos and qvel are its whole state')

    def check_steps(self, states, seed=0):
        """Compare environment steps with the simulation, at some PhysicsStates and random actions.

        Wrappers and the environment's `step` may scale, clip, delay or repeat actions, or move the robot
        without its motors. Each step follows a reset, so that the models after resets are compared as well.

        Raises:
            ValueError: the steps differ, or the action spaces do; the message names what differs.
        """
        name = type(self.env).__name__
        space = self.wrapped_env.action_space
        bounds = [np.array([box.low, box.high]) for box in (space, self.env.action_space)]
        if not np.array_equal(*bounds):
            raise ValueError(f'{name}: its wrappers change the range of actions, which simulator labels do not '
                             'know; name an environment without them')

        # actions within the bounds and at them
        rng = np.random.default_rng(seed)
        states = states[rng.choice(len(states), CHECKED_STEPS)]
        actions = rng.uniform(space.low, space.high, (CHECKED_STEPS, *space.shape))
        actions[::2] = np.where(rng.random(actions[::2].shape) < 0.5, space.low, space.high)
        actions = actions.astype(space.dtype)

        # the same states after the simulation of an action, of another one, and after a step
        simulated = self._next_states(states, actions, self._simulate)
        others = self._next_states(states, np.roll(actions, 1, 0), self._simulate)
        stepped = self._next_states(states, actions, self._step)

        for part, unit in ('qpos', 'positions'), ('qvel', 'velocities'):
            expected, other, found = (getattr(some, part) for some in (simulated, others, stepped))
            effect = np.linalg.norm(expected - other, axis=1)
            difference = np.linalg.norm(expected - found, axis=1)
            rounding = 1e-9 * (1 + np.linalg.norm(expected, axis=1))
            differs = ~(difference <= STEP_TOL * effect + rounding)  # also where it is NaN
            if differs.sum() > MAX_DIFFERENT_STEPS:
                ratio = np.median(difference[differs] / np.maximum(effect[differs], rounding[differs]))
                raise ValueError(
                    f'{name}: simulator labels would be wrong, since `step` does something other than '
                    f'do_simulation(action, frame_skip): {unit} differ at {differs.sum()} of {CHECKED_STEPS} '
                    f'states, by {ratio:.0%} of the effect of an action (it may scale, clip, delay or repeat '
                    'actions); use labels of random steps: online_trainer.py without --actions_path')

    def _next_states(self, states, actions, move):
        """Return the PhysicsStates, float64, after `move(state, action)` from each of the states."""
        found = []
        for i, action in enumerate(actions):
            move(states[i], action)
            found.append((self.env.data.qpos.copy(), self.env.data.qvel.copy()))
        return PhysicsStates(*map(np.array, zip(*found, strict=True)))

    def _simulate(self, state, action):
        """Simulate an action (A,) from one of PhysicsStates."""
        self.env.set_state(state.qpos.astype(np.float64), state.qvel.astype(np.float64))
        self.env.do_simulation(action, self.env.frame_skip)

    def _step(self, state, action):
        """Take a step of the environment with all its wrappers from one of PhysicsStates, after a reset."""
        self.wrapped_env.reset(seed=0)
        self.env.set_state(state.qpos.astype(np.float64), state.qvel.astype(np.float64))
        self.wrapped_env.step(action)

    def simulate(self, states, actions):
        """Return the next PhysicsStates of one environment step from each state, in their precision.

        Raises:
            FloatingPointError: the physics failed.
        """
        qpos = np.empty_like(states.qpos)
        qvel = np.empty_like(states.qvel)
        for i in progress_bar(range(len(actions)), 'probes', leave=False):
            self._simulate(states[i], actions[i])
            qpos[i] = self.env.data.qpos
            qvel[i] = self.env.data.qvel

        has_failed = ~(np.isfinite(qpos).all(1) & np.isfinite(qvel).all(1))
        if has_failed.any():
            raise FloatingPointError(f'the physics failed in {has_failed.sum()} of {len(actions)} probes')
        return PhysicsStates(qpos, qvel)

    @property
    def max_probes_per_solve(self):
        """Upper bound of the probes that `solve` makes at one state."""
        num_differences = -(-MAX_EVALUATIONS // JACOBIAN_INTERVAL)
        return MAX_EVALUATIONS + num_differences * len(self.env.action_space.low)

    def solve(self, states, next_states, actions, velocity_std):
        """Solve for the actions that lead from states to next states.

        Args:
            states, next_states: PhysicsStates of the data.
            actions: (n, A) initial actions.
            velocity_std: (U,) standard deviations of the velocities in the data.

        Returns:
            SolvedActions.
        """
        solved = np.empty(actions.shape, np.float32)
        residuals = np.empty(len(actions), np.float32)
        num_probes = 0
        for i in progress_bar(range(len(actions)), 'states solved', leave=False):
            solver = ActionSolver(self.env, states[i], next_states[i], velocity_std)
            solved[i], residuals[i] = solver.solve(actions[i])
            num_probes += solver.num_probes
        return SolvedActions(solved, residuals < CONVERGED_RESIDUAL, num_probes)

    def features(self, states):
        """Return network inputs (n, F), float32, of PhysicsStates.

        They are joint positions, velocities, the vertical in the root frame, and the height of each body,
        which determines the contacts with the ground.
        """
        features = [states.qpos, states.qvel]
        if self.has_free_root:
            to_root = root_rotation(states).inv()
            vertical = to_root.apply([0.0, 0.0, 1.0])
            velocity = to_root.apply(states.qvel[:, :3])
            features = [vertical, states.qpos[:, 7:], velocity, states.qvel[:, 3:]]
        return np.concatenate([*features, self.body_heights(states)], 1).astype(np.float32)

    def body_heights(self, states):
        """Return the heights (n, bodies) of all bodies except for the world."""
        data = mujoco.MjData(self.model)
        heights = np.empty((len(states), self.model.nbody - 1), np.float32)
        for i, qpos in enumerate(states.qpos):
            data.qpos[:] = qpos
            mujoco.mj_kinematics(self.model, data)
            heights[i] = data.xpos[1:, 2]
        return heights

    def changes(self, states, next_states):
        """Return the changes (n, 2 U), float32, from states to next states.

        The changes of a free root are in the root frame of the first state.
        """
        position_change = next_states.qpos - states.qpos
        velocity_change = next_states.qvel - states.qvel
        if not self.has_free_root:
            return np.concatenate([position_change, velocity_change], 1).astype(np.float32)

        to_root = root_rotation(states).inv()
        changes = [
            to_root.apply(position_change[:, :3]),
            (to_root * root_rotation(next_states)).as_rotvec(),
            position_change[:, 7:],
            to_root.apply(velocity_change[:, :3]),
            velocity_change[:, 3:],
        ]
        return np.concatenate(changes, 1).astype(np.float32)


def root_rotation(states):
    """Return the orientations of the free root joint as scipy's Rotation."""
    return Rotation.from_quat(states.qpos[:, 3:7], scalar_first=True)


# -------------------------------------------------------------------------------------------- least squares
@dataclasses.dataclass
class SolvedActions:
    """Actions from nonlinear least squares."""

    actions: np.ndarray  # (n, A) in the environment's units
    converged: np.ndarray  # (n,) bool: the residual is below `CONVERGED_RESIDUAL`
    num_probes: int  # of all solvers together


@dataclasses.dataclass
class Jacobian:
    """Linear model of the residual near an action."""

    action: np.ndarray  # (A,)
    residual: np.ndarray  # (2 U,) at the action
    matrix: np.ndarray  # (2 U, A)
    age: int  # Broyden updates since the finite differences


class ActionSolver:
    """Nonlinear least squares for the action between two states of the data.

    The solver is scipy's dogbox, within the bounds of actions. Its Jacobians are finite differences every
    `JACOBIAN_INTERVAL` iterations and Broyden updates in between.

    Args:
        state, next_state: one of PhysicsStates each.
        velocity_std: (U,) standard deviations of the velocities in the data.
    """

    def __init__(self, env, state, next_state, velocity_std):
        self.env = env
        self.qpos = state.qpos.astype(np.float64)
        self.qvel = state.qvel.astype(np.float64)
        self.next_qpos = next_state.qpos.astype(np.float64)
        self.next_qvel = next_state.qvel.astype(np.float64)
        self.velocity_std = velocity_std

        space = env.action_space
        self.low = space.low.astype(np.float64)
        self.high = space.high.astype(np.float64)
        self.num_probes = 0
        self.last_action = None  # of the last probe
        self.last_residual = None
        self.last_jacobian = None  # Jacobian

    def solve(self, action):
        """Return the solution (A,) and its mean squared residual, from an initial action (A,)."""
        start = np.clip(action.astype(np.float64), self.low, self.high)
        result = least_squares(
            self.residual, start, self.jacobian, bounds=(self.low, self.high), method='dogbox',
            xtol=1e-3, ftol=1e-4, max_nfev=MAX_EVALUATIONS,
        )
        return result.x, np.square(result.fun).mean()

    def residual(self, action):
        """Return the difference (2 U,) between the state after an action (A,) and the next state of the data.

        Its unit is the standard deviation of velocities; differences of positions are divided by the time
        step first.
        """
        # probe
        env = self.env
        env.set_state(self.qpos, self.qvel)
        env.do_simulation(action, env.frame_skip)
        self.num_probes += 1

        # compare with the data
        position_error = np.empty(env.model.nv)
        mujoco.mj_differentiatePos(env.model, position_error, env.dt, self.next_qpos, env.data.qpos)
        velocity_error = env.data.qvel - self.next_qvel
        residual = np.concatenate([position_error, velocity_error]) / np.tile(self.velocity_std, 2)
        large = FAILED_RESIDUAL
        residual = np.nan_to_num(residual, nan=large, posinf=large, neginf=-large)

        self.last_action = action.copy()
        self.last_residual = residual
        return residual

    def jacobian(self, action):
        """Return the Jacobian (2 U, A) of the residual at an action (A,).

        It is measured by finite differences or updated by Broyden's method (1965, eq. 4.5).
        """
        is_known = np.array_equal(action, self.last_action)
        residual = self.last_residual if is_known else self.residual(action)

        # finite differences
        last = self.last_jacobian
        if last is None or last.age + 1 == JACOBIAN_INTERVAL:
            matrix = self.finite_differences(action, residual)
            self.last_jacobian = Jacobian(action.copy(), residual, matrix, age=0)
            return matrix

        # correct the last Jacobian by the error of its prediction along the last step
        step = action - last.action
        prediction_error = residual - last.residual - last.matrix @ step
        matrix = last.matrix + np.outer(prediction_error, step) / (step @ step)
        self.last_jacobian = Jacobian(action.copy(), residual, matrix, last.age + 1)
        return matrix

    def finite_differences(self, action, residual):
        """Return the Jacobian (2 U, A) at an action (A,) with a given residual, by one probe per dimension."""
        inward = np.where(action < (self.low + self.high) / 2, 1, -1)
        differences = DIFFERENCE_STEP * (self.high - self.low) * inward
        columns = []
        for k, difference in enumerate(differences):
            changed = action.copy()
            changed[k] += difference
            columns.append((self.residual(changed) - residual) / difference)
        return np.stack(columns, 1)


# ------------------------------------------------------------------------------------------------- networks
class InverseModel(nn.Module):
    """Predict the action that makes a change, given a context.

    The context is the state and, for corrections, the probe to be corrected. At one state, changes are nearly
    linear in actions, and the coefficients depend on the context. The prediction therefore adds a linear map
    of the change, products of change and context, and an MLP of both.
    """

    def __init__(self, context_dim, change_dim, action_dim, hidden_dim):
        super().__init__()
        self.context_net = mlp([context_dim, hidden_dim, hidden_dim])
        self.context_gate = nn.Sequential(
            nn.LayerNorm(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
        )
        self.change_projection = nn.Linear(change_dim, hidden_dim)
        self.product_head = nn.Linear(hidden_dim, action_dim)
        self.linear_head = nn.Linear(change_dim, action_dim)
        self.mlp_head = mlp([hidden_dim + change_dim, hidden_dim, action_dim])

        self.register_buffer('context_mean', torch.zeros(context_dim))
        self.register_buffer('context_std', torch.ones(context_dim))
        self.register_buffer('change_mean', torch.zeros(change_dim))
        self.register_buffer('change_std', torch.ones(change_dim))

    def set_statistics(self, contexts, changes):
        """Set the input mean and standard deviation to those of contexts (n, C) and changes (n, D)."""
        self.context_mean.copy_(contexts.mean(0))
        self.context_std.copy_(divisor(contexts.std(0), self.context_mean))
        self.change_mean.copy_(changes.mean(0))
        self.change_std.copy_(divisor(changes.std(0), self.change_mean))

    def forward(self, contexts, changes):
        """Return actions (n, A) of raw contexts (n, C) and changes (n, D)."""
        contexts = ((contexts - self.context_mean) / self.context_std).clamp(-MAX_DEVIATION, MAX_DEVIATION)
        changes = ((changes - self.change_mean) / self.change_std).clamp(-MAX_DEVIATION, MAX_DEVIATION)
        hidden = self.context_net(contexts)
        products = self.product_head(self.context_gate(hidden) * self.change_projection(changes))
        nonlinear = self.mlp_head(torch.cat([hidden, changes], -1))
        return self.linear_head(changes) + products + nonlinear


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Size and training of the networks."""

    hidden_dim: int = 512
    num_updates: int = 6000
    batch_size: int = 512
    lr: float = 1e-3


@dataclasses.dataclass
class Probes:
    """Actions that were simulated, one at each row."""

    actions: torch.Tensor  # (n, A) in [-1, 1]
    changes: torch.Tensor  # (n, D) that they made

    def __getitem__(self, rows):
        return Probes(self.actions[rows], self.changes[rows])


@dataclasses.dataclass
class Fit:
    """A trained network and its errors on held-out rows."""

    network: InverseModel
    rmse: torch.Tensor  # (A,) root mean squared errors of actions, or of differences between actions
    r2: float  # of the same


class ActionSearch:
    """Learn from probes which actions made the changes in the data.

    Tensors are on the CPU, the networks on `device`.

    Args:
        features: (n, F) of the states at the probed rows of the data.
        changes: (n, D) in the data, from these states to the next ones.
        config: NetworkConfig.

    Attributes:
        probes: list of Probes, each at all rows. The caller appends rounds and keeps the last two.
    """

    def __init__(self, features, changes, action_dim, config, device='cpu'):
        self.features = features
        self.changes = changes
        self.action_dim = action_dim
        self.config = config
        self.device = device
        self.probes = []
        self.change_std = divisor(changes.std(0), changes.mean(0))

    def residuals(self, probes):
        """Return mean squared differences (n,) between changes of probes and data, in stds of the data's."""
        differences = (probes.changes - self.changes) / self.change_std
        return differences.clamp(-MAX_DEVIATION, MAX_DEVIATION).square().mean(1)

    # ---------------------------------------------------------------------------------------------- learning
    def fit_guess(self):
        """Return the Fit of a new network to single probes."""
        def draw(rows):
            probes = self._probes_at(rows, torch.randint(len(self.probes), (len(rows),)))
            return self.features[rows], probes.changes, probes.actions

        return self._fit(draw, len(self.features))

    def fit_correction(self):
        """Return the Fit of a new network to pairs of probes, one from each of the last two rounds."""
        def draw(rows):
            rounds = torch.randint(2, (len(rows),))
            first = self._probes_at(rows, rounds)
            second = self._probes_at(rows, 1 - rounds)
            contexts = self._contexts(self.features[rows], first)
            return contexts, second.changes - first.changes, second.actions - first.actions

        return self._fit(draw, len(self.features))

    def fine_tune_correction(self, network, rows, actions):
        """Return the Fit of a copy of a correction network, fine-tuned to solved actions.

        It learns to turn the last two probes at rows (m,) into the solved actions (m, A).
        """
        def draw(indices):
            some_rows = rows[indices]
            probes = self._probes_at(some_rows, torch.randint(2, (len(some_rows),)))
            contexts = self._contexts(self.features[some_rows], probes)
            return contexts, self.changes[some_rows] - probes.changes, actions[indices] - probes.actions

        updates = max(1, self.config.num_updates // FINE_TUNE_UPDATE_DIVISOR)
        lr = self.config.lr / FINE_TUNE_LR_DIVISOR
        return self._fit(draw, len(rows), copy.deepcopy(network), updates, lr)

    def _probes_at(self, rows, rounds):
        """Return Probes (m,), the probe of the given round (m,) at each of the rows (m,)."""
        actions = torch.empty(len(rows), self.action_dim)
        changes = torch.empty(len(rows), self.changes.shape[1])
        for i, probes in enumerate(self.probes):
            is_round = rounds == i
            some = probes[rows[is_round]]
            actions[is_round] = some.actions
            changes[is_round] = some.changes
        return Probes(actions, changes)

    def _fit(self, draw, total, network=None, updates=None, lr=None):
        """Train a network and evaluate it on held-out rows.

        Args:
            draw: function from rows (m,) to contexts, changes and actions of probes at these rows.
            total: number of rows.
            network: the network to fine-tune; None trains a new one.
            updates: number of gradient steps; None takes that of the config.
            lr: learning rate; None takes that of the config.

        Returns:
            Fit.
        """
        updates = updates or self.config.num_updates
        num_held_out = max(1, round(HELD_OUT_FRACTION * total))
        num_train = total - num_held_out
        if network is None:
            network = self._new_network(*draw(torch.randint(num_train, (NETWORK_CHUNK,))))

        # train; the learning rate falls linearly to 0 in the second half
        optimizer = torch.optim.AdamW(network.parameters(), lr or self.config.lr, weight_decay=WEIGHT_DECAY)
        schedule = LambdaLR(optimizer, lambda update: min(1, 2 - 2 * update / updates))
        for _ in progress_bar(range(updates), 'updates', leave=False):
            batch = draw(torch.randint(num_train, (self.config.batch_size,)))
            contexts, changes, actions = (part.to(self.device) for part in batch)
            loss = (network(contexts, changes) - actions).square().mean()

            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), GRAD_CLIP)
            optimizer.step()
            schedule.step()

        # evaluate
        contexts, changes, actions = draw(torch.arange(num_train, total))
        predicted = self._predict(network, contexts, changes)
        rmse = (predicted - actions).square().mean(0).sqrt()
        return Fit(network, rmse, r2_score(predicted, actions))

    def _new_network(self, contexts, changes, actions):
        """Return an InverseModel with the statistics of contexts (n, C) and changes (n, D)."""
        network = InverseModel(contexts.shape[1], changes.shape[1], actions.shape[1], self.config.hidden_dim)
        network.set_statistics(contexts, changes)
        return network.to(self.device)

    # ------------------------------------------------------------------------------------------------- labels
    def guess(self, network, features, changes):
        """Return actions (m, A) in [-1, 1] that made the changes (m, D) at states with features (m, F)."""
        return self._predict(network, features, changes).clamp(-1, 1)

    def correct(self, network, probes):
        """Return the actions (n, A) of probes in [-1, 1], corrected to make the changes of the data."""
        contexts = self._contexts(self.features, probes)
        corrections = self._predict(network, contexts, self.changes - probes.changes)
        return (probes.actions + corrections).clamp(-1, 1)

    def load_network(self, state):
        """Return an InverseModel with a given state dict."""
        context_dim, change_dim = len(state['context_mean']), len(state['change_mean'])
        network = InverseModel(context_dim, change_dim, self.action_dim, self.config.hidden_dim)
        network.load_state_dict(state)
        return network.to(self.device)

    def _contexts(self, features, probes):
        return torch.cat([features, probes.actions, probes.changes], 1)

    @torch.no_grad()
    def _predict(self, network, contexts, changes):
        """Return actions (n, A) on the CPU."""
        chunks = zip(contexts.split(NETWORK_CHUNK), changes.split(NETWORK_CHUNK), strict=True)
        return torch.cat([network(x.to(self.device), d.to(self.device)).cpu() for x, d in chunks])
