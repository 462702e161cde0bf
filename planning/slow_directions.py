"""Detection of places: the slow directions of the states that the robot can drive back and forth.

A goal of locomotion data is about a place. Slow feature analysis (Wiskott and Sejnowski 2002) finds slow
directions in closed form: whiten the states, then take the eigenvectors of the covariance of their changes in
k steps. The result does not depend on units, and hardly on the basis in which states are written down.

Not everything slow is a place. No actions are needed to tell them apart:

    driven     the changes of a place can be predicted from the fast dimensions (velocities, joint angles). Those
               of a battery, a clock or a temperature cannot.
    returning  a place takes old values again within trajectories. An odometer only grows.

`find_places` leaves the others out. If some dimensions alone span the remaining slow directions, they are the
places, weighted by their slowness (`TrajectoryDataset.slowness`), else the directions are.
"""

import dataclasses

import numpy as np

MAX_ROWS = 15_000  # pairs of rows for covariances and predictions
MIN_VARIANCE = 1e-6  # of a whitened direction, relative to the largest: below, it repeats other dimensions
MIN_CHANGE = 1e-9  # mean squared change in k steps over variance, below which a direction is constant
SLOW_TIME_SCALE = 0.1  # of the longest time scale, above which a direction is slow

# driven directions
DRIVE_STEPS = 5  # steps of the changes that are predicted
RANDOM_FEATURES = 100  # random nonlinear features of the fast directions
RIDGE = 1e-2  # of the regression, per row, in variances of a feature
MIN_PREDICTED = 0.3  # R2 of the best predicted direction, below which nothing is concluded from a prediction
MAX_UNDRIVEN = 0.03  # R2 relative to the best, below which a direction may be independent of the robot
MIN_DEPENDENCE = 0.03  # R2 of squared changes, above which a direction depends on the robot all the same

# returning directions
ONE_WAY = 0.8  # squared mean over mean square of changes within half a trajectory, above which there is no return

# dimensions or directions
SPAN_TIME_SCALE = 0.3  # of the longest one, above which a dimension can be part of a place
SPAN_WEIGHT = 0.25  # directions of a smaller weight need not be spanned
SPAN_R2 = 0.7  # share of a direction's variance that the dimensions must explain
MIN_WEIGHT = 1e-3  # weight below which a direction is dropped


@dataclasses.dataclass
class Places:
    """Goal features of the standardised state z: (z @ directions) * weights."""

    directions: np.ndarray  # (S, S), a unit-variance feature in each column; the identity for dimensions
    weights: np.ndarray  # (S,) in [0, 1]
    excluded: list  # of str, what is slow and no place, with the reason

    @property
    def are_dimensions(self):
        """Return whether the features are dimensions of the state."""
        return bool((self.directions == np.eye(len(self.weights))).all())


def find_places(data, declared=()):
    """Return the Places of a `TrajectoryDataset`.

    Args:
        declared: dimensions that goals are about, if they are known: no directions are used then.
    """
    slowness = data.slowness()
    dimensions = np.eye(len(slowness))
    space = SlowSpace.of(data)
    if space is None:
        return Places(dimensions, slowness, [])

    # directions that are places, and dimensions that consist of the others
    kept, excluded, reasons = select_places(space)
    left_out = space.dimensions_of(excluded)
    left_out[np.array(declared, int)] = -1
    notes = [f'slow, but no place: {_listed(np.flatnonzero(left_out == i))}: {reason}'
             for i, reason in enumerate(reasons)]

    # dimensions, if they span the directions
    usable = np.where(left_out < 0, slowness, 0)
    weights = space.slowness(kept)
    if len(declared) or space.is_spanned(kept, weights, usable > 0):
        return Places(dimensions, usable / max(usable.max(), 1e-300) if len(reasons) else slowness, notes)

    # the directions
    directions = np.zeros((len(slowness), len(slowness)))
    directions[:, :kept.shape[1]] = space.functionals[:, :space.num_slow] @ kept
    padded = np.zeros(len(slowness))
    padded[:len(weights)] = np.where(weights >= MIN_WEIGHT, weights, 0)
    return Places(directions, padded, notes)


