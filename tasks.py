"""The two kinds of task.

A task determines the inputs of the policy, the steps of the data that it imitates, and their
weights.

                   policy inputs                           subgoals in training
    Locomotion     unit directions, or displacements       states at most k steps later
    Manipulation   displacements of objects                states after the next move

`make_task` chooses a task from the data, once, and `build_map` builds the map for its planner.
Both classes have the same methods.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from model import imitation_weight
from planning.graph_planner import StateGraph
from planning.objects import REST_TOL, ObjectMap, find_moves
from support.tolerances import divisor

CLIP = 4.0  # standard deviations of the data at which states are clipped in manipulation
STUCK_TRANSITIONS = 2  # times --transition_steps, within `STUCK_RADIUS`, after which the robot counts as stuck
SMALLEST_REACH = 1e-12  # of displacements, so that a displacement of 0 stays 0
LEAST_SHARE = 0.7  # of the progress that is due, at which the weight of a step is 0
PROGRESS_SLACK = 0.05  # of the displacement in a hop; jitter below it counts as staying
STUCK_RADIUS = 0.35  # in radii of the graph's nodes; about 0.7 m in OGBench's mazes
STUCK_NOISE = 0.5  # std without --stuck_noise, in half widths of the action range


def build_map(offline, config, data, seed=0, nodes=0):
    """Build an ObjectMap if the data have objects, else a StateGraph.

    Args:
        offline: OfflineAgent. config: OnlineConfig. data: TrajectoryDataset.
        nodes: number of nodes of the graph; 0: as many as cover the data.

    Raises:
        ValueError: if a flag does not fit the data.
    """
    mean, scale = offline.goal_feature_affine()
    if offline.has_objects:
        if nodes:
            raise ValueError('--nodes: not available for data with objects; leave it out')
        return ObjectMap.from_data(data, scale.diagonal(), seed)

    longest = int((data.ends - data.starts).max())
    if config.waypoint_steps > longest:
        raise ValueError(f'--waypoint_steps {config.waypoint_steps}: the longest trajectory of the '
                         f'data has {longest} steps; choose fewer')
    return StateGraph.from_data(data, mean, scale, config.waypoint_steps, nodes, seed)


def load_map(offline, saved):
    """Rebuild the map of an OfflineAgent from the map's `state_dict`.

    Raises:
        ValueError: if it is the map of other data.
    """
    kind = ObjectMap if offline.has_objects else StateGraph
    data_map = kind.from_state_dict(saved)
    if len(data_map.scale) != offline.observation_dim:
        raise ValueError(f'its map is of states of {len(data_map.scale)} dimensions, its networks are of '
                         f'{offline.observation_dim}')
    return data_map


def make_task(offline, config, data_map):
    """Choose the task of an OfflineAgent: Manipulation if its data have objects, else Locomotion or Staying.

    Args:
        offline: OfflineAgent. config: OnlineConfig. data_map: the result of `build_map`.

    Raises:
        ValueError: if a flag has no effect on the task.
    """
    if not offline.has_objects:
        return (Staying if config.stay == 'yes' else Locomotion)(offline, config, data_map)

    for name in ('direction_products', 'stuck_noise', 'waypoint_steps'):
        if getattr(config, name):
            raise ValueError(f'--{name}: not available for data with objects; leave it out')
    return Manipulation(offline, config, data_map)


class Training(NamedTuple):
    """How labeler and policy learn; all but the first without --initial_updates, --lr and --lr_decay_updates."""

    refit_growth: float  # of the environment steps since the last fit, from which the labeler is fitted again
    passes: int  # over the steps to imitate
    least_updates: int
    most_updates: int
    lr: float  # Adam's learning rate, at its highest
    decays: bool  # whether it falls over the updates


class Locomotion:
    """The robot goes to a position.

    Args:
        offline: OfflineAgent. config: OnlineConfig. graph: StateGraph of the data.

    Raises:
        ValueError: if --direction_products is given and there are no position dimensions.
    """

    small_action_prior = 0.0
    corrective_fraction = 0.0
    # fewer steps underfit (results/any_robot.md); a constant rate would need more
    training = Training(refit_growth=1.5, passes=16, least_updates=3000, most_updates=8000, lr=4e-3, decays=True)
    imitates_own_steps = False  # a robot that always moves learns enough from data that always move

    def __init__(self, offline, config, graph):
        # how to imitate and act
        self.encoder = offline.encoder
        self.action_scale = config.action_scale
        self.progress_steps = config.progress_steps
        # where nothing is slow, weights by progress would favour the robot that flies past over the one that stops
        self.weighs_progress = config.progress_steps > 0 and offline.has_places
        self.has_baseline = self.weighs_progress
        self.temperature = config.progress_temperature
        self.nearest = min(max(1, config.progress_steps), offline.config.transition_steps)
        self.farthest = offline.config.transition_steps
        self.stuck_noise = NoStuckNoise()
        if config.stuck_noise:
            positions = offline.position_dims()
            columns = positions if len(positions) else np.arange(offline.observation_dim)
            self.stuck_noise = StuckNoise(self.encoder, columns, STUCK_TRANSITIONS * self.farthest,
                                          STUCK_RADIUS * graph.radius, config.stuck_noise)

        # inputs of the policy and of the baseline
        self.reach = 0.0  # all displacements are unit directions
        self.direction_dims = offline.position_dims().tolist() if config.direction_products else []
        if config.direction_products and not self.direction_dims:
            raise ValueError('--direction_products: the offline run has no position dimensions '
                             '(--slow_goals); leave it out')
        dimensions = offline.observation_dim
        self.input_dim = (3 + len(self.direction_dims)) * dimensions
        self.baseline_dim = dimensions

    # -------------------------------------------------------------------------------- policy inputs
    def clip(self, states):
        """Return raw states (..., S) unchanged: the policy sees all of each state."""
        return states

    def inputs(self, states, subgoals, goals):
        """Return the policy's inputs beside f(s).

        Args:
            states: (..., S) raw.
            subgoals, goals: (..., S) goal features.

        Returns:
            List of tensors (..., n): the normalised state, the saturated displacements to subgoal and goal
            and, with --direction_products, each dimension of the state times each position
            dimension of the displacement to the subgoal. The products of a velocity in the world frame
            determine its parts along and across the direction.
        """
        here = self.encoder.goal_features(states)
        normalized = self.encoder.normalize(states)
        direction = saturate(subgoals - here, self.reach)
        inputs = [normalized, direction, saturate(goals - here, self.reach)]
        if self.direction_dims:
            products = normalized.unsqueeze(-1) * direction[..., self.direction_dims].unsqueeze(-2)
            inputs.append(products.flatten(-2))
        return inputs

    # ----------------------------------------------------------------------------- steps to imitate
    def sampler(self, dataset):
        """Return the subgoals of a trajectory dataset: StepsAhead."""
        return StepsAhead(dataset, self.nearest, self.farthest)

    def weights(self, batch, baseline):
        """Return imitation weights (n,), mean 1: exponential in progress minus `baseline` (n,).

        Relative to a state-dependent baseline, getting up after a fall is imitated although it
        makes no progress, and standing in a state from which other trajectories walk is not. HIQL's
        low-level policy uses the gain of V instead of progress (Park et al. 2023, eq. 6).
        """
        advantage = _standardize(self.progress(batch) - baseline)
        return imitation_weight(advantage, self.temperature)

    def progress(self, batch):
        """Return progress (n,): the distance along the subgoal direction after `progress_steps`.

        It is in standard deviations of the batch.
        """
        here = self.encoder.goal_features(batch.states)
        direction = F.normalize(self.encoder.goal_features(batch.subgoal_states) - here, dim=-1)
        progress = (direction * (self.encoder.goal_features(batch.progress_states) - here)).sum(-1)
        return progress / _deviation(progress)

    def baseline_inputs(self, batch):
        """Return the inputs of the baseline (n, baseline_dim): the normalised states."""
        return self.encoder.normalize(batch.states)


class Staying(Locomotion):
    """The robot goes to a position and stays there.

    The policy sees how near its subgoal and goal are, and imitates steps that make the progress that is due,
    at any speed. Weights by progress alone favour the robot that passes its goal at full speed.

    Args:
        offline: OfflineAgent. config: OnlineConfig. graph: StateGraph of the data.
    """

    # own steps come to the end; more passes overfit the 10,000 steps of FetchReach
    training = Training(refit_growth=1.5, passes=100, least_updates=1000, most_updates=14_000, lr=1e-3, decays=False)
    imitates_own_steps = True  # they have the small motions near a goal that data in motion lack

    def __init__(self, offline, config, graph):
        super().__init__(offline, config, graph)
        self.reach = graph.displacement(graph.hop)
        self.weighs_progress = config.progress_steps > 0
        self.has_baseline = False

    def weights(self, batch, baseline):
        """Return imitation weights (n,), mean 1: by the share that is made of the progress that is due.

        The weight is linear in the share, 0 at `LEAST_SHARE` and 1 at the whole, before the division by the mean.

        After `progress_steps` of n steps to the subgoal, progress_steps / n of the displacement is due. A robot that
        waits and leaves later makes less progress; one that brakes at its subgoal, or is there, makes enough.

        Args:
            batch: OnlineBatch. baseline: unused.
        """
        here = self.encoder.goal_features(batch.states)
        displacement = self.encoder.goal_features(batch.subgoal_states) - here
        moved = self.encoder.goal_features(batch.progress_states) - here

        # a little slack, so that jitter at the subgoal counts as staying
        slack = PROGRESS_SLACK * max(self.reach, SMALLEST_REACH)
        due = displacement.norm(dim=-1) * (self.progress_steps / batch.steps_to_subgoal.clamp(min=1)).clamp(max=1)
        progress = (F.normalize(displacement, dim=-1) * moved).sum(-1)
        share = (progress + slack) / (due + slack)
        weight = ((share - LEAST_SHARE) / (1 - LEAST_SHARE)).clamp(0, 1)
        return weight / weight.mean().clamp(min=SMALLEST_REACH)


class Manipulation:
    """The robot moves objects.

    Args:
        offline: OfflineAgent. config: OnlineConfig. object_map: ObjectMap of the data.
    """

    action_scale = 1.0
    # moves are a part of the data; FetchPush needs 2,000 updates
    training = Training(refit_growth=1.0, passes=150, least_updates=1000, most_updates=3000, lr=4e-3, decays=True)
    imitates_own_steps = False  # moves by chance end anywhere (results/any_robot.md)

    def __init__(self, offline, config, object_map):
        self.encoder = offline.encoder
        self.object_map = object_map
        self.object_masks = object_map.object_masks.to(offline.device)
        self.scale = offline.goal_feature_affine()[1].diagonal()
        self.progress_steps = config.progress_steps
        # with switches alone, weights by speed would favour presses that miss
        self.weighs_progress = config.progress_steps > 0 and object_map.has_movable
        self.has_baseline = self.weighs_progress
        self.temperature = config.progress_temperature
        self.small_action_prior = config.small_action_prior
        self.corrective_fraction = config.corrective_fraction
        self.stuck_noise = NoStuckNoise()
        self.input_dim = 3 * offline.observation_dim
        self.baseline_dim = 2 * offline.observation_dim

    # -------------------------------------------------------------------------------- policy inputs
    def clip(self, states):
        """Clip raw states (..., S) to `CLIP` standard deviations around the mean.

        Otherwise a small turn of a wrist that never turns in the data would dominate all inputs.
        """
        return self.encoder.denormalize(self.encoder.normalize(states).clamp(-CLIP, CLIP))

    def inputs(self, states, subgoals, goals):
        """Return the policy's inputs beside f(s).

        The goal is not an input, since the policy makes one move at a time.

        Args:
            states: (..., S) raw.
            subgoals, goals: (..., S) goal features.

        Returns:
            List of three tensors (..., S): the normalised state, the displacement to the subgoal,
            and the normalised state masked to the objects to be moved.
        """
        normalized = self.encoder.normalize(self.clip(states))
        displacement = subgoals - self.encoder.goal_features(states)
        return [normalized, displacement, self._mask_to_moved_objects(normalized, displacement)]

    def _mask_to_moved_objects(self, states, displacement):
        """Zero all dimensions of states (..., S) but those of objects to be moved.

        Without the mask, the policy would have to multiply displacement and state, which a small
        network hardly learns.

        Args:
            displacement: (..., S); an object with a nonzero displacement is to be moved.
        """
        masks = self.object_masks.to(states)
        is_moved = ((displacement.abs() > REST_TOL).to(states) @ masks) > 0
        return states * (is_moved.to(states) @ masks.T)

    # ----------------------------------------------------------------------------- steps to imitate
    def sampler(self, dataset):
        """Return the subgoals of a trajectory dataset: NextMove."""
        return NextMove(dataset, self.scale)

    def weights(self, batch, baseline):
        """Return imitation weights (n,), mean 1: exponential in progress minus `baseline` (n,).

        Moves that change a switch have weight 1.
        """
        weights = torch.ones_like(baseline)
        weighted = ~self._changes_switch(batch)
        advantage = (self.progress(batch) - baseline)[weighted]
        weights[weighted] = imitation_weight(_standardize(advantage), self.temperature)
        return weights

    def _changes_switch(self, batch):
        """Determine whether the next move of each row changes a switch: (n,) bool."""
        if not self.object_map.has_switches:
            return torch.zeros(len(batch.states), dtype=torch.bool, device=batch.states.device)
        before, after = (self.object_map.configurations(states.cpu().numpy())
                         for states in (batch.states, batch.subgoal_states))
        return torch.from_numpy((before != after).any(1)).to(batch.states.device)

    def progress(self, batch):
        """Return progress (n,): minus the steps to the end of the next move.

        It is in standard deviations of the batch.
        """
        return -batch.steps_to_subgoal / _deviation(batch.steps_to_subgoal)

    def baseline_inputs(self, batch):
        """Return the inputs of the baseline (n, baseline_dim): normalised states and next moves."""
        encoder = self.encoder
        move = encoder.goal_features(batch.subgoal_states) - encoder.goal_features(batch.states)
        return torch.cat([encoder.normalize(batch.states), move], -1)


def saturate(displacement, reach):
    """Shorten displacements (..., S) to length 1 beyond `reach`; within it, the length is relative to `reach`.

    The direction alone determines where to go, and the length within reach lets the robot stop there.
    """
    length = displacement.norm(dim=-1, keepdim=True)
    return displacement / length.clamp(min=max(reach, SMALLEST_REACH))


def _deviation(values):
    """Return the standard deviation of values (n,), or `IGNORED` if they are all the same."""
    return divisor(values.std(correction=min(1, len(values) - 1)), values.mean())


def _standardize(values):
    """Subtract the mean of values (n,) and divide by their standard deviation."""
    return (values - values.mean()) / _deviation(values)


# ----------------------------------------------------------------------------------------- subgoals
class StepsAhead:
    """Subgoals of locomotion: states `nearest` to `farthest` steps later in the trajectory.

    Args:
        dataset: TrajectoryDataset. nearest, farthest: steps; the end of the trajectory limits them.
    """

    def __init__(self, dataset, nearest, farthest):
        self.dataset = dataset
        self.nearest = nearest
        self.farthest = farthest

    def transition_rows(self, rows):
        """Return the rows (n,) at which a step to imitate begins: all of the given ones."""
        return rows

    def subgoal_rows(self, rows, rng):
        """Draw the row of a subgoal for each of the rows (n,)."""
        steps = rng.integers(self.nearest, self.farthest + 1, size=len(rows))
        return np.minimum(rows + steps, self.dataset.end_of[rows])


class NextMove:
    """Subgoals of manipulation: the state after the next move of an object.

    Args:
        dataset: TrajectoryDataset. scale: (S,) of the goal features, as in `find_moves`.
    """

    def __init__(self, dataset, scale):
        self.dataset = dataset
        self.next_rest = find_moves(dataset.observations, dataset.starts, dataset.ends, scale).next_rest

    def transition_rows(self, rows):
        """Select the rows (n,) that a move follows."""
        return rows[self.next_rest[rows] >= 0]

    def subgoal_rows(self, rows, rng):
        """Return the row after the next move for each of the rows (n,).

        If no move follows, it is the last row of the trajectory.
        """
        following = self.next_rest[rows]
        return np.where(following >= 0, following, self.dataset.end_of[rows])


# ------------------------------------------------------------------------------------- stuck robots
class StuckState(NamedTuple):
    """Memory of `StuckNoise` for B episodes."""

    positions: np.ndarray  # (B, P) centres of the balls; NaN before the first step
    steps: np.ndarray  # (B,) int, steps within the ball


class StuckNoise:
    """Add noise to the actions of robots that are stuck: for some steps in a ball, and not at the goal.

    The policy is deterministic, so a fallen robot that its action does not move repeats this
    action. The noise is seeded by the observation and the step, so that acting stays deterministic.

    Args:
        encoder: Encoder.
        columns: (P,) int, goal features that are positions.
        steps: steps in the ball after which a robot counts as stuck.
        radius: of the ball, in goal features.
        std: of the noise, in half widths of the action range; 0 disables it.
    """

    def __init__(self, encoder, columns, steps, radius, std):
        self.encoder = encoder
        self.columns = columns
        self.steps = steps
        self.radius = radius
        self.std = std

    def initial_state(self, batch_size):
        """Return the StuckState before the first step of `batch_size` episodes."""
        return StuckState(np.full((batch_size, len(self.columns)), np.nan), np.zeros(batch_size, int))

    def reset(self, state, rows):
        """Clear the state of the episodes where the bool array rows (B,) is true."""
        return StuckState(np.where(rows[:, None], np.nan, state.positions), np.where(rows, 0, state.steps))

    def _place(self, states):
        """Return the positions (B, P), numpy, of raw states (B, S)."""
        return self.encoder.goal_features(states)[:, self.columns].cpu().numpy()

    def step(self, actions, observations, states, goals, state):
        """Add noise to the actions of stuck robots.

        Args:
            actions: (B, A) numpy, in [-1, 1].
            observations: (B, S) numpy, raw.
            states: (B, S) tensor, raw state estimates.
            goals: (B, S) tensor, raw.
            state: StuckState.

        Returns:
            Actions (B, A), which may exceed [-1, 1], and the next StuckState.
        """
        # count the steps since the robot left the ball around its last place, or the goal
        here = self._place(states)
        stays = np.linalg.norm(here - state.positions, axis=1) <= self.radius
        arrived = np.linalg.norm(here - self._place(goals), axis=1) <= self.radius
        positions = np.where(stays[:, None], state.positions, here)
        steps = np.where(stays & ~arrived, state.steps + 1, 0)

        # one generator for each stuck row, seeded by its observation and its step
        noise = np.zeros_like(actions)
        for row in np.flatnonzero(steps >= self.steps):
            bits = np.asarray(observations[row], np.float32).view(np.uint32)
            rng = np.random.default_rng([steps[row], *bits])
            noise[row] = self.std * rng.standard_normal(actions.shape[1])
        return actions + noise, StuckState(positions, steps)


class NoStuckNoise:
    """Leave actions as they are, since a hand that moves objects may have to wait."""

    def initial_state(self, batch_size):
        """Return None: there is nothing to remember."""
        return None

    def reset(self, state, rows):
        """Return the state unchanged."""
        return state

    def step(self, actions, observations, states, goals, state):
        """Return the actions and the state unchanged."""
        return actions, state
