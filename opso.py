"""OPSO as a library: trained agents, environments and episodes in your own code.

    import opso

    policy = opso.load('online_checkpoints/antmaze-medium-navigate-v0/seed0/last.pth')
    action = policy.act(observation, goal)        # of one robot (S,), or of a batch (B, S)

This works from a checkout, and from your own folder with PYTHONPATH set to the checkout. Where your folder
has a `utils.py` or a `model.py`, as OPSO has, `import utils` imports yours. docs/library.md has examples.
"""

import contextlib
import dataclasses
import functools
import sys
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).resolve().parent


# ------------------------------------------------------------------------------------------------- imports
def _file_of(name):
    """Return the file that OPSO has, or would have, for a module."""
    base = ROOT.joinpath(*name.split('.'))
    module = base.with_suffix('.py')
    return module if module.is_file() else base / '__init__.py'


@functools.cache
def _is_opso_name(top):
    return _file_of(top).is_file()


def _names_in_use():
    """Return the names in `sys.modules` that begin as one of OPSO's modules or packages does."""
    return [name for name in sys.modules if _is_opso_name(name.partition('.')[0])]


def _is_opso(name):
    file = getattr(sys.modules[name], '__file__', None)
    return file is not None and Path(file).resolve() == _file_of(name)


@contextlib.contextmanager
def _opso_names():
    """Context of imports in which OPSO's names mean OPSO's modules.

    Afterwards a name means what it does without this module. OPSO's `utils` thus leaves `sys.modules` if
    `import utils` finds another one; the code that has imported it keeps it.
    """
    others = {name: sys.modules.pop(name) for name in _names_in_use() if not _is_opso(name)}
    sys.path.insert(0, str(ROOT))
    try:
        yield
    finally:
        sys.path.remove(str(ROOT))
        for name in _names_in_use():
            top = name.partition('.')[0]
            spec = PathFinder.find_spec(top)
            if spec and spec.origin and Path(spec.origin).resolve() != _file_of(top):
                del sys.modules[name]
        sys.modules.update(others)


with _opso_names():
    import support.threads  # noqa: F401  before torch

    import numpy as np
    import torch

    from figures.maze_figures import steps_of
    from observing.observation_models import observation_model_of
    from offline_agent import OfflineAgent
    from ogbench_utils import make_env, reset_env
    from online_agent import OnlineAgent
    from rollouts import evaluate
    from support.files import load_checkpoint, prefix_errors

__all__ = ['Policy', 'Representation', 'evaluate', 'load', 'load_offline', 'make_env', 'reset_env']


# ---------------------------------------------------------------------------------------------------- agents
def load(path, device='cpu'):
    """Return the `Policy` of an online checkpoint (last.pth or best_model.pth).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no online checkpoint of this version of OPSO.
    """
    return _load(path, 'online', OnlineAgent, Policy, device)


def load_offline(path, device='cpu'):
    """Return the `Representation` of an offline checkpoint; the errors are those of `load`."""
    return _load(path, 'offline', OfflineAgent, Representation, device)


def _load(path, kind, agent_class, wrapper_class, device):
    checkpoint = load_checkpoint(path, kind)
    state = checkpoint['agent'] | {'optimizer': None}  # which nothing here needs
    with prefix_errors(path):
        agent = agent_class.from_state_dict(state, device)
        name = checkpoint.get('dataset') or checkpoint['data']['dataset']
        return wrapper_class(agent, observation_model_of(checkpoint), name)