def _listed(dims):
    """Return 'dimension 3', 'dimensions 3, 5' or, for none, 'a direction of the state'."""
    if not len(dims):
        return 'a direction of the state'
    return f"dimension{'s' * (len(dims) > 1)} {', '.join(map(str, dims))}"


def select_places(space):
    """Separate the slow directions of a SlowSpace with Q slow directions into places and others.

    Returns:
        kept: (Q, p), excluded: (Q, Q - p) in coordinates of the slow directions, kept columns by slowness.
        reasons: list of str, of each excluded column.
    """
    kept = np.eye(space.num_slow)
    excluded, reasons = [], []

    def exclude(direction, reason):
        nonlocal kept
        excluded.append(kept @ direction)
        reasons.append(reason)
        kept = space.complement(excluded)

    # what runs one way, as long as another slow direction is left
    while kept.shape[1] > 1:
        direction, ratio = space.one_way(kept)
        if ratio < ONE_WAY:
            break
        rest = space.complement([*excluded, kept @ direction])
        if space.time_scales(rest).max() < SPAN_TIME_SCALE * space.time_scales(kept @ direction[:, None]).max():
            break
        exclude(direction, 'it only runs one way')

    # what changes whatever the robot does
    while kept.shape[1] > 1:
        direction, worst, best = space.drive(kept)
        if best < MIN_PREDICTED or worst >= MAX_UNDRIVEN * best:
            break
        rest = space.complement([*excluded, kept @ direction])
        dependence = space.depends(kept @ direction, rest)
        if dependence >= MIN_DEPENDENCE:
            break
        exclude(direction, 'its changes do not depend on the other dimensions')
    return kept, (np.stack(excluded, 1) if excluded else np.zeros((space.num_slow, 0))), reasons


