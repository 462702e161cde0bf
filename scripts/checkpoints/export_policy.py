"""Export the policy of an online checkpoint as one file that runs without OPSO.

    pip install -r requirements-export.txt
    python scripts/checkpoints/export_policy.py --checkpoint online_checkpoints/NAME/seed0/last.pth \\
        --output policy.onnx --episodes_per_task 20

    policy.onnx  for onnxruntime
    policy.pt    TorchScript, for torch.jit.load in Python and for libtorch in C++

The file computes (observation, goal, state) -> (action, next state) for any number of robots. A goal may be
NaN in dimensions that do not matter. The map is inside: the nearest node is a search over all of them, and the
routes to all nodes are a table. `state` is that of the plan. It is NaN in the first step of an episode, and
notices new goals. A checkpoint without a plan (distil_plan.py) gives a smaller file without `state`.
docs/library.md has the loop of a robot.

Before it ends, the script compares the file with the agent on states of the map, and on whole episodes with
--episodes_per_task.
"""

import contextlib
import dataclasses
import io
import json
import logging
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from any folder

import support.threads  # noqa: F401, E402  before torch

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

import opso  # noqa: E402
from environments.checks import num_tasks  # noqa: E402
from environments.safe_env import open_envs  # noqa: E402
from evaluate import compare, print_comparison  # noqa: E402
from planning.graph_planner import AT_GOAL, NO_PATH, OFF_MAP_RADII  # noqa: E402
from rollouts import evaluate  # noqa: E402
from support.files import check_writable, write_atomic  # noqa: E402
from support.flags import check_ranges, flag, parse_flags, run_main  # noqa: E402
from support.kernels import prepare_cpu  # noqa: E402
from support.progress import progress_bar  # noqa: E402
from support.runs import git_commit  # noqa: E402
from tasks import NoStuckNoise  # noqa: E402

OPSET = 23  # of ONNX, the first one with RMSNormalization; onnxruntime 1.23 and later
MAX_TABLE_BYTES = 512 << 20  # of the table of routes; a file of ONNX holds at most 2 GB
TRACED_ROWS = 4  # robots in the example that is traced; the files accept any number
COMPARED_STEPS = 125  # of COMPARED_ROBOTS that walk along the map: 1,000 states
COMPARED_ROBOTS = 8
GOAL_STEPS = 25  # steps after which they get a new goal
TIMED_STEPS = 100  # of one robot, nine times
TOLERANCE = 1e-4  # largest difference of an action, in half widths of its range
METADATA = 'opso.json'  # name of the entry in the file
INSTALL = 'pip install -r requirements-export.txt'


@dataclasses.dataclass
class ExportConfig:
    """checkpoint, file and checks"""

    checkpoint: str = flag('', 'last.pth or best_model.pth of an online run (required)')
    output: str = flag('', 'file to write: policy.onnx or policy.pt (required)')
    episodes_per_task: int = flag(0, 'episodes of each task that compare file and agent', least=0)
    num_envs: int = flag(8, 'episodes run in parallel', least=1)
    seed: int = flag(0, 'seed of the compared states and episodes', least=0, most=2**32 - 1)


# ------------------------------------------------------------------------------------------------- the graph
class Readings(nn.Module):
    """Converts states in the units of the data (B, S) to an agent's inputs (B, S'), as `opso.Policy` does.

    Args:
        observation_model: ObservationModel, whose angles and origin are used.
    """

    def __init__(self, observation_model):
        super().__init__()
        self.angles = observation_model.angles
        origin = observation_model.origin
        self.dtype = torch.float64 if origin else torch.float32  # of observations
        self.register_buffer('origin', torch.tensor(origin, dtype=self.dtype) if origin else None)

    def forward(self, states):
        if self.angles:
            sines, _, periods = zip(*self.angles, strict=True)
            phases = states[:, list(sines)] * (2 * torch.pi / torch.tensor(periods, dtype=self.dtype))
            columns = list(states.unbind(1))
            for sine, phase in zip(sines, phases.unbind(1), strict=True):
                columns[sine] = phase.sin()
            states = torch.cat([torch.stack(columns, 1), phases.cos()], 1)
        if self.origin is not None:
            states = states - self.origin
        return states.float()


