"""The labeler I_1(s_t, s_{t+1}) -> a_t: which action converged from one state to the next, learned from own steps.

A Gaussian process for each action (Rasmussen and Williams 2006, chapters 2 and 5), with a length scale and a slope for
each number that it sees:

    k_j(x, x') = v_j exp(-1/2 sum_f (x_f - x'_f)^2 / l_jf^2) + sum_f w_jf^2 x_f x'_f       for action j

x is s_t and s_{t+1} - s_t, in standard deviations of own steps. v, l, w and the noise are those of the highest marginal
likelihood, so that a few hundred steps tell which numbers matter: the torque of a joint shows in the angle and the
speed of that joint and in next to nothing else. A network that sees all numbers alike needs five to ten times as many
steps. No number is taken for larger or smaller than own steps have shown it, so that places which they have not seen
mislead nobody.

Several actions may do the same: an open hand stays open whichever way it is told to open. Labels are the mean of what
own steps did there, and random ones open with half of their force where a demonstrator does nothing. Gentle labels
count own steps by how small their action was, 1 / (1 + (a / small_action_prior)^2), which is to believe beforehand that the
demonstrator's actions are so distributed. Where own steps tell the action, that changes little.

A few own steps see little of a maze, and may show that whoever is at that wall pushes against it. So where labels would
depend on where the robot is, it is tried out whether that holds elsewhere; if not, they are told without.
"""

import copy

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

MAX_STEPS = 20_000  # own steps that it learns from
MAX_POINTS = 1000  # of them labels are compared with
HELD_OUT = 0.1  # of own steps, at most `MAX_POINTS`: by these it is judged

FIRST_LOG_LENGTH = 1.5  # of the length scales, where a fit begins; of a number that tells nothing they only grow
KERNEL_ROWS = 300  # own steps in an update of the kernel
KERNEL_LR = 0.05

ELSEWHERE = 0.2  # of own steps, those furthest out are held out to tell whether it matters where the robot is:
HELPS = 0.05  # it does if who sees it explains so much more of the variance of their actions

RARE = 0.003  # numbers are bounded by what own steps show, but for so small a share of them
SMALLEST_SCALE = 1e-3  # of an input: one that varies less does not vary
SMALLEST_NOISE = 1e-4  # variance, of actions in [-1, 1]; also what keeps matrices invertible
ROWS_AT_ONCE = 1024


