"""OPSO's second half: turn the frozen encoder and the proposer into a policy that learns actions while it acts. An
update trains small heads only: inverse dynamics, a feature_decoder and, on request, Q, V and the proposer further on.

    labeler             I_1(s_t, s_{t+1}) -> a_t       physics, learned from the agent's own transitions; no network,
                                                       and no part of an update (labeling/labeler.py)
    inverse_dynamics    I(z, z', z_g) -> a             what acts; trained on offline states with the labeler's actions
                                                       (BCO, Torabi et al. 2018, made goal-conditioned) and, with
                                                       online_share, on the agent's own transitions
    feature_decoder             l(z) -> place                  where a latent lies; so that I can read a z' that is no state
    baseline            b(s) -> progress               how far trajectories usually come from here in a few steps;
                                                       what goes beyond it is imitated

I reads z' and z_g as directions: the unit vectors from the place of the state to theirs. A place is a state as the slow
encoder sees it (`Encoder.place`). Beside f(s_t) it reads s_t itself, so that acting does not wait for an encoder
that tells every joint.
Where the robot moves things (planning/things.py), I reads how far each is to be moved instead.

Actions in here lie in [-1, 1]; only `act` and `scale_to_unit` know the bounds of the environment's action space.
"""

import contextlib
import copy
import dataclasses
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from labeling.labeler import Labeler
from model import EncoderState, InverseDynamics, mlp
from observing.state_estimator import EncoderPrediction, EstimatorState, LastReading
from offline_agent import OfflineAgent, at_positions, imitation_weight
from online_batches import LatentStore, OnlineBatches
from planning.graph_planner import GraphPlanState, StateMap
from planning.objects import STILL, Carrying, ThingsMap
from support.flags import flag, make_config
from support.kernels import small_products
from utils import load_weights, normalize_actions, soft_update, unnormalize_actions

RETIRED = 'labeler_context', 'labeler_places', 'labeler_dropout'  # flags of the labeler that was a network
POSITION_WEIGHT = 0.5  # a number slower than this, the slowest being 1, says where something is
LOWEST_RATE = 0.01  # of the first one, to which a learning rate falls
BOUND = 4.0  # standard deviations of the data beyond which I sees no difference, where there are things
STUCK_STEPS = 25  # who has stayed in his place for so long rests
STUCK_RADIUS = 0.1  # of that of the map's nodes, how wide a place is; in the mazes about 0.2 m