class ProposingPolicy(nn.Module):
    """The policy of an agent without a plan: (observation, goal) -> (action,).

    Args:
        policy: opso.Policy.
        choose: function (condition, if_true, if_false, operands), `torch.cond` or `compute_both`.
    """

    state_size = 0

    def __init__(self, policy, choose):
        super().__init__()
        agent = policy.agent
        self.choose = choose
        self.readings = Readings(policy.observation_model)
        self.task = agent.task
        self.encoder = agent.encoder
        self.proposer = agent.offline.nets['proposer']
        self.nets = agent.ema_nets
        for name in ('action_low', 'action_high'):
            self.register_buffer(name, torch.from_numpy(getattr(agent, name)))
        self.register_buffer('known_states', torch.from_numpy(agent.data_map.known_states))

    def forward(self, observation, goal):
        states, goals = self.readings(observation), self.read_goals(goal)
        return (self.actions(states, goals, self.propose(states, goals)),)

    def read_goals(self, goals):
        """Return goals (B, S') without NaN, as `OnlineAgent.read_goal` does: its value in the nearest known state."""
        goals = self.readings(goals)
        return self.choose(goals.isnan().any(), self._fill, self._keep, (goals,))

    def _keep(self, operand, *_):
        return operand.clone()  # torch.cond returns no operand itself

    def _fill(self, goals):
        given = ~goals.isnan()
        differences = (torch.where(given, goals, 0).unsqueeze(1) - self.known_states) / self.encoder.std
        nearest = (given.unsqueeze(1) * differences).square().sum(-1).argmin(1)
        return torch.where(given, goals, self.known_states[nearest])

    def propose(self, states, goals):
        """Return the proposer's subgoals (B, S'), goal features, as `ProposerPlanner` does."""
        z, z_goal = self.encoder.encode_features(states), self.encoder.encode_features(goals)
        return self.nets['feature_decoder'](self.proposer(z, z_goal))

    def actions(self, states, goals, subgoals):
        """Return actions (B, A) in the environment's units, as `OnlineAgent.act` does."""
        inputs = self.task.inputs(states, subgoals, self.encoder.goal_features(goals))
        latents = self.encoder.encode_state(self.task.clip(states))
        actions = self.task.action_scale * self.nets['inverse_dynamics'](latents, *inputs)
        middle = (self.action_high + self.action_low) / 2
        half_width = (self.action_high - self.action_low) / 2
        return (middle + half_width * actions).clamp(self.action_low, self.action_high)

    def inputs(self, rows):
        """Return example inputs by name, of some robots."""
        size = self.encoder.mean.shape[0] - len(self.readings.angles)
        example = torch.linspace(-1, 1, rows * size, dtype=self.readings.dtype).view(rows, size)
        return {'observation': example, 'goal': -example}


