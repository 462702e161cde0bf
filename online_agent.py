"""OPSO's online half: learn a policy on top of the frozen encoder, while the agent acts.

    labeler           pi_1(s_t, s_{t+1}) -> a_t   one-step inverse dynamics, Gaussian processes
                                                  fitted to the agent's steps (labeling/labeler.py)
    inverse_dynamics  pi(f(s), s, z', z_g) -> a   the policy; imitates the labels of the data (BCO,
                                                  Torabi et al. 2018, made goal-conditioned); if the robot
                                                  must stay, own steps as well (GCSL, Ghosh et al. 2021)
    feature_decoder   l(z) -> goal features       decodes subgoals z' that are proposed
    baseline          b(s) -> progress            expected progress from a state

The agent chooses three objects when it is made: the state estimator (observing/), the planner
(planning/planners.py), which gives subgoals, and the task (tasks.py), which determines inputs and
weights of the policy.

Actions in this module lie in [-1, 1]; only `act` and `normalize_actions` convert to and from the
bounds of the environment's action space.
"""

import copy
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from labeling.labeler import Labeler
from labeling.online_batches import OnlineBatches
from model import InverseDynamics, mlp, soft_update
from observing.state_estimator import EncoderPrediction, LastObservation
from offline_agent import POSITION_WEIGHT, OfflineAgent
from planning.graph_planner import GraphPlanner
from planning.object_planner import ObjectPlanner
from planning.planners import FallbackPlanner, GoalBiased, ProposerPlanner
from support.contents import Number, check_layout
from support.flags import flag, make_config
from support.progress import warn
from tasks import load_map, make_task
from utils import load_optimizer, load_weights, normalize_actions, unnormalize_actions

LR = 1e-3  # without --lr, and without a schedule
WARMUP_UPDATES = 100  # over which the learning rate rises to --lr
LOWEST_RATE = 0.01  # of --lr, at the end of its schedule
AUXILIARY_PART = 4  # of the steps of a batch, one in so many trains decoder and baseline


@dataclasses.dataclass
class OnlineConfig:
    """policy, planner and updates of the online half"""

    batch_size: int = flag(8, 'batch size in windows: batch_size * context_length steps', least=1,
                           basic=True)
    idm_hidden_dim: int = flag(256, 'width of hidden layers of the policy (humanoid: 512)', least=1, most=8192)
    lr: float = flag(None, "Adam's highest learning rate; default: from the task", type=float, above=0,
                     from_data=True)
    lr_decay_updates: int = flag(
        None, 'updates over which it falls to 1/100; 0: constant; default: from task and budget', type=int, least=0,
        from_data=True)
    ema_rate: float = flag(0.002, 'rate of the moving averages that act; 1 disables averaging', above=0,
                           most=1)
    small_action_prior: float = flag(
        0.2, 'scale of a prior for small actions in manipulation labels; 0 disables it', least=0)
    direction_products: bool = flag(
        False, 'products of state and subgoal direction as policy inputs (humanoid)')
    corrective_fraction: float = flag(
        0.0, 'fraction of corrective transitions in manipulation batches (cubes: 0.5)', least=0, most=1)
    stay: str = flag(None, 'whether the robot must stay at its goal; default: if goal dimensions are declared',
                     type=str, choices=('yes', 'no'), basic=True, from_data=True)
    progress_steps: int = flag(
        5, 'steps over which progress toward a subgoal is measured; 0 disables weighting', least=0)
    progress_temperature: float = flag(
        2.0, 'inverse temperature of the imitation weights exp(temperature * progress)', least=0)
    estimator: str = flag(
        'encoder', "estimate of a dropped observation: the encoder's prediction or the last observation",
        choices=('encoder', 'last_observation'))
    action_scale: float = flag(
        0.85, 'factor on predicted actions in locomotion; below 1 is more cautious', above=0)
    stuck_noise: float = flag(
        None, 'std of action noise once the robot is stuck; default: 0.5, but 0 if it must stay', type=float, least=0,
        from_data=True)
    waypoint_steps: int = flag(
        0, 'spacing of waypoints in steps; 0: 0.6 * --transition_steps (humanoid: 60)', least=0)
    plan: bool = flag(True, "planning on the data; else the proposer's subgoals", basic=True)