@dataclasses.dataclass
class SlowSpace:
    """Slow directions of a dataset, whitened: Q slow ones, then others, M in all, of S dimensions."""

    functionals: np.ndarray  # (S, M), directions of standardised states, of unit variance, the slowest first
    loadings: np.ndarray  # (S, M), correlation of each dimension with each direction
    num_slow: int  # Q
    steps: int  # k
    longest: int  # longest time scale in steps
    k_changes: np.ndarray  # (Q, Q) second moments of changes in k steps
    short_changes: np.ndarray  # (Q, Q) of changes in DRIVE_STEPS steps
    long_changes: tuple  # two arrays (n, Q) of changes in half a trajectory, of different trajectories
    dimension_scales: np.ndarray  # (S,) time scales of the dimensions, in steps
    predicted: np.ndarray  # (Q, Q) covariance of predicted changes, of other trajectories
    variance: np.ndarray  # (Q, Q) covariance of these changes
    slow_steps: np.ndarray  # (n, Q) changes in DRIVE_STEPS
    fast_steps: np.ndarray  # (n, M - Q)
    folds: np.ndarray  # (n,) 0 or 1, by trajectory

    @classmethod
    def of(cls, data):
        """Return the SlowSpace of a TrajectoryDataset, None if its trajectories are too short."""
        rng = np.random.default_rng(0)
        k = data.transition_steps
        pairs = _pairs(data, k, rng)
        if len(pairs) < 2 * data.observations.shape[1]:
            return None

        # whiten the standardised states
        mean, std = data.statistics()
        scale = np.divide(1, std, np.zeros_like(std), where=std > 1e-6 * np.abs(mean))
        states = lambda rows: (data.observations[rows] - mean) * scale
        covariance = np.cov(states(_sample(len(data), rng)).T, ddof=0).reshape(len(mean), -1)
        variances, axes = np.linalg.eigh(covariance)
        used = variances > MIN_VARIANCE * variances[-1]
        whitening = axes[:, used] / np.sqrt(variances[used])

        # slow feature analysis: directions of the smallest changes that are not constant
        changes = (states(pairs + k) - states(pairs)) @ whitening
        squares, vectors = np.linalg.eigh(changes.T @ changes / len(changes))
        varies = squares > MIN_CHANGE
        functionals = whitening @ vectors[:, varies]
        longest = max(2 * k, int(np.max(data.ends - data.starts)))
        scales = _time_scales(squares[varies], k, longest)
        num_slow = int((scales >= SLOW_TIME_SCALE * scales.max()).sum())

        slow = functionals[:, :num_slow]
        half = max(1, int(np.median(data.ends - data.starts)) // 2)
        long_pairs = _pairs(data, half, rng)
        parity = data.end_of[long_pairs]
        parity = np.searchsorted(data.ends, parity) % 2
        long_changes = (states(long_pairs + half) - states(long_pairs)) @ slow

        # changes in a few steps, and how the fast directions predict them
        rows = _pairs(data, DRIVE_STEPS, rng)
        before, after = (states(rows + offset) @ functionals for offset in (0, DRIVE_STEPS))
        steps = after - before
        slow_steps, fast_steps = steps[:, :num_slow], steps[:, num_slow:]
        folds = np.searchsorted(data.ends, data.end_of[rows]) % 2
        predicted = _held_out(np.concatenate([before[:, num_slow:], fast_steps], 1), slow_steps, folds)[0]

        moved = np.square(states(pairs + k) - states(pairs)).mean(0)
        return cls(functionals, covariance @ functionals, num_slow, k, longest, np.diag(squares[varies][:num_slow]),
                   slow_steps.T @ slow_steps / len(rows), (long_changes[parity == 0], long_changes[parity == 1]),
                   _time_scales(np.where(moved > 0, moved, 2), k, longest), predicted, np.cov(slow_steps.T).reshape(num_slow, -1), slow_steps, fast_steps, folds)

    def time_scales(self, directions):
        """Return the time scales (p,), in steps, of directions (Q, p)."""
        squares = np.einsum('qp,qr,rp->p', directions, self.k_changes, directions)
        squares /= np.square(directions).sum(0)
        return _time_scales(squares, self.steps, self.longest)

    def slowness(self, directions):
        """Return squared time scales (p,) of directions (Q, p), relative to the largest."""
        scales = self.time_scales(directions)
        return np.square(scales / scales.max())

    def complement(self, excluded):
        """Return the directions (Q, p) that ignore the `excluded` ones, orthonormal, the slowest first.

        They are uncorrelated with the excluded ones in their changes, of which there are more independent ones than
        states. Where an excluded direction hardly changes, the states are uncorrelated.
        """
        typical = np.median(np.diag(self.short_changes))
        rows = np.stack([self.short_changes @ d if d @ self.short_changes @ d >= typical else d for d in excluded])
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        basis = np.linalg.svd(rows)[2][len(rows):].T
        squares, vectors = np.linalg.eigh(basis.T @ self.k_changes @ basis)
        return basis @ vectors

    def one_way(self, directions):
        """Return the combination (p,) of directions (Q, p) that runs one way most, and how much it does, in [0, 1]."""
        first, second = (changes @ directions for changes in self.long_changes)
        if not len(first) or not len(second):
            return np.zeros(directions.shape[1]), 0.0
        moments = first.T @ first / len(first)
        direction = np.linalg.solve(moments + 1e-9 * np.trace(moments) * np.eye(len(moments)), first.mean(0))
        direction /= np.linalg.norm(direction)
        along = second @ direction
        return direction, along.mean() ** 2 / np.square(along).mean()

    def drive(self, directions):
        """Find the combinations of directions (Q, p) whose changes are predicted worst and best.

        Returns:
            combination (p,) of the worst R2, this R2, the best R2.
        """
        variance = directions.T @ self.variance @ directions
        factor = np.linalg.inv(np.linalg.cholesky(variance + 1e-9 * np.trace(variance) * np.eye(len(variance))))
        r2, vectors = np.linalg.eigh(factor @ directions.T @ self.predicted @ directions @ factor.T)
        worst = factor.T @ vectors[:, 0]
        return worst / np.linalg.norm(worst), r2[0], r2[-1]

    def depends(self, direction, others):
        """Return the R2 of predicting the squared changes of a direction (Q,) from those of `others` (Q, p) and from
        the fast directions, in trajectories that were not fitted to."""
        inputs = np.abs(np.concatenate([self.slow_steps @ others, self.fast_steps], 1))
        return float(_held_out(inputs, np.square(self.slow_steps @ direction)[:, None], self.folds)[1][0])

    def dimensions_of(self, excluded):
        """Return for each dimension (S,) the excluded direction (column of (Q, x)) that it mainly consists of, or -1.

        These are slow dimensions of which the excluded directions explain most of the slow part.
        """
        slow_part = self.loadings[:, :self.num_slow]
        found = np.full(len(slow_part), -1)
        if not excluded.shape[1]:
            return found
        explained = np.square(slow_part @ np.linalg.qr(excluded)[0]).sum(1)
        is_slow = self.dimension_scales >= SLOW_TIME_SCALE * self.dimension_scales.max()
        found[is_slow & (explained > 0.5 * np.square(slow_part).sum(1))] = 0
        nearest = np.abs(slow_part @ excluded).argmax(1)
        return np.where(found == 0, nearest, -1)

    def is_spanned(self, directions, weights, usable):
        """Return whether the slow ones of the `usable` dimensions (S,) span the directions (Q, p) of notable weight (p,)."""
        slowest = self.time_scales(directions).max()
        dims = np.flatnonzero(usable & (self.dimension_scales >= SPAN_TIME_SCALE * slowest))
        if not len(dims):
            return False
        important = directions[:, weights >= SPAN_WEIGHT]
        loadings = self.loadings[dims]
        inner = self.loadings[dims, :self.num_slow] @ important  # (d, p) covariances
        solved = np.linalg.lstsq(loadings @ loadings.T, inner, rcond=1e-9)[0]
        return bool(((inner * solved).sum(0) >= SPAN_R2).all())


def _held_out(inputs, targets, folds):
    """Predict targets (n, q) from inputs (n, f) by ridge regression on the rows of the other fold.

    Returns:
        covariance (q, q) of predictions and targets, and R2 (q,).
    """
    rng = np.random.default_rng(0)
    inputs = inputs / np.maximum(inputs.std(0), 1e-12)
    projection = rng.standard_normal((inputs.shape[1], RANDOM_FEATURES)) / np.sqrt(max(1, inputs.shape[1]))
    waves = np.cos(inputs @ projection + rng.uniform(0, 2 * np.pi, RANDOM_FEATURES))
    features = np.concatenate([inputs, waves], 1)
    features -= features.mean(0)
    targets = targets - targets.mean(0)

    predicted = np.zeros_like(targets)
    for held in 0, 1:
        x, y = features[folds != held], targets[folds != held]
        gram = x.T @ x + RIDGE * len(x) * np.eye(x.shape[1])
        predicted[folds == held] = features[folds == held] @ np.linalg.solve(gram, x.T @ y)
    covariance = predicted.T @ targets / len(targets)
    r2 = 1 - np.square(targets - predicted).sum(0) / np.maximum(np.square(targets).sum(0), 1e-300)
    return (covariance + covariance.T) / 2, r2


def _pairs(data, steps, rng):
    """Return at most MAX_ROWS rows whose trajectory continues for `steps` steps."""
    rows = np.flatnonzero(np.arange(len(data)) + steps <= data.end_of)
    return rows if len(rows) <= MAX_ROWS else np.sort(rng.choice(rows, MAX_ROWS, replace=False))


def _sample(count, rng):
    return np.arange(count) if count <= MAX_ROWS else np.sort(rng.choice(count, MAX_ROWS, replace=False))


def _time_scales(squares, steps, longest):
    """Return the time scales (p,), in steps, of directions with mean squared changes (p,) over variance."""
    autocorrelation = np.clip(1 - squares / 2, 1e-6, np.exp(-steps / longest))
    return -steps / np.log(autocorrelation)