class PlanningPolicy(ProposingPolicy):
    """The policy of an agent that plans on a graph: (observation, goal, state) -> (action, next state).

    It computes what `GraphPlanner.step` does, on tables. A state is (B, S' + 3): the goal, its node, the
    target node and the steps for which it has been kept. The last node, K, stands for states off the map.

    Args:
        policy: opso.Policy. choose: as of `ProposingPolicy`.
    """

    def __init__(self, policy, choose):
        super().__init__(policy, choose)
        planner = policy.agent.planner.first
        graph = planner.graph
        self.hop = graph.hop
        self.size = len(graph)
        self.radius = OFF_MAP_RADII * graph.radius
        self.state_size = graph.states.shape[1] + 3

        # look-up of nodes, in the dimensions in which they differ
        active = planner.active
        tables = {'mean': graph.mean, 'scale': graph.scale[:, active], 'centers': graph.centers[:, active],
                  'node_features': planner.node_features, 'routes': self._routes(planner)}
        for name, table in tables.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(table)))

    def _routes(self, planner):
        """Return the routes (K + 1, K + 1) to goals in all nodes, and to one off the map."""
        kind = np.int16 if self.size < np.iinfo(np.int16).max else np.int32
        off_map = np.full((1, self.size + 1), NO_PATH, kind)
        return np.concatenate([planner.all_routes().astype(kind), off_map])

    def locate(self, states):
        """Return the nearest nodes (B,) of states (B, S'), K off the map."""
        features = (states - self.mean) @ self.scale
        distances, nodes = (features.unsqueeze(1) - self.centers).square().sum(-1).min(1)
        return torch.where(distances.sqrt() <= self.radius, nodes, self.size)

    def forward(self, observation, goal, state):
        states, goals = self.readings(observation), self.read_goals(goal)
        known_goals, memory = state[:, :goals.shape[1]], state[:, goals.shape[1]:]

        # the node of a new goal is looked up, and its episode has no target yet
        is_new = (goals != known_goals).any(1)
        goal_nodes = self.choose(is_new.any(), lambda goals, memory: self.locate(goals),
                                 lambda goals, memory: memory[:, 0].long(), (goals, memory))
        targets = torch.where(is_new, NO_PATH, memory[:, 1]).long()
        committed = torch.where(is_new, 0, memory[:, 2])

        # next node on the route, or the previous target if the route leads back to where it was chosen
        proposed = self.routes[goal_nodes, self.locate(states)].long()
        following = self.routes[goal_nodes, proposed.clamp(min=0)].long()
        keeps = (proposed >= 0) & (following == targets) & (committed < self.hop)
        targets = torch.where(keeps, targets, proposed)
        committed = torch.where(keeps, committed + 1, 0)

        # the goal itself, the state of the target node, or a proposal where there is no path
        at_goal = (targets == AT_GOAL).unsqueeze(1)
        waypoints = self.node_features[targets.clamp(min=0)]
        subgoals = torch.where(at_goal, self.encoder.goal_features(goals), waypoints)
        found = targets != NO_PATH
        subgoals = self.choose(found.all(), self._keep, self._propose_missing,
                               (subgoals, found, states, goals))

        memory = torch.stack([goal_nodes.float(), targets.float(), committed], 1)
        return self.actions(states, goals, subgoals), torch.cat([goals, memory], 1)

    def _propose_missing(self, subgoals, found, states, goals):
        return torch.where(found.unsqueeze(1), subgoals, self.propose(states, goals))

    def inputs(self, rows):
        return super().inputs(rows) | {'state': torch.full((rows, self.state_size), torch.nan)}


def compute_both(condition, if_true, if_false, operands):
    """Return the result of one of two functions; both are computed, which a trace can hold."""
    return torch.where(condition, if_true(*operands), if_false(*operands))


def make_graph(policy, choose):
    """Return the PlanningPolicy or ProposingPolicy of an opso.Policy."""
    kind = PlanningPolicy if policy.agent.config.plan else ProposingPolicy
    return kind(policy, choose).eval().requires_grad_(False)


def check_exportable(policy, path):
    """Raise ValueError, in one line with the way out, for an agent that a file cannot hold."""
    agent = policy.agent
    if agent.offline.has_objects:
        raise ValueError(f'{path}: its plans move objects, which it searches for at every step; only paths '
                         'on a graph can be exported: load it with opso.load (docs/library.md)')
    if agent.offline.has_dropout and agent.config.estimator == 'encoder':
        raise ValueError(f'{path}: it predicts dropped observations from the memory of its encoder, which is '
                         'not exported: load it with opso.load (docs/library.md), or train with '
                         '--estimator last_observation')
    if agent.config.plan:
        bytes_ = 2 * len(agent.data_map) ** 2
        if bytes_ > MAX_TABLE_BYTES:
            raise ValueError(f'{path}: the routes of its map of {len(agent.data_map):,} nodes take '
                             f'{bytes_ >> 20:,} MiB; distil the plan (scripts/checkpoints/distil_plan.py) '
                             'or rebuild a smaller map (scripts/checkpoints/rebuild_map.py)')


def describe(policy, graph):
    """Return the metadata of a file: sizes, units and origin of its policy, a dict for JSON."""
    agent = policy.agent
    positions = agent.offline.position_dims() if agent.offline.has_axis_aligned_goals else ()
    return {
        'environment': policy.name,
        'observation_dim': policy.observation_dim,
        'observation_type': str(graph.readings.dtype).removeprefix('torch.'),
        'observe': policy.observation_model.setting,
        'goal_dims': sorted(int(i) for i in positions if i < policy.observation_dim),
        'action_dim': agent.action_dim,
        'action_low': agent.action_low.tolist(),
        'action_high': agent.action_high.tolist(),
        'state_size': graph.state_size,
        'map': str(agent.data_map) if agent.config.plan else '',
        'opso_commit': git_commit(),
    }