class ActState(NamedTuple):
    """State of acting for B episodes; the agent does not look into its parts."""

    estimate: Any  # state of the estimator
    plan: Any  # state of the planner
    stuck: Any  # state of the task's stuck noise


class OnlineAgent:
    """An offline agent, whose encoder is frozen, and a policy.

    Args:
        offline: OfflineAgent; its target networks replace encoder and value.
        action_low, action_high: (A,) bounds of the environment's actions.
        config: OnlineConfig.
        data_map: the result of `build_map`.

    Attributes:
        nets: ModuleDict of inverse_dynamics, feature_decoder and baseline.
        ema_nets: their moving averages, which act.

    Raises:
        ValueError: if the bounds are not finite, or flags exclude each other.
    """

    def __init__(self, offline, action_low, action_high, config, data_map):
        self.offline = offline
        self.config = config
        self.device = offline.device
        self.data_map = data_map

        # actions
        self.action_low = np.asarray(action_low, np.float32)
        self.action_high = np.asarray(action_high, np.float32)
        self.action_dim = len(self.action_low)
        if self.action_low.shape != self.action_high.shape or self.action_low.ndim != 1:
            raise ValueError('the bounds of the action space must be two vectors of the same length')
        if (not np.isfinite([self.action_low, self.action_high]).all()
                or (self.action_low >= self.action_high).any()):
            raise ValueError('the action space needs finite bounds, low below high; it has '
                             f'{self.action_low} and {self.action_high}')
        if config.corrective_fraction and offline.has_dropout:
            raise ValueError('--corrective_fraction cannot be combined with --observe dropped:P: '
                             'perturbed states have no history; leave it out')

        # the targets replace the trained networks, since the proposer was trained on their latents
        for name, target in offline.targets.items():
            offline.nets[name].load_state_dict(target.state_dict())
        self.encoder = offline.encoder.requires_grad_(False)

        # the chosen parts and the networks
        self.task = make_task(offline, config, data_map)
        self.nets = self._make_nets()
        self.ema_nets = copy.deepcopy(self.nets).requires_grad_(False)
        self.estimator = self._make_estimator()
        self.planner = self._make_planner()
        self.labeler = Labeler(offline.observation_dim, self.action_dim)
        self.step = 0
        self.warned_of_goal = False

    @functools.cached_property
    def optimizer(self):
        """Return the Adam optimiser of `nets`, made when it is first used: with it, torch loads its compiler (3 s)."""
        return torch.optim.Adam(self.nets.parameters(), lr=self.config.lr or LR, fused=True)

    def _make_nets(self):
        """Return the trained networks, a ModuleDict in eval mode on the agent's device."""
        latent_dim = self.offline.config.d_model
        width = self.config.idm_hidden_dim
        return nn.ModuleDict({
            'inverse_dynamics': InverseDynamics(latent_dim + self.task.input_dim, self.action_dim,
                                                width),
            'feature_decoder': mlp([latent_dim, width, self.offline.observation_dim]),
            'baseline': mlp([self.task.baseline_dim, width, 1]),
        }).to(self.device).eval()

    def _make_estimator(self):
        """Return the StateEstimator: predictions of dropped observations, or observations as they are."""
        predicts = self.offline.has_dropout and self.config.estimator == 'encoder'
        return EncoderPrediction(self.offline) if predicts else LastObservation()

    def _make_planner(self):
        """Return the Planner: on the map, with the proposer as fallback, or the proposer alone."""
        proposer = ProposerPlanner(self.encoder, self.offline.nets['proposer'],
                                   self.ema_nets['feature_decoder'])
        if not self.config.plan:
            return proposer
        if self.offline.has_objects:
            planner = ObjectPlanner(self.data_map, self._goal_features)
        else:
            planner = GraphPlanner(self.data_map, self._goal_features, self.task.reach)
        return FallbackPlanner(planner, proposer)

    def _goal_features(self, states):
        """Return the goal features of raw states (..., S), a tensor on any device."""
        return self.encoder.goal_features(states.to(self.device))

    # --------------------------------------------------------------------------------------- goals
    def read_goal(self, goal):
        """Return an observed goal (S,) without NaN; warn once if it lies far outside the data.

        NaN means that a dimension does not matter. It takes the value of the nearest state of the map, by the
        other dimensions.

        Raises:
            ValueError: all dimensions are NaN.
        """
        known = self.data_map.known_states
        given = ~np.isnan(goal)
        if not given.any():
            raise ValueError('a goal is NaN in all observed dimensions; NaN means that a dimension does not '
                             'matter, and at least one must')
        if not given.all():
            std = self.encoder.std.cpu().numpy()[given]
            distances = np.square((known[:, given] - goal[given]) / std).sum(1)
            goal = np.where(given, goal, known[distances.argmin()])
        if not self.warned_of_goal and (outside := self._dimension_outside(goal, known)):
            self.warned_of_goal = True
            warn(f'warning: {outside}; the plan ends at the edge of the data')
        return goal

    def _dimension_outside(self, goal, known):
        """Return a text on a goal (S,) that is farther from states (K, S) than these are wide, else ''."""
        features, at_goal = (self._goal_features(torch.from_numpy(states)).cpu().numpy()
                             for states in (known, goal))
        low, high = features.min(0), features.max(0)
        is_position = self.encoder.goal_weights.cpu().numpy() > POSITION_WEIGHT
        outside = np.maximum(low - at_goal, at_goal - high) > high - low
        found = np.flatnonzero(outside & is_position & (high > low))
        if not len(found):
            return ''
        if not self.offline.has_axis_aligned_goals:
            return 'a goal lies far outside the data'
        first = found[0]
        return (f'a goal lies far outside the data: dimension {first} is {goal[first]:.4g}, the data have '
                f'{known[:, first].min():.4g} to {known[:, first].max():.4g}')

    # --------------------------------------------------------------------------------------- acting
    def initial_state(self, batch_size):
        """Return the ActState before the first step of `batch_size` episodes."""
        return ActState(
            estimate=self.estimator.initial_state(batch_size),
            plan=self.planner.initial_state(batch_size),
            stuck=self.task.stuck_noise.initial_state(batch_size),
        )

    def reset_state(self, state, rows):
        """Clear the state of the episodes where the bool array rows (B,) is true."""
        return ActState(
            estimate=self.estimator.reset(state.estimate, rows),
            plan=self.planner.reset(state.plan, rows),
            stuck=self.task.stuck_noise.reset(state.stuck, rows),
        )

    def explorer(self, epsilon, rng):
        """Return the agent's planner with goal-biased subgoals of probability `epsilon`.

        The state of the result is that of the planner. `rng` is a numpy Generator.
        """
        return GoalBiased(self.planner, self.encoder, self.ema_nets['feature_decoder'], epsilon, rng)

    @torch.no_grad()
    def act(self, observations, goals, state, noise=0.0, rng=None, planner=None):
        """Choose actions for B episodes; deterministic without `noise` and a random `planner`.

        Args:
            observations, goals: (B, S) numpy, raw.
            state: ActState.
            noise: std of the action noise, in half widths of the action range.
            rng: numpy Generator of the action noise; unused without noise.
            planner: a Planner that replaces the agent's, such as that of `explorer`.

        Returns:
            Actions (B, A), float32 numpy in the environment's action space, and the next ActState.

        Raises:
            ValueError: if an observation or a goal has another shape or is not finite.
        """
        self._check_states('observations', observations)
        self._check_states('goals', goals)
        raw_observations = observations
        observations = torch.as_tensor(observations, dtype=torch.float32, device=self.device)
        goals = torch.as_tensor(goals, dtype=torch.float32, device=self.device)

        # the present states: the observations themselves, or predictions if observations are dropped
        states, estimate = self.estimator.step(observations, state.estimate)

        # subgoals: the next node of a shortest path on the data's graph, or the goal within a hop of it;
        # after the next move, if there are objects; the proposer's, where there is no path
        subgoals, plan = (planner or self.planner).step(states, goals, state.plan)

        # the averaged policy reads f(s), the normalised state, and saturated displacements to subgoal and goal
        # (locomotion), or the displacements that are left (manipulation); locomotion scales its actions
        latents = self.encode_policy_states(states)
        inputs = self.task.inputs(states, subgoals.features, self.encoder.goal_features(goals))
        actions = self.task.action_scale * self.ema_nets['inverse_dynamics'](latents, *inputs)

        # manipulation only: one-step labels lead back to a start pose after a timeout
        actions = self._retreat(actions, states, subgoals.retreat).cpu().numpy()

        # noise of stuck robots (--stuck_noise) and of exploration
        actions, stuck = self.task.stuck_noise.step(actions, raw_observations, states, goals, state.stuck)
        if noise > 0:
            actions = actions + noise * rng.standard_normal(actions.shape)
        actions = unnormalize_actions(np.clip(actions, -1, 1), self.action_low, self.action_high)
        return actions, ActState(estimate, plan, stuck)

    def _check_states(self, name, states):
        """Raise ValueError that names what is wrong with an input (B, S) of `act`."""
        shape = np.shape(states)
        if len(shape) != 2 or shape[1] != self.offline.observation_dim:
            raise ValueError(f'act: `{name}` have the shape {shape}; it must be (B, '
                             f'{self.offline.observation_dim}), one row for each of B episodes')
        if not np.isfinite(states).all():
            row, dimension = np.argwhere(~np.isfinite(states))[0]
            raise ValueError(f'act: `{name}[{row}, {dimension}]` is {states[row][dimension]}; give finite '
                             'states, such as the last good reading')

    def encode_policy_states(self, states):
        """Encode raw states (n, S), clipped as the task does, to f(s) (n, D)."""
        return self.encoder.encode_state(self.task.clip(states))

    def _retreat(self, actions, states, targets):
        """Replace the actions of retreating rows by one-step labels, in place.

        The labeler clips its inputs to the steps that the agent has made, so that a retreat takes
        several steps.

        Args:
            actions: (B, A). states: (B, S) raw.
            targets: (B, S) raw states to return to; NaN rows: no retreat.
        """
        rows = ~targets.isnan().any(1)
        if rows.any() and self.labeler.is_fitted:
            actions[rows] = self.label(torch.stack([states, targets], 1)[rows])
        return actions

    # ------------------------------------------------------------------------------------- labeling
    def open_batches(self, data, replay):
        """Return OnlineBatches of a TrajectoryDataset and a ReplayBuffer of the agent's episodes."""
        return OnlineBatches(self, data, replay)

    def fit_labeler(self, batches, rng):
        """Fit the labeler to all online steps and label the data.

        Args:
            batches: OnlineBatches. rng: numpy Generator.

        Returns:
            R2 on held-out steps, None if there are too few.
        """
        steps, actions = batches.online_steps()
        position = {'position_dims': self.offline.position_dims()}
        if not self.offline.has_axis_aligned_goals:
            position = {'position_directions': self.offline.position_directions()}
        r2 = self.labeler.fit(self.encoder.normalize(steps), actions, rng,
                              small_action_prior=self.task.small_action_prior, **position)
        batches.label_data(self.label)
        return r2

    def label(self, steps):
        """Infer the actions (n, A), in [-1, 1], of raw pairs of successive states (n, 2, S)."""
        return self.labeler(self.encoder.normalize(steps)).to(self.device)

    def normalize_actions(self, actions):
        """Map actions (..., A) from the environment's bounds to [-1, 1], float32."""
        return normalize_actions(actions, self.action_low, self.action_high)

    # ----------------------------------------------------------------------------------- objectives
    def imitation_loss(self, batch):
        """Regress pi(f(s), s, z', z_g) on the labels, weighted by progress toward z'."""
        with torch.no_grad():
            subgoals = self.encoder.goal_features(batch.subgoal_states)
            goals = self.encoder.goal_features(batch.goal_states)
            weights = torch.ones(len(batch.states), device=self.device)
            if self.task.weighs_progress:
                baseline = self._baseline(batch, self.ema_nets) if self.task.has_baseline else None
                weights = self.task.weights(batch, baseline)

        inputs = self.task.inputs(batch.policy_states, subgoals, goals)
        predicted = self.nets['inverse_dynamics'](batch.state_latents, *inputs)
        error = (predicted - batch.actions).square().mean(-1)
        loss = (weights * error).mean()
        return loss, {'inverse_dynamics_loss': loss, 'inverse_dynamics_error': error.mean()}

    def _baseline(self, batch, nets):
        """Predict the expected progress (n,) of an OnlineBatch."""
        return nets['baseline'](self.task.baseline_inputs(batch)).squeeze(-1)

    def baseline_loss(self, batch):
        """Regress the baseline b on the progress of the trajectories: mean squared error."""
        with torch.no_grad():
            progress = self.task.progress(batch)
        loss = (self._baseline(batch, self.nets) - progress).square().mean()
        return loss, {'baseline_loss': loss}

    def feature_decoder_loss(self, batch):
        """Regress decoded latents z on the goal features of their states: mean squared error."""
        target = self.encoder.goal_features(batch.states)
        loss = (self.nets['feature_decoder'](batch.z) - target).square().mean()
        return loss, {'feature_decoder_loss': loss}

    def total_loss(self, batch):
        """Return the sum of the losses of policy, decoder and baseline, and their metrics."""
        # decoder and baseline learn faster than the policy, so that a part of the batch is enough
        part = batch.first(max(1, len(batch.states) // AUXILIARY_PART))
        results = [self.feature_decoder_loss(part), self.imitation_loss(batch)]
        if self.task.has_baseline:
            results.append(self.baseline_loss(part))

        total = sum(loss for loss, _ in results)
        info = {name: value for _, metrics in results for name, value in metrics.items()}
        return total, info | {'total_loss': total}

    def update(self, batch):
        """Take one gradient step on `total_loss`, move the averages; return the metrics as floats."""
        loss, info = self.total_loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        info['grad_norm'] = nn.utils.clip_grad_norm_(self.nets.parameters(),
                                                     self.offline.config.grad_clip)
        self.optimizer.param_groups[0]['lr'] = self._learning_rate()
        self.optimizer.step()

        soft_update(self.ema_nets, self.nets, self.config.ema_rate)
        self.step += 1
        return {name: value.item() for name, value in info.items()}

    def _learning_rate(self):
        """Return the learning rate of this update: constant, or a warm-up and a cosine over --lr_decay_updates.

        The schedule allows a higher rate and fewer updates (Loshchilov and Hutter 2017).
        """
        rate = self.config.lr or LR
        updates = self.config.lr_decay_updates
        if not updates:
            return rate
        warm = min(1.0, (self.step + 1) / WARMUP_UPDATES)
        falling = 0.5 + 0.5 * math.cos(math.pi * min(1.0, self.step / updates))
        return rate * warm * max(LOWEST_RATE, falling)

    # ---------------------------------------------------------------------------------- checkpoints
    def state_dict(self):
        """Return tensors and builtins from which `from_state_dict` rebuilds this agent exactly."""
        return {
            'offline': self.offline.state_dict() | {'optimizer': None},
            'action_low': self.action_low.tolist(),
            'action_high': self.action_high.tolist(),
            'config': dataclasses.asdict(self.config),
            'step': self.step,
            'nets': self.nets.state_dict(),
            'ema_nets': self.ema_nets.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'map': self.data_map.state_dict(),
            'labeler': self.labeler.state_dict(),
        }

    def load_state_dict(self, state):
        """Load what `state_dict` returned, except for the map, which the constructor takes.

        Raises:
            ValueError: if sizes differ; the message names them.
        """
        self.offline.load_state_dict(state['offline'])
        load_weights(self.nets, state['nets'])
        load_weights(self.ema_nets, state['ema_nets'])
        self.labeler.load_state_dict(state['labeler'])
        if state['optimizer'] is not None:
            load_optimizer(self.optimizer, state['optimizer'])
        self.step = state['step']

    @classmethod
    def from_state_dict(cls, state, device='cpu', backend='torch'):
        """Rebuild the agent of a `state_dict` on a device.

        Raises:
            ValueError: if `state` is not one of this code.
        """
        check_layout(state, {'step': Number(int, least=0)})
        config = make_config(OnlineConfig, state['config'])
        offline = OfflineAgent.from_state_dict(state['offline'], device, backend)
        data_map = load_map(offline, state['map'])
        agent = cls(offline, state['action_low'], state['action_high'], config, data_map)
        agent.load_state_dict(state)
        return agent
