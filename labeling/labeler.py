"""The labeler I_1(s_t, s_{t+1}) -> a_t: a one-step inverse dynamics model, fitted to the agent's own steps.

The method is sparse Gaussian process (GP) regression with automatic relevance determination (ARD). Each
action dimension has a GP of its own (Rasmussen and Williams 2006, chapters 2 and 5), and the subset of
regressors (section 8.3.1) approximates it. The kernel of action dimension j adds a squared exponential
and a linear one:

    k_j(x, x') = v_j exp(-1/2 sum_f (x_f - x'_f)^2 / l_jf^2) + sum_f w_jf^2 x_f x'_f

The inputs x are s_t and s_{t+1} - s_t, standardized over the agent's steps. Each input f has a length scale l
and a linear scale w of its own (ARD). They, the variance v and the noise maximize the marginal likelihood.

Relevant inputs. A few hundred steps determine which inputs matter. The torque of a joint changes the angle
and the velocity of that joint and little else. A neural network needs five to ten times as many steps for the
same labels.

Clipping. Inputs are clipped to the range of the agent's steps, so that the GP does not extrapolate.

Ambiguous actions. Several actions can have the same effect: an open gripper stays open under every action
that opens it. The label is the mean of these actions, which is half of the full force under uniform actions.
A prior for small actions, `small_action_prior` p, weights each step by

    1 / (1 + (a / p)^2)

and thus prefers the smallest of these actions. It hardly changes labels where the step determines the action.

Position. A few steps cover little of a maze. Steps that keep pushing against one wall teach the GP that
standing still at that coordinate means pushing. If the kernel of the first fit depends on position, position
stays an input only if it improves the labels of steps outside the region of the training steps.

Other coordinates. Length scales of inputs need states whose dimensions are joints. Where held-out steps show
that they do not suffice, axes of the state along which single actions act are estimated (joint_axes.py). They
replace the dimensions of the state in the inputs if they label the held-out steps better.
"""

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from labeling.joint_axes import UNMIXED, Mixing, complete, estimate_axes, unit_rows
from support.contents import Tensor, check_layout
from support.progress import progress_bar
from support.tolerances import divisor, varies

MAX_TRANSITIONS = 20_000  # the agent's steps in a fit
MAX_INDUCING_INPUTS = 1000
HELD_OUT_FRACTION = 0.1  # of the steps, to compute R2
MAX_HELD_OUT = 1000  # steps

INITIAL_LOG_LENGTH_SCALE = 1.5  # in stds of an input; length scales of irrelevant inputs only grow
INITIAL_LOG_LINEAR_SCALE = -1.5
INITIAL_LOG_VARIANCE = -1.0
INITIAL_LOG_NOISE = -1.5  # log of a variance, of actions in [-1, 1]
KERNEL_UPDATES = 100  # gradient steps on the marginal likelihood in a fit
KERNEL_BATCH = 300  # the agent's steps in a gradient step
KERNEL_LR = 0.05

FAR_FRACTION = 0.2  # of the steps, those furthest out, to test whether position inputs generalize
MIN_R2_GAIN = 0.05  # by which position inputs must improve R2 there

ENOUGH_R2 = 0.85  # mean of the actions, above which labels need no axes, and more steps improved no run of the ant
# (results/README.md)
IDLE_R2 = 0.02  # of an action, below which it has no visible effect
MIN_AXES_STEPS = 1000  # training steps, below which no axes are learned
MIN_AXES_GAIN = 0.02  # by which axes must improve the mean R2 of the actions
AXES_UPDATES = 150  # gradient steps on the marginal likelihood that mix the axes
MIXING_LR = 0.02  # of axes of unit variance, at the first of these steps

CLIP_QUANTILE = 0.003  # inputs are clipped at this quantile of the agent's steps and at 1 minus it
ROUNDED_STATES = 4  # float32 spacings of a state below which an input is constant
MAX_ROUNDING = 0.01  # of labels in [-1, 1] by float32, at the most
MIN_NOISE_VARIANCE = 1e-4  # of actions in [-1, 1]; it also keeps kernel matrices invertible
LABELER_CHUNK = 1024  # rows of a kernel matrix in memory

