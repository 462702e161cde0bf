"""Detection of places: the slow directions of the states that the robot can drive back and forth.

A goal of locomotion data is about a place. Slow feature analysis (Wiskott and Sejnowski 2002) finds slow
directions in closed form: whiten the states, then take the eigenvectors of the covariance of their changes in
k steps. The result does not depend on units, and hardly on the basis in which states are written down.

Not everything slow is a place. Two tests without actions separate them:

    driven     the changes of a place, or at least their size, can be predicted from other dimensions. Those
               of a battery, a clock or a temperature cannot.
    returning  a place takes old values again within trajectories. An odometer only grows.

`find_places` leaves the others out. If some dimensions alone span the remaining slow directions, they are the
places, weighted by their slowness (`TrajectoryDataset.slowness`), else the directions are.
"""

import dataclasses

import numpy as np

MAX_ROWS = 15_000  # pairs of rows for covariances and predictions
MIN_STD = 1e-6  # of a dimension, relative to its mean, below which it is constant
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
MIN_TRAJECTORIES = 8  # in each half of the data, below which nothing is left out
ONE_WAY = 0.8  # squared mean over mean square of changes in half a trajectory, above which there is no return

# dimensions or directions
SPAN_TIME_SCALE = 0.3  # of the longest one, above which a dimension can be part of a place
SPAN_SHARE = 0.75  # of the variance of the weighted directions that the dimensions must explain
ONE_WAY_REASON = 'it only runs one way'
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
    one_way = one_way_dimensions(data, slowness)
    space = SlowSpace.of(data, one_way)
    if space is None:
        return Places(dimensions, slowness, [])

    # directions that are places, and dimensions that consist of the others
    kept, excluded, reasons = select_places(space)
    left_out = space.dimensions_of(excluded)
    if len(one_way):
        left_out[one_way] = len(reasons)
        reasons = [*reasons, ONE_WAY_REASON]
    left_out[np.array(declared, int)] = -1
    notes = [f'slow, but no place: {_listed(np.flatnonzero(left_out == i))}: {reason}'
             for i, reason in enumerate(reasons)]

    # dimensions, if they span the directions
    usable = np.where(left_out < 0, slowness, 0)
    weights = space.slowness(kept)
    if len(declared) or space.is_spanned(kept, weights, left_out < 0):
        return Places(dimensions, usable / max(usable.max(), 1e-300) if len(reasons) else slowness, notes)

    # the directions
    directions = np.zeros((len(slowness), len(slowness)))
    directions[:, :kept.shape[1]] = space.functionals[:, :space.num_slow] @ kept
    padded = np.zeros(len(slowness))
    padded[:len(weights)] = np.where(weights >= MIN_WEIGHT, weights, 0)
    return Places(directions, padded, notes)


def one_way_dimensions(data, slowness):
    """Return the slow dimensions (n,) int that only run one way in a TrajectoryDataset; none if no other is slow.

    Args:
        slowness: (S,) of the dimensions.
    """
    rng = np.random.default_rng(0)
    half = half_length(data)
    rows = sample_pairs(data, half, rng)
    if np.sum(data.ends - data.starts >= half) < 2 * MIN_TRAJECTORIES:
        return np.zeros(0, int)

    # squared mean over mean square of the changes in half a trajectory
    changes = data.observations[rows + half].astype(float) - data.observations[rows]
    squares = np.square(changes).mean(0)
    ratios = np.divide(np.square(changes.mean(0)), squares, np.zeros_like(squares), where=squares > 0)

    is_slow = slowness >= SLOW_TIME_SCALE ** 2
    one_way = is_slow & (ratios >= ONE_WAY)
    has_others = (slowness[is_slow & ~one_way] >= (SPAN_TIME_SCALE * SLOW_TIME_SCALE) ** 2).any()
    return np.flatnonzero(one_way) if has_others else np.zeros(0, int)