@dataclasses.dataclass
class OnlineConfig:
    """inverse dynamics and updates of the online half"""
    batch_size: int = flag(8, 'windows\' worth of transitions per update: batch_size * context_length transitions '
                              '(8 * 100 = 800), drawn one by one from the data, or with --memory as windows', least=1)
    idm_hidden_dim: int = flag(256, 'width of the hidden layers of the inverse dynamics', least=1)
    lr: float = flag(1e-3, "Adam's learning rate for the inverse dynamics and the feature_decoder; Q, V and the proposer "
                           'keep the offline one', above=0)
    lr_decay_updates: int = flag(0, 'all learning rates fall to a hundredth over the second half of so many updates; '
                                    '0: they stay', least=0)
    ema_rate: float = flag(0.002, 'EMA rate of the averaged networks, by which the agent acts; 1 '
                                     'disables averaging', above=0, most=1)
    memory: bool = flag(False, 'I sees f of the last context_length states, by an encoder of its own that begins as '
                               'the offline one; Q, V and the proposer see single states either way')
    memory_lr: float = flag(3e-4, 'learning rate of that encoder', above=0)
    labeler_updates: int = flag(100, "steps on the labeler's kernel in each round", least=0)
    small_action_prior: float = flag(0.2, 'where there are things, labels believe that a demonstrator does less than random '
                                     'steps do: own steps count by 1 / (1 + (action / this)^2), so that of actions '
                                     'that do the same the smaller one is named; 0: all count alike', least=0)
    direction_products: bool = flag(False, "I sees each number of the state times each of the direction of z' as well: "
                                         'velocities along and across it, which a robot whose state does not tell '
                                         'where it faces turns by (a humanoid)')
    point_out: bool = flag(True, 'where there are things, I sees the one that is to be moved apart from the others')
    corrective_fraction: float = flag(0.0, 'where there are things, so much of what I learns from begins in a state beside '
                                      'the data, as own steps displaced the robot, with the way back (labeling/corrective.py)',
                                 least=0, most=1)
    value_interval: int = flag(0, 'train Q, V and the proposer in one of so many updates; 0 leaves them as they are',
                               least=0)
    online_share: float = flag(0.0, "share of the agent's own transitions in what I learns from, and Q, V and the "
                                    'proposer if they do (the labeler learns from nothing else)', least=0, most=1)
    progress_steps: int = flag(5, "weight I's pairs by how far the trajectory came toward z' in so many steps; 0: all "
                                  "alike. It is also the nearest z' of a pair", least=0)
    progress_temperature: float = flag(2.0, "a pair's weight: min(exp(temperature * progress), 100), progress beyond "
                                            'what is usual from its state, in standard deviations', least=0)
    remember_lost: bool = flag(True, 'where readings get lost (--observe dropped:P), act on what the encoder of '
                                     'sequences expects in their place; else on the last one that received')
    action_scale: float = flag(0.85, 'acting does so much of what I infers, where I sees directions (not where things '
                                     'are moved); below 1 it walks more carefully than the data, and falls less',
                               above=0)
    stuck_noise: float = flag(0.0, f'noise on the actions of who has not left his place for {STUCK_STEPS} steps, its '
                                  'standard deviation in half widths of their range. Without, a robot that lies still '
                                  'does the same in the same state for ever (a humanoid: 1)', least=0)
    hop: int = flag(0, 'steps along an edge of the map, which is how far ahead the agent looks; 0: 0.6 of '
                       '--transition_steps (15 of 25). The direction to what is near swings with a robot that sways as '
                       'it walks (a humanoid: 60)', least=0)
    plan: bool = flag(True, "z' is the next node of a shortest path on the map of the data (planning/planner.py), and the "
                            "proposer's only where no path leads")


class StuckCounter(NamedTuple):
    """Where B episodes are, and for how many steps they have been there."""

    places: np.ndarray  # (B, S), nan where an episode begins
    steps: np.ndarray  # (B,) int

    def forget(self, rows):
        """rows (B,) bool -> the StuckCounter in which these episodes begin."""
        return StuckCounter(np.where(rows[:, None], np.nan, self.places), np.where(rows, 0, self.steps))

    def step(self, places, radius):
        """places (B, S) a step later -> StuckCounter; who is further than `radius` from his place has a new one."""
        stays = np.linalg.norm(places - self.places, axis=1) <= radius
        return StuckCounter(np.where(stays[:, None], self.places, places), np.where(stays, self.steps + 1, 0))


class ActState(NamedTuple):
    """What acting carries from step to step: the encoder's memory and the goals, encoded once."""

    encoder: EncoderState
    belief: EstimatorState | None  # where readings get lost
    goals: torch.Tensor  # (B, S) raw
    z_goal: torch.Tensor  # (B, D)
    goal_places: torch.Tensor  # (B, S)
    routes: np.ndarray | list | None  # ways to the goals on the map (`routes` of it); None without a plan
    pursuit: GraphPlanState | Carrying | None  # what is headed for on it; None without a plan
    biased: np.ndarray  # (B,) bool: was the last z' the goal-biased one?
    rest: StuckCounter  # as it began, without stuck_noise