# ------------------------------------------------------------------------------------------------- the files
def to_onnx(graph, metadata):
    """Return the bytes of an ONNX file.

    Raises:
        ValueError: a package is missing.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f'--output policy.onnx needs a package ({error}): {INSTALL}; or write '
                         'policy.pt') from None

    inputs = graph.inputs(TRACED_ROWS)
    rows = torch.export.Dim('robots')
    with quiet():
        program = torch.onnx.export(
            graph, tuple(inputs.values()), dynamo=True, verbose=False, opset_version=OPSET,
            input_names=list(inputs), output_names=['action', 'next_state'][:len(inputs) - 1],
            dynamic_shapes=tuple({0: rows} for _ in inputs))
    program.model.metadata_props[METADATA] = json.dumps(metadata)
    return program.model_proto.SerializeToString()


def to_torchscript(graph, metadata):
    """Return the bytes of a TorchScript file."""
    file = io.BytesIO()
    with quiet():
        inputs = graph.inputs(TRACED_ROWS)
        traced = torch.jit.freeze(torch.jit.trace(graph, tuple(inputs.values()), check_trace=False))
        torch.jit.save(traced, file, _extra_files={METADATA: json.dumps(metadata)})
    return file.getvalue()


@contextlib.contextmanager
def quiet():
    """Context without the warnings and logs of torch's exporters, which concern their own code."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(level)


FORMATS = {'.onnx': (to_onnx, torch.cond), '.pt': (to_torchscript, compute_both)}


def open_file(path):
    """Return (function, metadata) of an exported file; the function maps arrays to a list of arrays.

    Raises:
        ValueError: onnxruntime is not installed.
    """
    if Path(path).suffix == '.pt':
        extra = {METADATA: ''}
        module = torch.jit.load(path, _extra_files=extra)

        def run_module(*arrays):
            with torch.inference_mode():
                return [output.numpy() for output in module(*map(torch.from_numpy, arrays))]
        return run_module, json.loads(extra[METADATA])

    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f'the check of policy.onnx needs a package ({error}): {INSTALL}') from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # more are slower for one robot
    session = onnxruntime.InferenceSession(str(path), options)
    names = [entry.name for entry in session.get_inputs()]
    metadata = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True))), metadata


class ExportedAgent:
    """An exported file with the interface of an agent for `rollouts.evaluate`.

    Args:
        path: file. policy: opso.Policy, for its goals and the units of its environment.
    """

    def __init__(self, path, policy):
        self.run, self.metadata = open_file(path)
        self.policy = policy

    def initial_state(self, batch_size):
        return np.full((batch_size, self.metadata['state_size']), np.nan, np.float32)

    def reset_state(self, state, rows):
        return np.where(rows[:, None], np.float32(np.nan), state)

    def read_goal(self, goal):
        return self.policy.agent.read_goal(goal)

    def act(self, observations, goals, state):
        kind = self.metadata['observation_type']
        arrays = [self.policy.to_states(rows).astype(kind) for rows in (observations, goals)]
        if not state.shape[1]:
            return self.run(*arrays)[0], state
        return self.run(*arrays, state)


# ------------------------------------------------------------------------------------------------- the checks
def compare_states(exported, policy, seed):
    """Return the largest difference between the actions of a file and an agent, in half widths of the range.

    Robots walk at random along states of the agent's map, now and then leave it, and get new goals.

    Args:
        exported: ExportedAgent. policy: opso.Policy. seed: int.
    """
    rng = np.random.default_rng(seed)
    agent = policy.agent
    known = agent.data_map.known_states
    spread = known.std(0)
    state, exported_state = agent.initial_state(COMPARED_ROBOTS), exported.initial_state(COMPARED_ROBOTS)
    nodes = rng.integers(len(known), size=COMPARED_ROBOTS)
    largest = 0.0

    for step in range(COMPARED_STEPS):
        if step % GOAL_STEPS == 0:
            goals = policy.to_inputs(policy.to_states(known[rng.integers(len(known), size=COMPARED_ROBOTS)]))
        nodes = next_nodes(agent.data_map, nodes, rng)
        far = rng.random((COMPARED_ROBOTS, 1)) < 0.05
        states = known[nodes] + np.where(far, 10, 0.05) * spread * rng.standard_normal(known[nodes].shape)
        observations = policy.to_inputs(policy.to_states(states))  # sines and cosines that fit each other

        actions, state = agent.act(observations, goals, state)
        others, exported_state = exported.act(observations, goals, exported_state)
        largest = max(largest, np.abs((actions - others) / (agent.action_high - agent.action_low) * 2).max())
    return float(largest)