class Representation:
    """Latents and values of states: what the offline half has learned.

    States are what the robot observes, in the units of the data: (S,) or (B, S). If the data have angles that
    wrap or offsets that float32 cannot hold, they are converted here.

    Args:
        offline: OfflineAgent.
        observation_model: ObservationModel of its data.
        name: dataset or module:factory of its environment.
    """

    def __init__(self, offline, observation_model, name):
        self.offline = offline
        self.observation_model = observation_model
        self.name = name
        self.observation_dim = offline.observation_dim - len(observation_model.angles)
        # what is left to do with observations: no dimensions to choose, no noise
        self._to_inputs = dataclasses.replace(observation_model, dimensions=None, transform=None, noise=None)

    @torch.no_grad()
    def latents(self, states):
        """Return the latents z (D,) or (B, D) of states (S,) or (B, S), float32."""
        z = self._encode(self.to_inputs(states))
        return _like(states, z.cpu().numpy())

    @torch.no_grad()
    def value(self, states, goals):
        """Return V(z, z_g), at most 0, of states and goals, each (S,) or (B, S): a float or (B,)."""
        z = self._encode(self.to_inputs(states))
        z_goal = self._encode(self._read_goals(goals))
        if len(z) != len(z_goal) and 1 not in (len(z), len(z_goal)):
            raise ValueError(f'`states` have {len(z)} rows and `goals` {len(z_goal)}; they must have the '
                             'same number, or one of them a single row')
        z, z_goal = torch.broadcast_tensors(z, z_goal)
        values = self.offline.targets['value'](z, z_goal).mean(0).cpu().numpy()
        return values if 2 in (np.ndim(states), np.ndim(goals)) else float(values[0])

    def steps_to(self, states, goals):
        """Return the environment steps that V stands for, at most 1,000; arguments as of `value`."""
        config = self.offline.config
        steps = steps_of(self.value(states, goals), config.reward_scale, config.discount)
        return steps if np.ndim(steps) else float(steps)

    def _read_goals(self, goals):
        """Return the inputs (B, S') of goals (S,) or (B, S)."""
        return self.to_inputs(goals, 'goals')

    def _encode(self, inputs):
        inputs = torch.as_tensor(inputs, device=self.offline.device)
        return self.offline.targets['encoder'].encode_features(inputs)

    def to_inputs(self, states, name='states', may_be_nan=False):
        """Return the inputs (B, S') float32 of an agent for states (S,) or (B, S).

        Raises:
            ValueError: for another shape and for values that are not finite; it names the argument `name`.
        """
        try:
            rows = np.asarray(states, np.float64)
        except (TypeError, ValueError):
            raise ValueError(f'`{name}` is {type(states).__name__}; it must be an array of numbers') from None
        size = self.observation_dim
        if rows.ndim not in (1, 2) or rows.shape[-1] != size or not rows.size:
            raise ValueError(f'`{name}` has the shape {rows.shape}; it must be ({size},) for one robot, or '
                             f'(B, {size}) for B robots')
        bad = np.isinf(rows) if may_be_nan else ~np.isfinite(rows)
        if bad.any():
            where = np.argwhere(bad)[0].tolist()
            raise ValueError(f'`{name}{where}` is {rows[tuple(where)]}; give finite values, such as the last '
                             'good reading')
        return self._to_inputs.observe(np.atleast_2d(rows), None)

    def to_states(self, inputs):
        """Return the states (B, S) of an agent's inputs (B, S'), the inverse of `to_inputs`."""
        if self.observation_model.origin:
            inputs = inputs + np.array(self.observation_model.origin)
        states = inputs[:, :self.observation_dim].copy()
        for sine, cosine, period in self.observation_model.angles:
            states[:, sine] = np.arctan2(inputs[:, sine], inputs[:, cosine]) * period / (2 * np.pi)
        return states


