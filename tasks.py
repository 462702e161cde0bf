"""The two kinds of task.

A task decides what the policy sees of a subgoal, which steps of the data it imitates, and how much each
step counts.

    Locomotion     the robot itself goes somewhere: unit directions to subgoal and goal; subgoals lie k steps ahead
    Manipulation   the robot moves objects: the displacements that are left; subgoals lie after the next move

`make_task` chooses one from the data, once, and `build_map` the map that its planner needs. Both
classes have the same methods.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from model import imitation_weight
from planning.graph_planner import StateGraph
from planning.objects import REST_TOL, ObjectMap, find_moves

CLIP = 4.0  # standard deviations of the data beyond which a policy that moves objects sees no difference
STUCK_STEPS = 25  # steps within `STUCK_RADIUS` after which the robot counts as stuck
STUCK_RADIUS = 0.1  # in radii of the graph's nodes; about 0.2 m in OGBench's mazes


def build_map(offline, config, data, seed=0, nodes=0):
    """Build what the agent plans on from a TrajectoryDataset: an ObjectMap if the data have
    objects, else a StateGraph.

    Args:
        offline: OfflineAgent. config: OnlineConfig. nodes: of the graph; 0: as many as cover the
            data.

    Raises:
        ValueError: for flags that do not fit the data.
    """
    mean, scale = offline.goal_feature_affine()
    if offline.has_objects:
        if nodes:
            raise ValueError('--nodes: has no meaning where the robot moves objects; leave it out')
        return ObjectMap.from_data(data, scale, seed)

    longest = int((data.ends - data.starts).max())
    if config.waypoint_steps > longest:
        raise ValueError(f'--waypoint_steps {config.waypoint_steps}: the longest trajectory of the data has {longest} '
                         'steps; choose fewer')
    return StateGraph.from_data(data, mean, scale, config.waypoint_steps, nodes, seed)


def load_map(offline, saved):
    """Rebuild what `build_map` made for an OfflineAgent from its `state_dict`."""
    kind = ObjectMap if offline.has_objects else StateGraph
    return kind.from_state_dict(saved)


def make_task(offline, config, data_map):
    """Choose the task of an OfflineAgent: Manipulation if its data have objects, else Locomotion.

    Args:
        config: OnlineConfig.
        data_map: StateGraph, or ObjectMap if there are objects.

    Raises:
        ValueError: for flags that the task does not have.
    """
    if not offline.has_objects:
        return Locomotion(offline, config, data_map.radius)

    for name in ('direction_products', 'stuck_noise', 'waypoint_steps'):
        if getattr(config, name):
            raise ValueError(f'--{name}: has no meaning where the robot moves objects; leave it out')
    return Manipulation(offline, config, data_map)


class Locomotion:
    """The robot goes somewhere.

    Args:
        offline: OfflineAgent. config: OnlineConfig. radius: of the graph's nodes, in goal features.

    Raises:
        ValueError: if --direction_products finds no dimensions that say where the robot is.
    """

    small_action_prior = 0.0
    corrective_fraction = 0.0

    def __init__(self, offline, config, radius):
        self.encoder = offline.encoder
        self.action_scale = config.action_scale
        self.progress_steps = config.progress_steps
        self.weighs_progress = config.progress_steps > 0
        self.temperature = config.progress_temperature
        self.nearest = min(max(1, config.progress_steps), offline.config.transition_steps)
        self.farthest = offline.config.transition_steps
        self.stuck_noise = StuckNoise(self.encoder, STUCK_RADIUS * radius, config.stuck_noise)

        self.direction_dims = offline.position_dims().tolist() if config.direction_products else []
        if config.direction_products and not self.direction_dims:
            raise ValueError('--direction_products: the offline run has no position dimensions (--slow_goals); leave '
                             'it out')
        dimensions = offline.observation_dim
        self.input_dim = (3 + len(self.direction_dims)) * dimensions
        self.baseline_dim = dimensions

    # ------------------------------------------------------------------------------------------- policy inputs
    def clip(self, states):
        """Return what the policy sees of raw states (..., S): all of them, unchanged."""
        return states

    def inputs(self, states, subgoals, goals):
        """Return the policy's inputs beside f(s).

        Args:
            states: (..., S) raw.
            subgoals, goals: (..., S) goal features.

        Returns:
            List of tensors (..., n): the normalised state, the unit directions to subgoal and goal
            and, with --direction_products, each dimension of the state times each position
            dimension of the direction. The products of a velocity in the world are its parts toward
            the subgoal and across.
        """
        here = self.encoder.goal_features(states)
        normalized = self.encoder.normalize(states)
        direction = F.normalize(subgoals - here, dim=-1)
        inputs = [normalized, direction, F.normalize(goals - here, dim=-1)]
        if self.direction_dims:
            products = normalized.unsqueeze(-1) * direction[..., self.direction_dims].unsqueeze(-2)
            inputs.append(products.flatten(-2))
        return inputs

    # -------------------------------------------------------------------------------------- steps to imitate
    def sampler(self, dataset):
        """Return the SubgoalSampler of a trajectory dataset."""
        return StepsAhead(dataset, self.nearest, self.farthest)

    def weights(self, batch, baseline):
        """Return imitation weights (n,), mean 1: exponential in the progress toward the subgoal
        beyond `baseline`.

        Progress is compared with a state-dependent baseline (n,): a fallen robot makes no progress,
        and getting up is imitated all the same; a robot that stands where others walk is not.
        HIQL's low-level policy has the gain of V in its place (Park et al. 2023, eq. 6).
        """
        advantage = self.progress(batch) - baseline
        return imitation_weight(_standardize(advantage), self.temperature)

    def progress(self, batch):
        """Return the way (n,) that the trajectory came toward the subgoal in `progress_steps`, in
        standard deviations of the batch."""
        here = self.encoder.goal_features(batch.states)
        direction = F.normalize(self.encoder.goal_features(batch.subgoal_states) - here, dim=-1)
        progress = (direction * (self.encoder.goal_features(batch.progress_states) - here)).sum(-1)
        return progress / _deviation(progress)

    def baseline_inputs(self, batch):
        """Return what the baseline of progress is regressed on (n, baseline_dim): the normalised
        state."""
        return self.encoder.normalize(batch.states)


class Manipulation:
    """The robot moves objects.

    Args:
        offline: OfflineAgent. config: OnlineConfig. object_map: ObjectMap of the data.
    """

    action_scale = 1.0

    def __init__(self, offline, config, object_map):
        self.encoder = offline.encoder
        self.object_map = object_map
        self.object_masks = object_map.object_masks.to(offline.device)
        self.scale = offline.goal_feature_affine()[1]
        self.progress_steps = config.progress_steps
        # with switches alone, the fastest presses are those that miss
        self.weighs_progress = config.progress_steps > 0 and object_map.has_movable
        self.temperature = config.progress_temperature
        self.small_action_prior = config.small_action_prior
        self.corrective_fraction = config.corrective_fraction
        self.stuck_noise = NoStuckNoise()
        self.input_dim = 3 * offline.observation_dim
        self.baseline_dim = 2 * offline.observation_dim

    # ------------------------------------------------------------------------------------------- policy inputs
    def clip(self, states):
        """Return what the policy sees of raw states (..., S): at most `CLIP` standard deviations
        from the mean.

        A small turn of a wrist that the data never turn would dominate all other inputs.
        """
        encoder = self.encoder
        return encoder.mean + encoder.normalize(states).clamp(-CLIP, CLIP) * encoder.std

    def inputs(self, states, subgoals, goals):
        """Return the policy's inputs beside f(s): the normalised state, the displacements that are
        left until the subgoal, and the state masked to the objects that are to be moved. Arguments
        as of `Locomotion.inputs`; the goal is not an input, since one move is made at a time."""
        normalized = self.encoder.normalize(self.clip(states))
        displacement = subgoals - self.encoder.goal_features(states)
        return [normalized, displacement, self._mask_to_moved_objects(normalized, displacement)]

    def _mask_to_moved_objects(self, states, displacement):
        """Zero all dimensions of states (..., S) but those of objects with a displacement (..., S).
        Else the policy would have to multiply displacement and state, which a small network hardly
        learns."""
        masks = self.object_masks.to(states)
        is_moved = ((displacement.abs() > REST_TOL).to(states) @ masks) > 0
        return states * (is_moved.to(states) @ masks.T)

    # -------------------------------------------------------------------------------------- steps to imitate
    def sampler(self, dataset):
        """Return the SubgoalSampler of a trajectory dataset."""
        return NextMove(dataset, self.scale)

    def weights(self, batch, baseline):
        """Return imitation weights (n,), mean 1, as `Locomotion.weights`. Moves that change a
        switch have weight 1."""
        weights = torch.ones_like(baseline)
        weighted = ~self._changes_switch(batch)
        advantage = (self.progress(batch) - baseline)[weighted]
        weights[weighted] = imitation_weight(_standardize(advantage), self.temperature)
        return weights

    def _changes_switch(self, batch):
        """Return whether the next move of each transition changes a switch, (n,) bool."""
        if not self.object_map.has_switches:
            return torch.zeros(len(batch.states), dtype=torch.bool, device=batch.states.device)
        before, after = (self.object_map.configurations(states.cpu().numpy())
                         for states in (batch.states, batch.subgoal_states))
        return torch.from_numpy((before != after).any(1)).to(batch.states.device)

    def progress(self, batch):
        """Return minus the steps (n,) until the next move is done, in standard deviations of the
        batch."""
        return -batch.steps_to_subgoal / _deviation(batch.steps_to_subgoal)

    def baseline_inputs(self, batch):
        """Return what the baseline is regressed on (n, baseline_dim): the normalised state and the
        next move. Right after a cube was put down, the next move takes longer."""
        encoder = self.encoder
        move = encoder.goal_features(batch.subgoal_states) - encoder.goal_features(batch.states)
        return torch.cat([encoder.normalize(batch.states), move], -1)


def _deviation(values):
    """Return the standard deviation of values (n,), safe to divide by; of a single value, too."""
    return values.std(correction=min(1, len(values) - 1)).clamp(min=1e-8)


def _standardize(values):
    """Subtract the mean of values (n,) and divide by their standard deviation."""
    return (values - values.mean()) / _deviation(values)


# -------------------------------------------------------------------------------------------------- subgoals
class StepsAhead:
    """Subgoals of a dataset's rows: states `nearest` to `farthest` steps later in the trajectory."""

    def __init__(self, dataset, nearest, farthest):
        self.dataset = dataset
        self.nearest = nearest
        self.farthest = farthest

    def transition_rows(self, rows):
        """Select, among rows (n,) that have a next state, those at which a step to imitate begins:
        all of them."""
        return rows

    def subgoal_rows(self, rows, rng):
        """Draw the row of a subgoal for each of some rows (n,)."""
        steps = rng.integers(self.nearest, self.farthest + 1, size=len(rows))
        return np.minimum(rows + steps, self.dataset.end_of[rows])