LAYOUT = {  # of a state dict; F inputs, A action dimensions, M inducing inputs
    'log_length_scale': Tensor('float64', 'A F'),
    'log_linear_scale': Tensor('float64', 'A F'),
    'log_variance': Tensor('float64', 'A 1 1'),
    'log_noise': Tensor('float64', 'A 1 1'),
    'input_mask': Tensor('bool', 'S'),
    'position': Tensor('float64', 'S P'),
    'axes': Tensor('float64', 'X S'),
    'axes_steps': Tensor('int64', '', least=0),
    'mean': Tensor('float64', 'F'),
    'std': Tensor('float64', 'F', least=0),
    'low': Tensor('float64', 'F'),
    'high': Tensor('float64', 'F'),
    'inducing_inputs': Tensor('float64', 'M F'),
    'inducing_weights': Tensor('float64', 'A M 1'),
    'linear_weights': Tensor('float64', 'A F'),
}


class Split(NamedTuple):
    """The agent's steps of a fit."""

    transitions: torch.Tensor  # (n, 2, S) pairs of states to learn from
    actions: torch.Tensor  # (n, A) float64
    held_out: torch.Tensor  # (m, 2, S) pairs of states
    held_out_actions: torch.Tensor  # (m, A)

    @classmethod
    def of(cls, transitions, actions, rng):
        """Draw the steps of a Split from transitions (n, 2, S) and actions (n, A)."""
        rows = rng.permutation(len(transitions))[:MAX_TRANSITIONS]
        num_held_out = min(int(HELD_OUT_FRACTION * len(rows)), MAX_HELD_OUT)
        held_out, rows = rows[:num_held_out], np.sort(rows[num_held_out:])
        actions = actions.cpu().double()
        return cls(transitions[rows], actions[rows], transitions[held_out], actions[held_out])