class Policy(Representation):
    """A trained agent that acts, and keeps the state of acting itself.

    Args:
        agent: OnlineAgent, which is the attribute `agent`.
        observation_model, name: as of `Representation`.
    """

    def __init__(self, agent, observation_model, name):
        super().__init__(agent.offline, observation_model, name)
        self.agent = agent
        self.action_low = agent.action_low
        self.action_high = agent.action_high
        self.reset()

    def reset(self, rows=None):
        """Begin new episodes: everywhere, or of the robots `rows`, a bool mask (B,) or indices.

        Call it whenever an episode begins. A new goal needs no reset.
        """
        if rows is None or self._state is None:
            self._state = None  # of acting
            self._given = self._goals = None  # goals as given, and as the agent reads them
            return

        mask = np.zeros(len(self._given), bool)
        try:
            mask[rows] = True
        except IndexError:
            raise ValueError(f'reset: `rows` are {rows}; they must be a mask or indices of '
                             f'{len(mask)} robots') from None
        self._state = self.agent.reset_state(self._state, mask)

    def _read_goals(self, goals):
        """Return the inputs (B, S') of goals (S,) or (B, S), which may be NaN in dimensions that do not matter."""
        inputs = self.to_inputs(goals, 'goals', may_be_nan=True).copy()
        for row in np.flatnonzero(np.isnan(inputs).any(1)):
            inputs[row] = self.agent.read_goal(inputs[row])
        return inputs

    def act(self, observation, goal):
        """Return the action (A,) or (B, A), float32, within the bounds of the environment.

        Args:
            observation: (S,) of one robot or (B, S) of B robots, whose number stays the same until `reset`.
            goal: (S,) or (B, S); NaN in dimensions that do not matter. A single goal is that of all robots.

        Raises:
            ValueError: for a wrong shape or a value that is not finite, in one line that names it.
        """
        observations, goals = self._begin(observation, goal)
        actions, self._state = self.agent.act(observations, goals, self._state)
        return _like(observation, actions)

    @torch.no_grad()
    def subgoal(self, observation, goal):
        """Return the state that `act` would head for, (S,) or (B, S): the nearest one that the agent knows.

        These are the states of its map and the goal. Acting is not affected. Arguments as of `act`.
        """
        # the agent's subgoals, in goal features
        agent = self.agent
        observations, goals = self._begin(observation, goal)
        states = torch.as_tensor(observations, device=agent.device)
        states, _ = agent.estimator.step(states, self._state.estimate)
        goal_states = torch.as_tensor(goals, device=agent.device)
        subgoals, _ = agent.planner.step(states, goal_states, self._state.plan)

        # the nearest of the map's states, or the goal if it is at least as near
        known = torch.as_tensor(agent.data_map.known_states, device=agent.device)
        known_features = agent.encoder.goal_features(known)
        distances, nearest = torch.cdist(subgoals.features, known_features,
                                         compute_mode='donot_use_mm_for_euclid_dist').min(1)
        goal_distances = (subgoals.features - agent.encoder.goal_features(goal_states)).norm(dim=1)
        is_goal = (goal_distances <= distances).unsqueeze(1)
        found = torch.where(is_goal, goal_states, known[nearest]).cpu().numpy()
        return _like(observation, self.to_states(found))

    def _begin(self, observation, goal):
        """Return the agent's inputs (B, S') for an observation and a goal; set the state of a first step."""
        observations = self.to_inputs(observation, 'observation')
        given = self.to_inputs(goal, 'goal', may_be_nan=True)
        if len(given) not in (1, len(observations)):
            raise ValueError(f'`observation` has {len(observations)} rows and `goal` {len(given)}; they must '
                             'have the same number, or `goal` a single row')
        given = np.broadcast_to(given, observations.shape).copy()

        if self._state is not None and len(observations) != len(self._given):
            raise ValueError(f'`observation` has {len(observations)} rows, after {len(self._given)} in the '
                             'steps before; call reset() first')

        # new goals, then the state: a goal that is refused changes nothing
        if self._given is None or not np.array_equal(given, self._given, equal_nan=True):
            self._goals = np.stack([self.agent.read_goal(row) for row in given])
            self._given = given
        if self._state is None:
            self._state = self.agent.initial_state(len(observations))
        return observations, self._goals


def _like(given, rows):
    """Return rows (B, n), or the only one (n,) if what was given has no batch dimension."""
    return rows if np.ndim(given) == 2 else rows[0]