class NextMove:
    """Subgoals of a dataset's rows: the state after the next move of an object; scale (S,) as of
    `find_moves`."""

    def __init__(self, dataset, scale):
        self.dataset = dataset
        self.next_rest = find_moves(dataset.observations, dataset.starts, dataset.ends, scale).next_rest

    def transition_rows(self, rows):
        """Select, among rows (n,), those that a move follows; all rows if no move follows any."""
        leading = rows[self.next_rest[rows] >= 0]
        return leading if len(leading) else rows

    def subgoal_rows(self, rows, rng):
        """Return the row after the next move for each of some rows (n,), the last row of the
        trajectory if none."""
        following = self.next_rest[rows]
        return np.where(following >= 0, following, self.dataset.end_of[rows])


# --------------------------------------------------------------------------------------------- stuck robots
class StuckState(NamedTuple):
    """Where B episodes are, and for how many steps they have been there."""

    positions: np.ndarray  # (B, S) goal features, nan where an episode begins
    steps: np.ndarray  # (B,) int


class StuckNoise:
    """Action noise for robots that have not left a ball for `STUCK_STEPS` steps.

    The policy is deterministic: a robot that lies still, and whose action moves nothing, repeats
    that action for ever. The noise is drawn from a hash of the observation and the step, so that
    acting stays deterministic.

    Args:
        encoder: Encoder. radius: of the ball, in goal features. std: of the noise, in half widths
            of the action range; 0 adds none.
    """

    def __init__(self, encoder, radius, std):
        self.encoder = encoder
        self.radius = radius
        self.std = std

    def initial_state(self, batch_size):
        """Return the StuckState before the first step of `batch_size` episodes."""
        return StuckState(np.full((batch_size, len(self.encoder.mean)), np.nan), np.zeros(batch_size, int))

    def reset(self, state, rows):
        """Clear the state of the episodes where rows (B,) is true."""
        return StuckState(np.where(rows[:, None], np.nan, state.positions), np.where(rows, 0, state.steps))

    def step(self, actions, observations, states, state):
        """Add noise to the actions of stuck robots.

        Args:
            actions: (B, A) numpy, in [-1, 1]. observations: (B, S) numpy, raw. states: (B, S)
                tensor, estimated.

        Returns:
            Actions (B, A) and the next StuckState.
        """
        if not self.std:
            return actions, state

        # count the steps since the robot left the ball around its last position
        here = self.encoder.goal_features(states).cpu().numpy()
        stays = np.linalg.norm(here - state.positions, axis=1) <= self.radius
        positions = np.where(stays[:, None], state.positions, here)
        steps = np.where(stays, state.steps + 1, 0)

        # one generator for each stuck row, seeded by its observation
        noise = np.zeros_like(actions)
        for row in np.flatnonzero(steps >= STUCK_STEPS):
            bits = np.asarray(observations[row], np.float32).view(np.uint32)
            rng = np.random.default_rng([steps[row], *bits])
            noise[row] = self.std * rng.standard_normal(actions.shape[1])
        return actions + noise, StuckState(positions, steps)


class NoStuckNoise:
    """Leave actions as they are: a hand that moves objects may wait."""

    def initial_state(self, batch_size):
        """Return None: there is nothing to remember."""
        return None

    def reset(self, state, rows):
        """Return the state unchanged."""
        return state

    def step(self, actions, observations, states, state):
        """Return the actions and the state unchanged."""
        return actions, state