class OnlineAgent:
    """An offline agent with a frozen encoder, plus inverse dynamics. `act` is deterministic unless asked.

    labeler: a Labeler. trained: inverse_dynamics, feature_decoder, baseline. values: critic, value, proposer, trained only with
    `value_interval`. acting: moving averages of the trained networks and the proposer. action_low, action_high: bounds
    (A,) of the actions. state_map: the StateMap or ThingsMap on which it plans, None until `build_map`.
    """

    def __init__(self, offline, action_low, action_high, config):
        self.offline = offline
        self.config = config
        self.device = offline.device

        self.action_low = np.asarray(action_low, np.float32)
        self.action_high = np.asarray(action_high, np.float32)
        self.action_dim = len(self.action_low)
        if not np.isfinite([self.action_low, self.action_high]).all() or (self.action_low >= self.action_high).any():
            raise ValueError(f'the action space needs finite bounds, low below high; it has {self.action_low} and '
                             f'{self.action_high}')

        if config.memory and offline.has_dropout:
            raise ValueError('--memory: where readings get lost, the encoder of sequences remembers for all that acts '
                             '(--remember_lost); leave --memory out')

        if config.corrective_fraction and (config.memory or offline.has_dropout):
            raise ValueError('--corrective_fraction: whoever remembers has not been where he strayed to; leave it out, or '
                             '--memory and --observe dropped:P')

        # the averaged networks are the better ones, and the proposer was trained on their latents
        for name, target in offline.targets.items():
            offline.nets[name].load_state_dict(target.state_dict())

        if config.direction_products and offline.moves_things:
            raise ValueError('--direction_products: where things are moved, I sees how far and no direction; leave it '
                             'out')
        if config.stuck_noise and offline.moves_things:
            raise ValueError('--stuck_noise: where things are moved, a hand may wait; leave it out')
        if config.hop and offline.moves_things:
            raise ValueError('--waypoint_steps: where things are moved, an edge of the map is a move, however long it takes; '
                             'leave it out')
        self.direction_dims = self.position_dims().tolist() if config.direction_products else []
        if config.direction_products and not self.direction_dims:
            raise ValueError("--direction_products: the offline run knows no place that z' is a direction from "
                             '(--slow_goals); leave it out')

        d = offline.config.d_model
        h = config.idm_hidden_dim
        input_dim = d + (3 + len(self.direction_dims)) * offline.observation_dim
        self.trained = nn.ModuleDict({
            'inverse_dynamics': InverseDynamics(input_dim, self.action_dim, h),
            'feature_decoder': mlp([d, h, offline.observation_dim]),
            'baseline': mlp([(1 + offline.moves_things) * offline.observation_dim, h, 1]),
        }).to(self.device).eval()
        if config.memory:
            self.trained['memory'] = copy.deepcopy(offline.encoder).requires_grad_(True)
        self.values = nn.ModuleDict({name: offline.nets[name] for name in ('critic', 'value', 'proposer')})
        acting = nn.ModuleDict({**self.trained, 'proposer': self.values['proposer']})
        self.acting = copy.deepcopy(acting).requires_grad_(False)
        self.encoder = offline.encoder.requires_grad_(False)
        self.estimator = None
        if offline.has_dropout:
            self.estimator = EncoderPrediction(offline) if config.remember_lost else LastReading()

        heads = [p for name, net in self.trained.items() if name != 'memory' for p in net.parameters()]
        groups = [
            {'params': heads, 'lr': config.lr},
            {'params': self.values.parameters(), 'lr': offline.config.lr},
        ]
        if config.memory:
            groups.append({'params': self.trained['memory'].parameters(), 'lr': config.memory_lr})
        self.optimizer = torch.optim.Adam(groups, fused=True)
        self.rates = [group['lr'] for group in groups]  # before any decay
        self.labeler = Labeler(offline.observation_dim, self.action_dim)
        self.state_map = None
        self.step = 0

    def build_map(self, data, seed=0, nodes=0):
        """Make the map of a `TrajectoryDataset`, seen as the encoder sees places, and plan on it: a ThingsMap where
        there are things to be moved, else a StateMap of so many nodes (0: as many as it chooses)."""
        mean, scale = self.offline.goal_feature_affine()
        if self.moves_things:
            if nodes:
                raise ValueError('--nodes: where things are moved, the data alone say how many nodes there are; leave '
                                 'it out')
            self.state_map = ThingsMap.from_data(data, scale, seed)
            return

        hop = self.config.hop
        longest = int((data.ends - data.starts).max())
        if hop > longest:
            raise ValueError(f'--waypoint_steps {hop}: the longest trajectory of the data has {longest} steps; choose fewer')
        self.state_map = StateMap.from_data(data, mean, scale, hop, nodes, seed)

    @property
    def moves_things(self):
        """Are places those of things that rest until they are moved?"""
        return self.offline.moves_things

    @property
    def weighs_progress(self):
        """Is there progress to weigh imitation by? Switches alone need none: who presses a button in haste misses it.
        What is put down is another matter, see `usual_progress`."""
        return not self.moves_things or bool(self.state_map.loose)

    def bounded(self, states):
        """What I sees of states (..., S) raw. Where there are things, none of their numbers lies further than `BOUND`
        from the data's mean: of a wrist that nobody in the data ever turned, a little turn would be all that it
        sees."""
        if not self.moves_things:
            return states
        return self.encoder.mean + self.encoder.normalize(states).clamp(-BOUND, BOUND) * self.encoder.std

    def position_dims(self):
        """-> int array, the numbers of a state that say where the robot, or a thing, is, the slowest first; empty where
        nothing is known to be slow."""
        if not self.offline.config.slow_goals:
            return np.zeros(0, int)
        slowness = self.offline.encoder.slowness.cpu().numpy()
        order = np.argsort(-slowness, kind='stable')
        return order[slowness[order] > POSITION_WEIGHT]

    def fit_labeler(self, batches, rng):
        """Let the labeler learn from all own steps of `OnlineBatches`, and label the data anew; draws from the numpy
        Generator `rng` -> R2 of held-out own steps."""
        steps, actions = batches.own_steps()
        r2 = self.labeler.fit(self.encoder.normalize(steps), actions, rng, self.config.labeler_updates,
                              places=self.position_dims(),
                              small_action_prior=self.config.small_action_prior if self.moves_things else 0.0)
        batches.label_data(self.label)
        return r2

    @property
    def plans(self):
        """Does acting follow the map?"""
        return self.config.plan and self.state_map is not None

    def open_batches(self, data, replay):
        """-> OnlineBatches of the offline data and the agent's own episodes (a ReplayBuffer)."""
        config = self.config
        return OnlineBatches(
            self.latent_store(data),
            # few of its rows are ever read, so that their latents are computed when they are
            self.latent_store(replay, cached=False),
            size=config.batch_size * self.offline.config.context_length,
            action_dim=self.action_dim,
            online_share=config.online_share,
            progress_steps=config.progress_steps if self.weighs_progress else 0,
            window=self.offline.config.context_length if config.memory else 0,
            corrective_fraction=config.corrective_fraction if self.moves_things else 0.0,
            embed=self.offline.targets['value'].embed if config.value_interval else None,
        )

    def latent_store(self, dataset, cached=None):
        """-> LatentStore of a dataset, with this agent's encoder."""
        things_scale = self.offline.goal_feature_affine()[1] if self.moves_things else None
        # what is remembered, or estimated of a lost reading, is not told by the state alone
        tells_all = not (self.config.memory or self.estimator)
        return LatentStore(dataset, self.encoder, cached, things_scale, self.estimator,
                           encode_state=self.encode_seen if tells_all else None)

    def encode_seen(self, states):
        """Raw states (n, S) -> f(s) (n, D), of what I sees of them."""
        return self.encoder.encode_state(self.bounded(states))

    # ------------------------------------------------------------------------------------------------ acting
    def initial_state(self, batch_size):
        goals = torch.zeros(batch_size, self.offline.observation_dim, device=self.device)
        return ActState(
            encoder=self.encoder.initial_state(batch_size),
            belief=self.estimator.initial_state(batch_size) if self.estimator else None,
            goals=goals,
            z_goal=self.encoder.encode_features(goals),
            goal_places=self.encoder.place(goals),
            routes=None,
            pursuit=self.state_map.no_pursuit(batch_size) if self.plans else None,
            biased=np.zeros(batch_size, bool),
            rest=StuckCounter(np.full(goals.shape, np.nan), np.zeros(batch_size, int)),
        )

    def reset_state(self, state, rows):
        """Forget the episodes of the rows where the bool array `rows` (B,) is true."""
        pursuit = state.pursuit.forget(rows) if self.plans else None
        rest = state.rest.forget(rows)
        rows = torch.as_tensor(rows, device=self.device)
        belief = self.estimator.reset(state.belief, rows) if self.estimator else None
        return state._replace(encoder=state.encoder.reset(rows), belief=belief, pursuit=pursuit, rest=rest)

    def propose(self, z, z_goal, epsilon=0.0, rng=None):
        """-> (z' (B, D), biased (B,) bool): the proposer's z', or with probability `epsilon` the goal-biased
        z + alpha (z_g - z), alpha ~ U(0.2, 1)."""
        z_next = self.acting['proposer'](z, z_goal)
        biased = np.zeros(len(z), bool)

        if epsilon > 0:
            alpha = torch.as_tensor(rng.uniform(0.2, 1.0, (len(z), 1)), dtype=z.dtype, device=z.device)
            biased = rng.random(len(z)) < epsilon
            mask = torch.as_tensor(biased, device=z.device).unsqueeze(-1)
            z_next = torch.where(mask, z + alpha * (z_goal - z), z_next)
        return z_next, biased

    @torch.no_grad()
    def act(self, observations, goals, state, epsilon=0.0, noise=0.0, rng=None):
        """observations, goals (B, S) numpy, raw; -> (actions (B, A) float32 numpy in the environment's action space,
        new state).

        One recurrent step, whatever the context. `epsilon`: share of goal-biased proposals; `noise`: standard
        deviation added to the action, in half widths of its range; both draw from the numpy Generator `rng`.
        """
        raw_observations, raw_goals = observations, goals
        observations = torch.as_tensor(observations, dtype=torch.float32, device=self.device)
        goals = torch.as_tensor(goals, dtype=torch.float32, device=self.device)
        is_new = (goals != state.goals).any(1)
        if is_new.any():
            state = state._replace(
                goals=goals.clone(),
                z_goal=self.encoder.encode_features(goals),
                goal_places=self.encoder.place(goals),
                routes=self.state_map.routes(raw_goals) if self.plans else None,
                pursuit=state.pursuit.forget(is_new.cpu().numpy()) if self.plans else None,
            )

        with small_products() if len(observations) <= 32 else contextlib.nullcontext():
            belief = state.belief
            if self.estimator:
                observations, belief = self.estimator.step(observations, belief)

            planned = np.zeros(len(observations), bool)
            pursuit = state.pursuit
            if state.routes is not None:
                waypoints, planned, pursuit = self.state_map.waypoints(observations.cpu().numpy(), raw_goals,
                                                                       state.routes, pursuit)
                waypoints = torch.as_tensor(waypoints, dtype=torch.float32, device=self.device)

            memory = state.encoder
            if self.config.memory:
                full, memory = self.acting['memory'].step(self.bounded(observations), memory)
            else:
                full = self.encode_seen(observations)

            biased = np.zeros(len(observations), bool)
            targets = state.goal_places
            if epsilon > 0 or not planned.all():  # a plan alone needs no proposals
                z_next, biased = self.propose(self.encoder.encode_features(observations), state.z_goal, epsilon, rng)
                targets = self.acting['feature_decoder'](z_next)
            follows = planned & ~biased
            if follows.any():
                rows = torch.as_tensor(follows, device=self.device).unsqueeze(-1)
                targets = torch.where(rows, self.encoder.place(waypoints), targets)
            actions = self.infer_action(full, observations, targets, state.goal_places)
            if self.moves_things and planned.any():
                actions = self._go_back(actions, observations, waypoints, pursuit.return_left > 0)
            actions = actions.cpu().numpy()

        # who is told a direction may walk more slowly; how far a thing is to be moved is told in full
        if not self.moves_things:
            actions = self.config.action_scale * actions
        rest = state.rest
        if self.config.stuck_noise and self.state_map is not None:
            places = self.encoder.place(observations).cpu().numpy()
            rest = rest.step(places, STUCK_RADIUS * self.state_map.radius)
            actions = self._add_stuck_noise(actions, raw_observations, rest.steps)
        if noise > 0:
            actions = actions + noise * rng.standard_normal(actions.shape)
        actions = self._scale_from_unit(np.clip(actions, -1, 1))
        return actions, state._replace(encoder=memory, belief=belief, pursuit=pursuit, biased=biased, rest=rest)

    def _add_stuck_noise(self, actions, observations, resting):
        """Actions (B, A) -> with noise for who has been `resting` (B,) for long: I tells the same state the same
        action, and where that moves nothing it would be so for ever. The state and the step draw it, so that acting
        stays deterministic."""
        noise = np.zeros_like(actions)
        for row in np.flatnonzero(resting >= STUCK_STEPS):
            bits = np.asarray(observations[row], np.float32).view(np.uint32)
            rng = np.random.default_rng([resting[row], *bits])
            noise[row] = self.config.stuck_noise * rng.standard_normal(self.action_dim)
        return actions + noise

    def _go_back(self, actions, observations, waypoints, returning):
        """Where a robot is `returning` (B,) to begin anew, the action is the labeler's, toward the posture of the
        waypoint: it takes no number for more than own steps have changed it at once, and so leads there in steps."""
        if returning.any() and self.labeler.is_fitted:
            rows = torch.as_tensor(returning, device=self.device)
            actions[rows] = self.label(torch.stack([observations, waypoints], 1)[rows])
        return actions

    def _scale_from_unit(self, actions):
        """Actions (..., A) in [-1, 1] -> the same in the environment's bounds, float32."""
        scaled = unnormalize_actions(actions, self.action_low, self.action_high)
        return np.clip(scaled, self.action_low, self.action_high)  # rounding must not leave the space

    def scale_to_unit(self, actions):
        """Actions (..., A) in the environment's bounds -> the same in [-1, 1], as a replay keeps them, float32."""
        return normalize_actions(actions, self.action_low, self.action_high)

    # -------------------------------------------------------------------------------------------- objectives
    def infer_action(self, full, states, targets, goals, networks=None):
        """I(z, z', z_g) -> action (..., A), unbounded. full (..., D): f(s_t), or what the encoder remembers of it;
        states (..., S): s_t, raw; targets, goals (..., S): the places of z' and z_g, of which I sees the direction. Of
        things it sees how far they are to be moved, and of the goal no more than the next move.
        `networks`: whose I, default `acting`."""
        place = self.encoder.place(states)
        seen = self.encoder.normalize(self.bounded(states))
        if self.moves_things:
            direction = targets - place
            directions = direction, self.mask_to_moved_object(seen, direction)
        else:
            directions = F.normalize(targets - place, dim=-1), F.normalize(goals - place, dim=-1)
        if self.config.direction_products:
            directions = (*directions, self.multiply_by_direction(seen, directions[0]))
        return (networks or self.acting)['inverse_dynamics'](full, seen, *directions)

    def multiply_by_direction(self, seen, direction):
        """seen (..., S): states as I sees them; direction (..., S): the direction of z' -> (..., S * P), products of
        each number of the one with each of the P of the other that say where a robot is. Of a velocity in the world
        they tell how much of it leads to z', and how much past it."""
        direction = direction[..., self.direction_dims]
        return (seen.unsqueeze(-1) * direction.unsqueeze(-2)).flatten(-2)

    def mask_to_moved_object(self, seen, direction):
        """seen (..., S): states as I sees them; direction (..., S): how far things are to be moved -> seen (..., S), but
        zero for all that is not of a thing that is to be moved. Else I would have to read from the direction where to
        look for the place of the cube: a product, which a small network hardly learns."""
        if not self.config.point_out or self.state_map is None:
            return torch.zeros_like(seen)
        members = self.state_map.members.to(seen)
        is_moved = ((direction.abs() > STILL).to(seen) @ members) > 0
        return seen * (is_moved.to(seen) @ members.T)

    def label(self, steps):
        """I_1(s_t, s_{t+1}) -> the action between the two states of raw pairs (n, 2, S), (n, A) in [-1, 1]."""
        return self.labeler(self.encoder.normalize(steps)).to(self.device)

    def imitation_loss(self, batch):
        """Regress I(z_t, z', z_g) on a_t, z' a later state of the trajectory, weighted by the progress toward it; a_t
        is real in the agent's own rows and the labeler's in offline rows, unless these have true actions."""
        with torch.no_grad():
            targets = self.encoder.place(batch.subgoal_states)
            goals = self.encoder.place(batch.goal_states)
            weights = self.imitation_weights(batch)

        full = self.remember(batch)
        inferred = self.infer_action(full, batch.policy_states, targets, goals, self.trained)
        error = (inferred - batch.actions).square().mean(-1)
        loss = (weights * error).mean()
        return loss, {'inverse_dynamics_loss': loss, 'inverse_dynamics_error': error.mean()}

    def remember(self, batch):
        """What I reads of the states of an OnlineBatch: f(s_t) (n, D), or f(s_<=t) with memory, which learns."""
        if batch.full is not None:
            return batch.full
        if not self.config.memory:
            with torch.no_grad():
                return self.encode_seen(batch.policy_states)
        return at_positions(self.trained['memory'](self.bounded(batch.windows)), batch.positions).flatten(0, 1)

    def imitation_weights(self, batch):
        """-> (n,), mean 1: exponential in how far the trajectory came toward z' beyond what is usual from its state
        (HIQL's low-level policy, Park et al. 2023, eq. 6, has V's gain there). All alike without `progress_steps`.

        Beyond what is usual: who lies on the ground comes nowhere whatever he does, and shall get up all the same; who
        waits where others walk on shall not be imitated. Whoever switches something is imitated like all others: who
        presses a button in haste misses it.
        """
        weights = torch.ones(len(batch.states), device=self.device)
        if not batch.shows_progress:
            return weights

        advantage = self.progress(batch) - self.usual_progress(batch, self.acting)
        weighed = slice(None)
        if self.moves_things and self.state_map.switches:
            weighed = ~self.switches(batch)

        advantage = advantage[weighed]
        advantage = (advantage - advantage.mean()) / _deviation(advantage)
        weights[weighed] = imitation_weight(advantage, self.config.progress_temperature)
        return weights

    def switches(self, batch):
        """-> (n,) bool: does the next move of these trajectories switch something?"""
        before, after = (self.state_map.configurations(states.cpu().numpy())
                         for states in (batch.states, batch.subgoal_states))
        return torch.from_numpy((before != after).any(1)).to(self.device)

    def progress(self, batch):
        """How far the trajectories came toward z' in `progress_steps`, or how soon the next move was done -> (n,), in
        standard deviations of the batch."""
        if batch.steps_to_subgoal is not None:
            return -batch.steps_to_subgoal / _deviation(batch.steps_to_subgoal)

        here = self.encoder.place(batch.states)
        direction = F.normalize(self.encoder.place(batch.subgoal_states) - here, dim=-1)
        progress = (direction * (self.encoder.place(batch.progress_states) - here)).sum(-1)
        return progress / _deviation(progress)

    def usual_progress(self, batch, networks):
        """b(s) -> (n,). Where there are things b sees what shall be moved as well: who has just put down a cube needs
        longer for the next move than who is about to, and it is no fault of his."""
        seen = self.encoder.normalize(batch.states)
        if self.moves_things:
            move = self.encoder.place(batch.subgoal_states) - self.encoder.place(batch.states)
            seen = torch.cat([seen, move], -1)
        return networks['baseline'](seen).squeeze(-1)

    def baseline_loss(self, batch):
        """How far trajectories usually come from a state: mean squared error of the progress."""
        with torch.no_grad():
            progress = self.progress(batch)
        loss = (self.usual_progress(batch, self.trained) - progress).square().mean()
        return loss, {'baseline_loss': loss}

    def feature_decoder_loss(self, batch):
        """Where the latents of states lie: mean squared error of their places."""
        loss = (self.trained['feature_decoder'](batch.z) - self.encoder.place(batch.states)).square().mean()
        return loss, {'feature_decoder_loss': loss}

    def total_loss(self, batch, train_values=False):
        """-> (loss, info): inverse dynamics, the feature_decoder and, with `train_values`, Q, V and the proposer."""
        results = [self.feature_decoder_loss(batch), self.imitation_loss(batch)]
        if batch.shows_progress:
            results.append(self.baseline_loss(batch))
        if train_values:
            results.append(self.offline.proposer_loss(batch.latents, batch))
            results.append(self.offline.critic_loss(batch.latents, batch))
            results.append(self.offline.value_loss(batch.latents, batch))

        total = sum(loss for loss, _ in results)
        info = {name: value for _, numbers in results for name, value in numbers.items()}
        return total, info | {'total_loss': total}

    def update(self, batch):
        """One gradient step on `total_loss` and one of the moving averages -> info. Q, V and the proposer are part of
        one update in `value_interval`."""
        interval = self.config.value_interval
        train_values = interval > 0 and self.step % interval == 0

        loss, info = self.total_loss(batch, train_values)
        self.optimizer.zero_grad()
        loss.backward()
        info['grad_norm'] = sum(nn.utils.clip_grad_norm_(group, self.offline.config.grad_clip)
                                for group in (self.trained.parameters(), self.values.parameters()))
        self._decay_rates()
        self.optimizer.step()

        for name, average in self.acting.items():
            learned = self.values[name] if name in self.values else self.trained[name]
            soft_update(average, learned, self.config.ema_rate)
        if train_values:
            soft_update(self.offline.targets['value'], self.values['value'], self.offline.config.target_rate)
        self.step += 1
        return {name: value.detach() for name, value in info.items()}

    def _decay_rates(self):
        updates = self.config.lr_decay_updates
        if updates:
            share = max(LOWEST_RATE, min(1.0, 2 - 2 * self.step / updates))
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group['lr'] = share * rate

    # ------------------------------------------------------------------------------------------- checkpoints
    def state_dict(self):
        """-> tensors and builtins from which `from_state_dict` rebuilds this agent exactly."""
        return {
            'offline': self.offline.state_dict() | {'optimizer': None},
            'action_low': self.action_low.tolist(),
            'action_high': self.action_high.tolist(),
            'config': dataclasses.asdict(self.config),
            'step': self.step,
            'trained': self.trained.state_dict(),
            'acting': self.acting.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'map': self.state_map.state_dict() if self.state_map else None,
            'labeler': self.labeler.state_dict(),
        }

    def load_state_dict(self, state):
        """Load what `state_dict` returned. Raises ValueError that names sizes that differ."""
        self.offline.load_state_dict(state['offline'])
        older = 'labeler' not in state  # from before it was a Gaussian process; acting does not need it
        for networks, saved in (self.trained, state['trained']), (self.acting, state['acting']):
            if older:
                own = networks['baseline'].state_dict()  # the oldest have none
                saved = {f'baseline.{key}': value for key, value in own.items()} | saved
                saved = {key: value for key, value in saved.items() if not key.startswith('labeler.')}
            load_weights(networks, saved)
        if not older:
            self.labeler.load_state_dict(state['labeler'])
            if state['optimizer'] is not None:
                self.optimizer.load_state_dict(state['optimizer'])
        self.step = state['step']
        if state.get('map') is not None:  # checkpoints from before there were maps have none
            kind = ThingsMap if 'thing_of' in state['map'] else StateMap
            self.state_map = kind.from_state_dict(state['map'])

    @classmethod
    def from_state_dict(cls, state, device='cpu', backend='torch'):
        offline = OfflineAgent.from_state_dict(state['offline'], device, backend)
        # what did not exist yet when a checkpoint was written
        older = {'action_scale': 1.0, 'small_action_prior': 0.0, 'point_out': False}
        known = {key: value for key, value in state['config'].items() if key not in RETIRED}
        config = make_config(OnlineConfig, older | known)
        agent = cls(offline, state['action_low'], state['action_high'], config)
        agent.load_state_dict(state)
        return agent


def _deviation(values):
    """Standard deviation over a batch of numbers (n,), by which one may divide; of a single one, too."""
    return values.std(correction=min(1, len(values) - 1)).clamp(min=1e-8)