def half_length(data):
    """Return half of the median length of the trajectories, in steps, at least 1."""
    return max(1, int(np.median(data.ends - data.starts)) // 2)


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
    if space.num_trajectories < MIN_TRAJECTORIES:
        return kept, np.zeros((space.num_slow, 0)), reasons

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
        rest = space.time_scales(space.complement([*excluded, kept @ direction])).max()
        if rest < SPAN_TIME_SCALE * space.time_scales(kept @ direction[:, None]).max():
            break
        exclude(direction, ONE_WAY_REASON)

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
    loadings: np.ndarray  # (S, M), covariance of each standardised dimension with each direction
    num_slow: int  # Q
    steps: int  # k
    longest: int  # longest time scale, in steps
    dimension_scales: np.ndarray  # (S,) time scales of the dimensions, in steps
    k_changes: np.ndarray  # (Q, Q) second moments of changes in k steps
    short_changes: np.ndarray  # (Q, Q) second moments of changes in DRIVE_STEPS
    long_changes: tuple  # two arrays (n, Q) of changes in half a trajectory, each of half of the trajectories
    predicted: np.ndarray  # (Q, Q) covariance of changes in DRIVE_STEPS and their predictions
    variance: np.ndarray  # (Q, Q) covariance of these changes
    slow_steps: np.ndarray  # (n, Q) these changes
    fast_steps: np.ndarray  # (n, M - Q) those of the other directions
    folds: np.ndarray  # (n,) half of the trajectories that they belong to, 0 or 1
    num_trajectories: int  # with changes in half a trajectory, in the smaller half of them

    @classmethod
    def of(cls, data, ignored=()):
        """Return the SlowSpace of a TrajectoryDataset, None if all its trajectories are short or constant.

        Args:
            ignored: dimensions that are treated as constant.
        """
        rng = np.random.default_rng(0)
        k = data.transition_steps
        mean, scale = standardization(data)
        scale[np.array(ignored, int)] = 0
        pairs = sample_pairs(data, k, rng)
        if len(pairs) < 2 * len(scale) or not scale.any():
            return None

        def states(rows):
            return (data.observations[rows] - mean) * scale

        # whiten the standardised states
        sample = states(sample_rows(np.arange(len(data)), rng))
        covariance = sample.T @ sample / len(sample)
        whitening = whiten(covariance)

        # slow feature analysis: directions of the smallest changes that are not constant
        changes = states(pairs + k) - states(pairs)
        moments = changes.T @ changes / len(changes)
        squares, vectors = np.linalg.eigh(whitening.T @ moments @ whitening)
        varies = squares > MIN_CHANGE
        if not varies.any():
            return None
        functionals = whitening @ vectors[:, varies]

        # which of them are slow
        longest = max(2 * k, int(np.max(data.ends - data.starts)))
        scales = _time_scales(squares[varies], k, longest)
        num_slow = int((scales >= SLOW_TIME_SCALE * scales.max()).sum())
        moved = moments.diagonal()

        # changes in half a trajectory, in two halves of the trajectories
        half = half_length(data)
        num_trajectories = np.bincount(np.flatnonzero(data.ends - data.starts >= half) % 2, minlength=2)
        rows = sample_pairs(data, half, rng)
        halves = np.searchsorted(data.ends, data.end_of[rows]) % 2
        long_changes = (states(rows + half) - states(rows)) @ functionals[:, :num_slow]

        # changes in a few steps, and how the fast directions predict them
        few = min(DRIVE_STEPS, k)
        rows = sample_pairs(data, few, rng)
        before, after = (states(rows + offset) @ functionals for offset in (0, few))
        slow_steps, fast_steps = np.split(after - before, [num_slow], axis=1)
        folds = np.searchsorted(data.ends, data.end_of[rows]) % 2
        predicted = _held_out(np.concatenate([before[:, num_slow:], fast_steps], 1), slow_steps, folds)[0]

        return cls(
            functionals=functionals,
            loadings=covariance @ functionals,
            num_slow=num_slow,
            steps=k,
            longest=longest,
            dimension_scales=_time_scales(np.where(moved > MIN_CHANGE, moved, 2), k, longest),
            k_changes=np.diag(squares[varies][:num_slow]),
            short_changes=slow_steps.T @ slow_steps / len(rows),
            long_changes=(long_changes[halves == 0], long_changes[halves == 1]),
            predicted=predicted,
            variance=np.cov(slow_steps.T).reshape(num_slow, -1),
            slow_steps=slow_steps,
            fast_steps=fast_steps,
            folds=folds,
            num_trajectories=num_trajectories.min(),
        )

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

        They are uncorrelated with the excluded ones in their changes, more of which than of the states are
        independent. Where an excluded direction hardly changes, the states are uncorrelated.
        """
        changes = self.short_changes
        typical = np.median(changes.diagonal())
        rows = np.stack([changes @ d if d @ changes @ d >= typical else d for d in excluded])
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        basis = np.linalg.svd(rows)[2][len(rows):].T
        squares, vectors = np.linalg.eigh(basis.T @ self.k_changes @ basis)
        return basis @ vectors

    def one_way(self, directions):
        """Find the combination of directions (Q, p) that runs one way most.

        Returns:
            combination (p,), and its squared mean change over its mean squared change, in [0, 1].
        """
        first, second = (changes @ directions for changes in self.long_changes)
        direction = np.linalg.solve(_regular(first.T @ first / len(first)), first.mean(0))
        direction /= np.linalg.norm(direction)
        along = second @ direction
        return direction, along.mean() ** 2 / np.square(along).mean()

    def drive(self, directions):
        """Find the combinations of directions (Q, p) whose changes are predicted worst and best.

        Returns:
            combination (p,) of the worst R2, this R2, the best R2.
        """
        variance = directions.T @ self.variance @ directions
        factor = np.linalg.inv(np.linalg.cholesky(_regular(variance)))
        r2, vectors = np.linalg.eigh(factor @ directions.T @ self.predicted @ directions @ factor.T)
        worst = factor.T @ vectors[:, 0]
        return worst / np.linalg.norm(worst), r2[0], r2[-1]

    def depends(self, direction, others):
        """Return the R2 of predicting the squared changes of a direction (Q,) from those of others.

        Others are the directions `others` (Q, p) and the fast ones. R2 is that of trajectories that were not
        fitted to.
        """
        inputs = np.abs(np.concatenate([self.slow_steps @ others, self.fast_steps], 1))
        return float(_held_out(inputs, np.square(self.slow_steps @ direction)[:, None], self.folds)[1][0])

    def dimensions_of(self, excluded):
        """Return for each dimension (S,) the column of `excluded` (Q, x) that it mainly consists of, or -1.

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
        """Return whether slow dimensions span directions.

        Args:
            directions: (Q, p). weights: (p,) of them. usable: (S,) bool, dimensions that may be used.
        """
        slowest = self.time_scales(directions).max()
        dims = np.flatnonzero(usable & (self.dimension_scales >= SPAN_TIME_SCALE * slowest))
        if not len(dims):
            return False
        loadings = self.loadings[dims]
        inner = loadings[:, :self.num_slow] @ directions  # (d, p) covariances
        r2 = (inner * np.linalg.lstsq(loadings @ loadings.T, inner, rcond=1e-9)[0]).sum(0)
        return bool(np.square(weights) @ r2 >= SPAN_SHARE * np.square(weights).sum())


def standardization(data):
    """Return mean (S,) and scale (S,) of the standardised states (s - mean) * scale; 0 for constant dimensions."""
    mean, std = data.statistics()
    return mean, np.divide(1, std, np.zeros_like(std), where=std > MIN_STD * np.abs(mean))


def whiten(covariance):
    """Return the directions (S, M) of standardised states with a covariance (S, S) that have unit covariance."""
    variances, axes = np.linalg.eigh(covariance)
    used = variances > MIN_VARIANCE * max(variances[-1], 1e-300)
    return axes[:, used] / np.sqrt(variances[used])


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
        if not len(x):
            continue
        gram = x.T @ x + RIDGE * len(x) * np.eye(x.shape[1])
        predicted[folds == held] = features[folds == held] @ np.linalg.solve(gram, x.T @ y)
    covariance = predicted.T @ targets / len(targets)
    r2 = 1 - np.square(targets - predicted).sum(0) / np.maximum(np.square(targets).sum(0), 1e-300)
    return (covariance + covariance.T) / 2, r2


def sample_pairs(data, steps, rng):
    """Return at most MAX_ROWS rows whose trajectory continues for `steps` steps."""
    return sample_rows(np.flatnonzero(np.arange(len(data)) + steps <= data.end_of), rng)


def _regular(matrix):
    """Return a positive semidefinite matrix (p, p) with a small multiple of the identity added."""
    return matrix + MIN_CHANGE * max(np.trace(matrix), 1e-300) * np.eye(len(matrix))


def sample_rows(rows, rng):
    """Return at most MAX_ROWS of the rows (n,)."""
    return rows if len(rows) <= MAX_ROWS else np.sort(rng.choice(rows, MAX_ROWS, replace=False))


def _time_scales(squares, steps, longest):
    """Return the time scales (p,), in steps, of directions with mean squared changes (p,) over variance."""
    autocorrelation = np.clip(1 - squares / 2, 1e-6, np.exp(-steps / longest))
    return -steps / np.log(autocorrelation)