class Labeler(nn.Module):
    """A Gaussian process for each of `action_dim` actions in [-1, 1], over pairs of states of `state_dim` numbers. It
    infers zeros until `fit`. On the CPU, in float64: a fit takes seconds."""

    def __init__(self, state_dim, action_dim):
        super().__init__()
        size = 2 * state_dim
        self.log_length = nn.Parameter(torch.full((action_dim, size), FIRST_LOG_LENGTH))
        self.log_slope = nn.Parameter(torch.full((action_dim, size), -1.5))
        self.log_variance = nn.Parameter(torch.full((action_dim, 1, 1), -1.0))
        self.log_noise = nn.Parameter(torch.full((action_dim, 1, 1), -1.5))

        self.register_buffer('seen', torch.ones(size, dtype=torch.bool))  # numbers that labels may depend on
        self.register_buffer('mean', torch.zeros(size))
        self.register_buffer('scale', torch.ones(size))
        self.register_buffer('low', torch.zeros(size))
        self.register_buffer('high', torch.zeros(size))
        self.register_buffer('points', torch.zeros(0, size))  # (M, F) own steps that labels are compared with
        self.register_buffer('weights', torch.zeros(action_dim, 0, 1))  # of each of them
        self.register_buffer('slopes', torch.zeros(action_dim, size))
        self.double()

    @property
    def is_fitted(self):
        return len(self.points) > 0

    # ---------------------------------------------------------------------------------------------- learning
    def fit(self, steps, actions, rng, kernel_updates=100, places=(), small_action_prior=0.0):
        """Learn from own steps, pairs of states (n, 2, S) and actions (n, A), with so many updates of the kernel, which
        goes on from the last fit; draws from the numpy Generator `rng` -> R2 of held-out steps, None where they are too
        few. `places`: the numbers of a state that say where the robot is, the slowest first. The first fit decides
        whether labels may depend on them. `small_action_prior`: the action in [-1, 1] with which an own step
        counts half; 0: all count alike."""
        if not len(steps):
            return None

        decides = not self.is_fitted
        r2 = self._fit(steps, actions, rng, kernel_updates, small_action_prior)
        if decides and self.depends_on(places) and not places_help(steps, actions, places, rng, kernel_updates):
            self.forget()
            self.hide(places)
            r2 = self._fit(steps, actions, rng, kernel_updates, small_action_prior)
        return r2

    def depends_on(self, numbers):
        """Does some label depend on these numbers of s_t, by the kernel as it is?"""
        lengths = self.log_length[:, list(numbers)]
        return bool((lengths < FIRST_LOG_LENGTH).any())

    def hide(self, numbers):
        """Labels shall not depend on these numbers of s_t."""
        self.seen[list(numbers)] = False

    def forget(self):
        """As if there had been no fit."""
        fresh = Labeler(len(self.seen) // 2, len(self.slopes))
        self.load_state_dict(fresh.state_dict())

    def _fit(self, steps, actions, rng, kernel_updates, small_action_prior):
        rows = rng.permutation(len(steps))[:MAX_STEPS]
        held_out = min(int(HELD_OUT * len(rows)), MAX_POINTS)
        test, rows = rows[:held_out], np.sort(rows[held_out:])
        actions = actions.cpu().double()

        inputs = self._inputs(steps[rows])
        self.mean.copy_(inputs.mean(0))
        self.scale.copy_(inputs.std(0, correction=0))
        low, high = np.quantile(inputs.numpy(), [RARE, 1 - RARE], axis=0)  # torch's takes no large arrays
        self.low.copy_(torch.from_numpy(low))
        self.high.copy_(torch.from_numpy(high))

        inputs = self._standardize(inputs)
        self._fit_kernel(inputs, actions[rows], rng, kernel_updates)
        self._fit_weights(inputs, actions[rows], rng, small_action_prior)
        if held_out < 2:
            return None
        return explained(self(steps[test]), actions[test])

    def _fit_kernel(self, inputs, actions, rng, updates):
        """Raise the marginal likelihood (eq. 5.8 there) of own steps, a few hundred of them at a time."""
        rows_at_once = min(len(inputs), KERNEL_ROWS)
        optimizer = torch.optim.Adam(self.parameters(), lr=KERNEL_LR)

        for _ in tqdm(range(updates), 'labeler', leave=False, dynamic_ncols=True, delay=1):
            rows = rng.choice(len(inputs), rows_at_once, replace=False)
            x = inputs[rows]
            y = actions[rows].T.unsqueeze(-1)

            covariance = self._smooth_kernel(x, x) + self._linear_kernel(x, x)
            factor = torch.linalg.cholesky(covariance + self._noise() * torch.eye(len(x), dtype=x.dtype))
            misfit = (y * torch.cholesky_solve(y, factor)).sum()
            log_determinant = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum()
            loss = (misfit + log_determinant) / (2 * len(x))

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def _fit_weights(self, inputs, actions, rng, small_action_prior):
        """What all own steps say, told by the points and the slopes (subset of regressors, section 8.3.1 there)."""
        importance = 1 / (1 + (actions / small_action_prior).square()) if small_action_prior else torch.ones_like(actions)
        count = min(len(inputs), MAX_POINTS)
        points = inputs[np.sort(rng.choice(len(inputs), count, replace=False))]
        slope = self.log_slope.exp().unsqueeze(1)

        # a linear regression on features, the weight of each a priori of variance 1
        between = self._smooth_kernel(points, points) + SMALLEST_NOISE * torch.eye(count, dtype=points.dtype)
        factor = torch.linalg.cholesky(between)
        size = count + inputs.shape[1]
        gram = self._noise() * torch.eye(size, dtype=points.dtype)
        target = torch.zeros(len(factor), size, 1, dtype=points.dtype)
        pieces = (rows.split(ROWS_AT_ONCE) for rows in (inputs, actions, importance))
        for x, y, important in zip(*pieces, strict=True):
            smooth = torch.linalg.solve_triangular(factor, self._smooth_kernel(points, x), upper=False)
            features = torch.cat([smooth, (x * slope).mT], 1)
            weighted = features * important.T.unsqueeze(1)
            gram = gram + weighted @ features.mT
            target += weighted @ y.T.unsqueeze(-1)

        weights = torch.linalg.solve(gram, target)
        self.points = points
        self.weights = torch.linalg.solve_triangular(factor.mT, weights[:, :count], upper=True)
        self.slopes = (weights[:, count:] * slope.mT).squeeze(-1)

    def _noise(self):
        return self.log_noise.exp() + SMALLEST_NOISE

    # --------------------------------------------------------------------------------------------- inference
    @torch.no_grad()
    def forward(self, steps):
        """Pairs of states (n, 2, S) -> actions (n, A) in [-1, 1], float32."""
        if not self.is_fitted:
            return torch.zeros(len(steps), len(self.slopes))

        fast = copy.deepcopy(self).float()
        labels = []
        for some in steps.split(ROWS_AT_ONCE):
            x = self._standardize(self._inputs(some)).float()
            smooth = fast._smooth_kernel(x, fast.points) @ fast.weights
            labels.append(smooth.squeeze(-1).T + x @ fast.slopes.T)
        return torch.cat(labels).clamp(-1, 1)

    def _inputs(self, steps):
        """(n, 2, S) -> (n, F): s_t and s_{t+1} - s_t."""
        steps = steps.cpu().double()
        now = steps[:, 0]
        return torch.cat([now, steps[:, 1] - now], -1)

    def _standardize(self, inputs):
        inputs = inputs.clamp(self.low, self.high)
        varies = self.scale > SMALLEST_SCALE
        return self.seen * varies * (inputs - self.mean) / self.scale.clamp(min=SMALLEST_SCALE)

    def _smooth_kernel(self, x, y):
        """x (n, F), y (m, F) -> (A, n, m)."""
        x = x * torch.exp(-self.log_length).unsqueeze(1)
        y = y * torch.exp(-self.log_length).unsqueeze(1)

        # log v - |x - y|^2 / 2 = x y - |x|^2 / 2 + (log v - |y|^2 / 2) as a single product: sums of large matrices cost
        # more than what they add
        of_x = -x.square().sum(-1, keepdim=True) / 2
        of_y = self.log_variance - y.square().sum(-1, keepdim=True) / 2
        x = torch.cat([x, of_x, torch.ones_like(of_x)], -1)
        y = torch.cat([y, torch.ones_like(of_y), of_y], -1)
        return (x @ y.mT).exp()

    def _linear_kernel(self, x, y):
        """x (n, F), y (m, F) -> (A, n, m)."""
        slope = self.log_slope.exp().unsqueeze(1)
        return (x * slope) @ (y * slope).mT

    # ------------------------------------------------------------------------------------------- checkpoints
    def load_state_dict(self, state, **options):
        """Load a labeler with however many points; the oldest saw all numbers."""
        state = {'seen': torch.ones_like(self.seen)} | state
        self.points = torch.zeros_like(state['points'])
        self.weights = torch.zeros_like(state['weights'])
        return super().load_state_dict(state, **options)


def places_help(steps, actions, places, rng, kernel_updates=100):
    """Does it help to see where the robot is, where own steps have not been? Two labelers learn from those that do not
    lie furthest along the slowest number, and the others say; arguments as of `Labeler.fit`. Where a number is part of
    the physics, as where a car points to, it helps."""
    slowest = steps[:, 0, places[0]].cpu().numpy()
    low, high = np.quantile(slowest, [ELSEWHERE / 2, 1 - ELSEWHERE / 2])
    is_far = torch.from_numpy((slowest < low) | (slowest > high))
    if not is_far.any():
        return True

    r2 = []
    for hidden in (), places:
        labeler = Labeler(steps.shape[-1], actions.shape[-1])
        labeler.hide(hidden)
        labeler.fit(steps[~is_far], actions[~is_far], rng, kernel_updates)
        r2.append(explained(labeler(steps[is_far]), actions[is_far]))
    seeing, without = r2
    return seeing - without >= HELPS


def explained(labels, actions):
    """Share of the variance of actions (n, A) that labels (n, A) explain: 1 - squared error / variance, of all numbers
    together."""
    error = (labels - actions).square().sum()
    return float(1 - error / (actions - actions.mean(0)).square().sum().clamp(min=1e-8))