def next_nodes(graph, nodes, rng):
    """Return for each of the nodes (B,) the end of one of its edges, or a random node where it has none."""
    following = rng.integers(len(graph), size=len(nodes))
    for row, node in enumerate(nodes):
        targets = graph.targets[graph.sources == node]
        if len(targets):
            following[row] = rng.choice(targets)
    return following


def time_step(exported, policy):
    """Return the CPU time of a step of one robot, in ms: the least of nine means."""
    state = policy.to_states(policy.agent.data_map.known_states[:1])
    state = state.astype(exported.metadata['observation_type'])
    arrays = [state, state]
    if exported.metadata['state_size']:
        arrays.append(exported.run(*arrays, exported.initial_state(1))[1])

    times = []
    for _ in range(9):
        begin = time.process_time()
        for _ in range(TIMED_STEPS):
            exported.run(*arrays)
        times.append((time.process_time() - begin) / TIMED_STEPS)
    return 1000 * min(times)


def compare_episodes(exported, policy, path, config):
    """Print success of agent and file on the same episodes; return two lists of Episode."""
    results = []
    for name, agent in (('agent', policy.agent), ('file', exported)):
        with open_envs(policy.name, config.num_envs, observation_model=policy.observation_model) as envs:
            total = num_tasks(envs[0]) * config.episodes_per_task
            with progress_bar(total=total, desc=name, unit='episode') as progress:
                metrics, episodes = evaluate(agent, envs, config.episodes_per_task, config.seed, progress)
        print(f'success of the {name}: {metrics["evaluation/overall_success"]:.1%} of {total} episodes')
        results.append(episodes)
    print_comparison(compare(path, *reversed(results)), len(results[0]))
    return results


def run(config):
    """Write the file, check it, and return its path."""
    # flags and agent
    if not config.checkpoint or not config.output:
        raise ValueError('--checkpoint (last.pth or best_model.pth of an online run) and --output '
                         '(policy.onnx or policy.pt) are required')
    check_ranges(config)
    output = Path(config.output)
    if output.suffix not in FORMATS:
        raise ValueError(f'--output {output}: must end in {" or ".join(FORMATS)}')
    check_writable(output)
    prepare_cpu(torch.device('cpu'))
    policy = opso.load(config.checkpoint)
    check_exportable(policy, config.checkpoint)
    if policy.agent.config.stuck_noise:
        print(f'the file leaves out --stuck_noise {policy.agent.config.stuck_noise:g}, the noise on the actions of a '
              'robot that is stuck; opso.load adds it')
        policy.agent.task.stuck_noise = NoStuckNoise()
        policy.agent.config.stuck_noise = 0.0

    # the file
    to_bytes, choose = FORMATS[output.suffix]
    graph = make_graph(policy, choose)
    print(f'exporting {graph.state_size and policy.agent.data_map or "the proposer in place of a map"}')
    content = to_bytes(graph, describe(policy, graph))
    write_atomic(output, lambda file: file.write(content))
    print(f'written: {output}, {len(content) / 2**20:.1f} MiB')

    # checks
    exported = ExportedAgent(output, policy)
    difference = compare_states(exported, policy, config.seed)
    print(f'largest difference to the agent in {COMPARED_STEPS * COMPARED_ROBOTS:,} states: '
          f'{difference:.1g} half widths of the action range; {time_step(exported, policy):.2f} ms of CPU '
          'time for a step of one robot')
    if not difference <= TOLERANCE:
        raise ValueError(f'{output} differs from {config.checkpoint} by {difference:.2g} half widths of the '
                         f'action range, more than {TOLERANCE}: do not use it, and report the versions of '
                         'torch and onnxruntime')
    if config.episodes_per_task:
        compare_episodes(exported, policy, config.checkpoint, config)
    return output


def main(argv=None):
    run(*parse_flags(__doc__, ExportConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