class Labeler(nn.Module):
    """Predict actions in [-1, 1] from pairs of states by one sparse GP per action dimension.

    Labels are zero before the first `fit`. It fits in float64 and predicts in float32 where this suffices, both
    on the CPU; a fit takes seconds.

    Shapes: S = state_dim, F = 2 S inputs, A = action_dim, M inducing inputs.
    """

    def __init__(self, state_dim, action_dim):
        super().__init__()
        size = 2 * state_dim
        self.log_length_scale = nn.Parameter(torch.full((action_dim, size), INITIAL_LOG_LENGTH_SCALE))
        self.log_linear_scale = nn.Parameter(torch.full((action_dim, size), INITIAL_LOG_LINEAR_SCALE))
        self.log_variance = nn.Parameter(torch.full((action_dim, 1, 1), INITIAL_LOG_VARIANCE))
        self.log_noise = nn.Parameter(torch.full((action_dim, 1, 1), INITIAL_LOG_NOISE))

        self.register_buffer('input_mask', torch.ones(state_dim, dtype=torch.bool))  # dimensions of s_t in use
        self.register_buffer('position', torch.zeros(state_dim, 0))  # orthonormal, excluded from s_t
        self.register_buffer('axes', torch.zeros(0, state_dim))  # (S, S) rows that multiply a state, or none
        self.register_buffer('r2', torch.full((action_dim,), torch.nan))  # of held-out steps, for each action
        self.register_buffer('axes_steps', torch.tensor(0))  # steps when axes were last learned
        self.register_buffer('mean', torch.zeros(size))
        self.register_buffer('std', torch.ones(size))
        self.register_buffer('low', torch.zeros(size))
        self.register_buffer('high', torch.zeros(size))
        self.register_buffer('inducing_inputs', torch.zeros(0, size))  # (M, F), a subset of the agent's steps
        self.register_buffer('inducing_weights', torch.zeros(action_dim, 0, 1))
        self.register_buffer('linear_weights', torch.zeros(action_dim, size))
        self.double()

    @property
    def is_fitted(self):
        return len(self.inducing_inputs) > 0

    @property
    def is_poor(self):
        """Return whether labels need more steps or axes, by the mean R2 of actions with a visible effect."""
        effective = self.r2[self.r2 >= IDLE_R2]
        return not len(effective) or bool(effective.mean() < ENOUGH_R2)

    # ---------------------------------------------------------------------------------------------- learning
    def fit(self, transitions, actions, rng, kernel_updates=KERNEL_UPDATES, position_dims=(),
            small_action_prior=0.0, position_directions=None):
        """Fit kernel and weights to the agent's steps; the kernel continues from the last fit.

        The first fit decides whether labels may depend on `position_dims`.

        Args:
            transitions: (n, 2, S) normalized pairs of states.
            actions: (n, A) in [-1, 1].
            rng: numpy Generator.
            kernel_updates: number of gradient steps on the marginal likelihood.
            position_dims: state dimensions of the position of the robot or an object, the slowest first.
            small_action_prior: action in [-1, 1] that halves the weight of a step; 0 weights all equally.
            position_directions: (S, r) directions of a position that is no set of dimensions, the slowest
                first; they replace position_dims.

        Returns:
            R2 of the labels of held-out steps, None if there are fewer than two.
        """
        if not len(transitions):
            return None

        is_first = not self.is_fitted
        has_directions = position_directions is not None and position_directions.shape[1] > 0
        split = Split.of(transitions, actions, rng)
        self._fit(split, rng, kernel_updates, small_action_prior)

        # without position, unless it generalises
        if is_first and (has_directions or self.uses_dims(position_dims)):
            position = _unit_vectors(position_dims, transitions.shape[-1])
            if has_directions:
                position = position_directions
            if not position_generalizes(transitions, actions, position, rng, kernel_updates):
                self.reset()
                self.mask(position)
                split = Split.of(transitions, actions, rng)
                self._fit(split, rng, kernel_updates, small_action_prior)

        # evaluate; try axes if the labels are poor, again whenever the steps have doubled
        if len(split.held_out) < 2:
            return None
        self.r2.copy_(r2_by_action(self(split.held_out), split.held_out_actions))
        has_doubled = len(split.actions) >= max(MIN_AXES_STEPS, 2 * self.axes_steps)
        if has_doubled and not small_action_prior and self.is_poor:
            self.axes_steps.fill_(len(split.actions))
            self._try_axes(split, kernel_updates)
        return r2_score(self(split.held_out), split.held_out_actions)

    def uses_dims(self, dims):
        """Return whether a fit has shortened the length scale of one of these dimensions of s_t."""
        lengths = self.log_length_scale[:, list(dims)]
        return bool((lengths < INITIAL_LOG_LENGTH_SCALE).any())

    def mask_dims(self, dims):
        """Exclude these dimensions of s_t from the inputs."""
        self.input_mask[list(dims)] = False

    def mask(self, directions):
        """Exclude directions (S, r) of s_t from the inputs."""
        if ((directions != 0).sum(0) == 1).all():
            self.mask_dims(directions.abs().argmax(0).tolist())
        else:
            self.position = torch.linalg.qr(directions.cpu().double())[0]

    @property
    def masks_position(self):
        """Return whether a position is excluded from the inputs."""
        return self.position.shape[1] > 0 or not self.input_mask.all()

    def reset(self):
        """Return to the state before the first fit."""
        fresh = Labeler(len(self.input_mask), len(self.linear_weights))
        self.load_state_dict(fresh.state_dict())

    def _fit(self, split, rng, kernel_updates, small_action_prior):
        """Fit scales, kernel and weights to a Split."""
        inputs = self._fit_scales(split.transitions)
        self._fit_kernel(inputs, split.actions, rng, kernel_updates)
        self._fit_weights(inputs, split.actions, rng, small_action_prior)

    def _fit_scales(self, transitions):
        """Set the scales of the inputs and return the standardized inputs (n, F) of transitions (n, 2, S)."""
        inputs = self._inputs(transitions)
        self.mean.copy_(inputs.mean(0))
        self.std.copy_(inputs.std(0, correction=0))
        quantiles = [CLIP_QUANTILE, 1 - CLIP_QUANTILE]
        low, high = np.quantile(inputs.numpy(), quantiles, axis=0)  # torch.quantile limits sizes
        self.low.copy_(torch.from_numpy(low))
        self.high.copy_(torch.from_numpy(high))
        return self._standardize(inputs)

    def _try_axes(self, split, kernel_updates):
        """Learn axes from a Split; use them if they improve the labels of its held-out steps."""
        rng = np.random.default_rng(len(split.actions))
        other = self._unfitted(self._unfitted(self.axes[:0])._learn_axes(split, rng))
        other._fit(split, rng, kernel_updates, 0.0)
        other.r2.copy_(r2_by_action(other(split.held_out), split.held_out_actions))
        if other.r2.mean() > self.r2.mean() + MIN_AXES_GAIN:
            self.load_state_dict(other.state_dict())

    def _unfitted(self, axes):
        """Return a Labeler with the masks of this one and other `axes`, before its first fit."""
        other = Labeler(len(self.input_mask), len(self.linear_weights))
        other.input_mask.copy_(self.input_mask)
        other.position = self.position.clone()
        other.axes_steps.copy_(self.axes_steps)
        other.axes = axes
        return other

    def _learn_axes(self, split, rng):
        """Return axes (S, S) learned from a Split (joint_axes.py); scales and kernel of this labeler change."""
        # estimate
        states, changes = self._inputs(split.transitions).chunk(2, 1)
        velocities, angles = estimate_axes(states - states.mean(0), changes, split.actions)
        self.axes = complete(torch.cat([angles, velocities]))

        # mix
        inputs = self._fit_scales(split.transitions)
        mixing = Mixing(*self.std.chunk(2))
        self._fit_kernel(inputs, split.actions, rng, AXES_UPDATES, mixing)

        # use the mixed angles
        mixed = unit_rows(mixing.mixed(self.axes)[:len(angles)])
        return complete(torch.cat([velocities, mixed]))

    def _fit_kernel(self, inputs, actions, rng, updates, mixing=UNMIXED):
        """Maximize the log marginal likelihood (Rasmussen and Williams, eq. 5.8) on minibatches.

        Args:
            mixing: Mixing of the inputs, which is learned as well, or UNMIXED.
        """
        batch_size = min(len(inputs), KERNEL_BATCH)
        groups = [{'params': self.parameters()}, {'params': mixing.parameters(), 'lr': MIXING_LR}]
        optimizer = torch.optim.Adam(groups, lr=KERNEL_LR)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, mixing.final_rate, updates)

        for _ in progress_bar(range(updates), 'labeler', leave=False, delay=1):
            # draw a minibatch
            rows = rng.choice(len(inputs), batch_size, replace=False)
            x = mixing(inputs[rows])
            y = actions[rows].T.unsqueeze(-1)  # (A, n, 1)

            # negative log marginal likelihood per step
            covariance = self._rbf_kernel(x, x) + self._linear_kernel(x, x)
            factor = torch.linalg.cholesky(covariance + self._noise() * torch.eye(batch_size, dtype=x.dtype))
            data_fit = (y * torch.cholesky_solve(y, factor)).sum()
            log_determinant = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum()
            loss = (data_fit + log_determinant) / (2 * batch_size)

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()

    @torch.no_grad()
    def _fit_weights(self, inputs, actions, rng, small_action_prior):
        """Fit inducing and linear weights to all steps (subset of regressors, Rasmussen and Williams, section
        8.3.1).

        This is Bayesian linear regression with a unit Gaussian prior on the weights. Its features are the
        kernels to the inducing inputs, whitened, and the inputs times their linear scales.
        """
        if small_action_prior:
            step_weights = 1 / (1 + (actions / small_action_prior).square())
        else:
            step_weights = torch.ones_like(actions)

        # draw inducing inputs and factorize their kernel matrix
        count = min(len(inputs), MAX_INDUCING_INPUTS)
        inducing_inputs = inputs[np.sort(rng.choice(len(inputs), count, replace=False))]
        linear_scale = self.log_linear_scale.exp().unsqueeze(1)
        jitter = MIN_NOISE_VARIANCE * torch.eye(count, dtype=inputs.dtype)
        factor = torch.linalg.cholesky(self._rbf_kernel(inducing_inputs, inducing_inputs) + jitter)

        # accumulate the normal equations
        size = count + inputs.shape[1]
        gram = self._noise() * torch.eye(size, dtype=inputs.dtype)
        target = torch.zeros(len(factor), size, 1, dtype=inputs.dtype)
        chunks = (rows.split(LABELER_CHUNK) for rows in (inputs, actions, step_weights))
        for x, y, weight in zip(*chunks, strict=True):
            kernel = self._rbf_kernel(inducing_inputs, x)
            whitened = torch.linalg.solve_triangular(factor, kernel, upper=False)
            features = torch.cat([whitened, (x * linear_scale).mT], 1)  # (A, M + F, n)
            weighted = features * weight.T.unsqueeze(1)
            gram = gram + weighted @ features.mT
            target += weighted @ y.T.unsqueeze(-1)

        # undo the whitening and the linear scales
        weights = torch.linalg.solve(gram, target)
        self.inducing_inputs = inducing_inputs
        self.inducing_weights = torch.linalg.solve_triangular(factor.mT, weights[:, :count], upper=True)
        self.linear_weights = (weights[:, count:] * linear_scale.mT).squeeze(-1)

    def _noise(self):
        return self.log_noise.exp() + MIN_NOISE_VARIANCE

    # --------------------------------------------------------------------------------------------- inference
    @torch.no_grad()
    def forward(self, transitions):
        """Return float32 labels (n, A) in [-1, 1] of pairs of states (n, 2, S)."""
        if not self.is_fitted:
            return torch.zeros(len(transitions), len(self.linear_weights))

        dtype = self._precision()
        fast = copy.deepcopy(self).to(dtype)
        labels = []
        for chunk in transitions.split(LABELER_CHUNK):
            x = self._standardize(self._inputs(chunk)).to(dtype)
            nonlinear = fast._rbf_kernel(x, fast.inducing_inputs) @ fast.inducing_weights
            labels.append(nonlinear.squeeze(-1).T + x @ fast.linear_weights.T)
        return torch.cat(labels).clamp(-1, 1).float()

    def _precision(self):
        """Return float32 unless large weights of opposite signs would cancel there, then float64.

        Length scales much longer than the range of the inputs lead to such weights.
        """
        largest = (self.inducing_weights.abs().sum(1) * self.log_variance.exp().squeeze(-1)).max()
        error = torch.finfo(torch.float32).eps * largest
        return torch.float32 if error < MAX_ROUNDING else torch.float64

    def _inputs(self, transitions):
        """Return s_t and s_{t+1} - s_t, (n, F), of pairs of states (n, 2, S), masked and along the axes."""
        transitions = transitions.cpu().double()
        states = transitions[:, 0]
        changes = transitions[:, 1] - states

        # exclude a position
        states = self.input_mask * states
        if self.position.shape[1]:
            states = states - states @ self.position @ self.position.T

        if len(self.axes):
            states = states @ self.axes.T
            changes = changes @ self.axes.T
        return torch.cat([states, changes], -1)

    def _standardize(self, inputs):
        """Clip and standardize inputs (n, F)."""
        # a change is the difference of two states, so that it is rounded like them
        size = torch.maximum(self.low.abs(), self.high.abs())
        size = ROUNDED_STATES * size.view(2, -1)[0].repeat(2)

        inputs = inputs.clamp(self.low, self.high)
        return varies(self.std, size) * (inputs - self.mean) / divisor(self.std, size)

    def _rbf_kernel(self, x, y):
        """Return the squared exponential kernels (A, n, m) between inputs x (n, F) and y (m, F)."""
        x = x * torch.exp(-self.log_length_scale).unsqueeze(1)
        y = y * torch.exp(-self.log_length_scale).unsqueeze(1)

        # A single product computes log v - |x - y|^2 / 2 = x y - |x|^2 / 2 + (log v - |y|^2 / 2).
        # It is faster than sums of large matrices.
        x_term = -x.square().sum(-1, keepdim=True) / 2
        y_term = self.log_variance - y.square().sum(-1, keepdim=True) / 2
        x = torch.cat([x, x_term, torch.ones_like(x_term)], -1)
        y = torch.cat([y, torch.ones_like(y_term), y_term], -1)
        return (x @ y.mT).exp()

    def _linear_kernel(self, x, y):
        """Return the linear kernels (A, n, m) between inputs x (n, F) and y (m, F)."""
        linear_scale = self.log_linear_scale.exp().unsqueeze(1)
        return (x * linear_scale) @ (y * linear_scale).mT

    # ------------------------------------------------------------------------------------------- checkpoints
    def load_state_dict(self, state, **options):
        """Load a state dict with any number of inducing inputs and directions.

        Raises:
            ValueError: if a tensor does not fit.
        """
        actions, inputs = self.linear_weights.shape
        check_layout(state, LAYOUT, F=inputs, S=inputs // 2, A=actions)
        for name in ('inducing_inputs', 'inducing_weights', 'position', 'axes'):
            setattr(self, name, torch.zeros_like(state[name]))
        return super().load_state_dict(state, **options)


def _unit_vectors(dims, size):
    """Return the columns `dims` of the identity matrix, (size, len(dims)) in float64."""
    return torch.eye(size, dtype=torch.float64)[:, list(dims)]


def position_generalizes(transitions, actions, position, rng, kernel_updates=KERNEL_UPDATES):
    """Return whether position inputs improve the labels of steps outside the region of the training steps.

    The steps furthest out along the slowest position dimension are held out. Two labelers, one with and one
    without position inputs, learn from the other steps. The result is True if position is part of the
    physics, such as the yaw of a car, and if all steps have the same position.

    Args:
        transitions: (n, 2, S) normalized pairs of states.
        actions: (n, A) in [-1, 1].
        position: (S, r) directions of a position in states, the slowest first.
        rng: numpy Generator.
        kernel_updates: number of gradient steps on the marginal likelihood.
    """
    # hold out the steps furthest out
    slowest = (transitions[:, 0] @ position[:, 0].to(transitions)).cpu().numpy()
    low, high = np.quantile(slowest, [FAR_FRACTION / 2, 1 - FAR_FRACTION / 2])
    is_far = torch.from_numpy((slowest < low) | (slowest > high))
    if not is_far.any():
        return True

    # compare R2 with and without position inputs
    r2 = []
    for masked in position[:, :0], position:
        labeler = Labeler(transitions.shape[-1], actions.shape[-1])
        labeler.mask(masked)
        labeler._fit(Split.of(transitions[~is_far], actions[~is_far], rng), rng, kernel_updates, 0.0)
        r2.append(r2_score(labeler(transitions[is_far]), actions[is_far]))
    with_position, without_position = r2
    return with_position - without_position >= MIN_R2_GAIN


def r2_by_action(labels, actions):
    """Return R2 (A,) of labels (n, A) for actions (n, A), one for each action dimension."""
    error = (labels - actions).square().sum(0)
    return 1 - error / (actions - actions.mean(0)).square().sum(0).clamp(min=1e-8)


def r2_score(labels, actions):
    """Return 1 - squared error / variance of labels (n, A) for actions (n, A), over all dimensions."""
    error = (labels - actions).square().sum()
    return float(1 - error / (actions - actions.mean(0)).square().sum().clamp(min=1e-8))
