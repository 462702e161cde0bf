"""Distil the plan into the proposer, so that acting needs no graph of the data.

    python scripts/checkpoints/distil_plan.py \\
        --checkpoint online_checkpoints/NAME/seed0/last.pth --output distilled.pth
    python evaluate.py --checkpoint distilled.pth --compare online_checkpoints/NAME/seed0/last.pth

The proposer f_P(z, z_g) is regressed on the waypoints of a GraphPlanner, and `plan` is set to False. Nothing
else in the checkpoint changes. The policy reads the direction of a proposal. The loss is therefore 1 - cos
between the directions of its decoded goal features and of the waypoint. `--objective embedding` regresses on
the waypoint in the embedding of V, as the offline half does.

Half of the goals are drawn from all data, for long routes. The other half are drawn near the state, for the
last steps and for goals behind a wall: two states drawn from all data are rarely near each other.
"""

import dataclasses
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from any folder

import support.threads  # noqa: F401, E402  before torch

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from scipy.spatial import KDTree  # noqa: E402
from torch import nn  # noqa: E402

from labeling.online_batches import StateStore  # noqa: E402
from observing.observation_models import observation_model_of  # noqa: E402
from online_agent import OnlineAgent  # noqa: E402
from planning.graph_planner import AT_GOAL, NO_PATH, GraphPlanner  # noqa: E402
from support.devices import set_seed  # noqa: E402
from support.files import check_writable, load_checkpoint, prefix_errors, save_checkpoint  # noqa: E402
from support.flags import check_ranges, flag, parse_flags, run_main  # noqa: E402
from support.kernels import prepare_cpu  # noqa: E402
from support.progress import progress_bar  # noqa: E402
from trajectories import load_recorded  # noqa: E402

LOOKUP_ROWS = 1 << 16  # rows of the data whose nodes are looked up at once
NEARBY_FRACTION = 0.1  # fraction of all nodes that count as near a node
MEASURED_PAIRS = 8192  # pairs of a state and a goal on which the proposer is compared with the plan
RNG_STREAM = 8  # random draws of training
MEASURING_RNG_STREAM = 9


@dataclasses.dataclass
class DistilConfig:
    """checkpoint, data and updates"""
    checkpoint: str = flag('', 'last.pth or best_model.pth of an online run (required)')
    output: str = flag('', 'file to write (required)')
    dataset_path: str = flag('', 'npz file of the states; default: that of the offline run')
    objective: str = flag('direction', 'property of the proposal that is regressed on the waypoint',
                          choices=('direction', 'embedding'))
    near_goals: float = flag(0.5, 'fraction of goals near the state', least=0, most=1)
    num_updates: int = flag(5000, 'gradient steps', least=1)
    batch_size: int = flag(1024, 'pairs of a state and a goal per gradient step', least=1)
    lr: float = flag(1e-3, 'initial learning rate of Adam, which falls to 0 linearly', above=0)
    seed: int = flag(0, 'seed of states and goals', least=0, most=2**32 - 1)


@dataclasses.dataclass
class Lesson:
    """Pairs of a state and a goal with a path between them, and their waypoints. D latent dimensions."""

    states: torch.Tensor  # (n, S) raw
    z: torch.Tensor  # (n, D)
    z_goal: torch.Tensor  # (n, D)
    next_states: torch.Tensor  # (n, S) raw, state of the next node, or the goal


class Teacher:
    """Draws lessons from the plans of an OnlineAgent on a graph of K nodes.

    Args:
        agent: OnlineAgent whose map is a StateGraph.
        data: TrajectoryDataset.
        near_goals: fraction of goals near their state.

    Attributes:
        routes: (K, K + 1) `GraphPlanner.route` to each node.
        rows: (n,) rows of the data that are on the map, sorted by node.
        nodes: (n,) their nodes.
        first, count: (K,) position in `rows` of the first row of each node, and the number of its rows.
        nearby: (K, M) nodes nearest to each node, itself included.

    Raises:
        ValueError: if the graph has no path between states of the data.
    """

    def __init__(self, agent, data, near_goals=0.5):
        self.near_goals = near_goals
        self.store = StateStore(data, agent)
        graph = agent.data_map
        planner = GraphPlanner(graph, agent.encoder.goal_features)
        self.node_states = torch.from_numpy(graph.states).to(agent.device)

        self.routes = planner.all_routes()

        # rows of each node
        starts = range(0, len(data), LOOKUP_ROWS)
        nodes = np.concatenate([planner.locate(data.observations[i:i + LOOKUP_ROWS]) for i in starts])
        self.rows = np.argsort(nodes, kind='stable')[np.sum(nodes < 0):]
        self.nodes = nodes[self.rows]
        self.first = np.searchsorted(self.nodes, np.arange(len(graph)))
        self.count = np.bincount(self.nodes, minlength=len(graph))
        if not len(self.rows) or not (self.routes >= 0).any():
            raise ValueError('no path of the map connects states of the data; name the data of the map '
                             'with --dataset_path')

        # nearest nodes among those with rows: all nodes, unless the map was built from other data
        visited = np.flatnonzero(self.count)
        neighbours = max(1, round(NEARBY_FRACTION * len(visited)))
        nearest = KDTree(graph.centers[visited]).query(graph.centers, k=range(1, neighbours + 1))[1]
        self.nearby = visited[nearest]

    def draw(self, n, rng):
        """Return a Lesson of n pairs less those without a path; draws from the numpy Generator `rng`."""
        # positions in `rows` of the states and the goals
        states = rng.integers(len(self.rows), size=n)
        anywhere = rng.integers(len(self.rows), size=n)
        near = self._near(states, rng)
        goals = np.where(rng.random(n) < self.near_goals, near, anywhere)

        # next nodes, and the rows of connected pairs
        next_nodes = self.routes[self.nodes[goals], self.nodes[states]]
        connected = next_nodes != NO_PATH
        next_nodes = torch.from_numpy(next_nodes[connected]).to(self.node_states.device).long()
        rows = self.rows[states[connected]]
        goal_rows = self.rows[goals[connected]]

        # waypoints: the goals, or the states of the next nodes
        states = self.store.states(rows)
        goals = self.store.states(goal_rows)
        at_goal = (next_nodes == AT_GOAL).unsqueeze(-1)
        return Lesson(
            states=states,
            z=self.store.z(rows, states),
            z_goal=self.store.z(goal_rows, goals),
            next_states=torch.where(at_goal, goals, self.node_states[next_nodes.clamp(min=0)]),
        )

    def _near(self, states, rng):
        """Return positions (n,) in `rows` of states near those at the positions `states` (n,)."""
        nearby = self.nearby[self.nodes[states], rng.integers(self.nearby.shape[1], size=len(states))]
        return self.first[nearby] + (rng.random(len(states)) * self.count[nearby]).astype(np.int64)


def direction_cosine(agent, proposed, lesson):
    """Return cos (n,) between the directions of proposals (n, D) and waypoints, as the policy reads them."""
    features = agent.encoder.goal_features(lesson.states)
    proposed_direction = F.normalize(agent.ema_nets['feature_decoder'](proposed) - features, dim=-1)
    planned_direction = F.normalize(agent.encoder.goal_features(lesson.next_states) - features, dim=-1)
    return (proposed_direction * planned_direction).sum(-1)


def distillation_loss(agent, objective, lesson):
    """Return the loss of the proposer and the mean cosine of its directions."""
    proposed = agent.offline.nets['proposer'](lesson.z, lesson.z_goal)
    cosine = direction_cosine(agent, proposed, lesson)
    if objective == 'direction':
        return (1 - cosine).mean(), cosine.mean()

    embed = agent.offline.targets['value'].embed
    with torch.no_grad():
        target = embed(agent.encoder.encode_features(lesson.next_states))
    return (embed(proposed) - target).square().sum(-1).mean(), cosine.mean()


def distil(agent, teacher, config):
    """Train the proposer of an OnlineAgent for `config.num_updates` and turn the plan off in its config."""
    rng = np.random.default_rng([config.seed, RNG_STREAM])
    proposer = agent.offline.nets['proposer']
    optimizer = torch.optim.Adam(proposer.parameters(), lr=config.lr, fused=True)

    progress = progress_bar(range(config.num_updates), 'updates', leave=False)
    for update in progress:
        lesson = teacher.draw(config.batch_size, rng)
        if not len(lesson.z):
            continue
        loss, cosine = distillation_loss(agent, config.objective, lesson)
        if not torch.isfinite(loss):
            raise FloatingPointError(f'the loss is {loss.item()} at update {update}; try a lower --lr')

        optimizer.param_groups[0]['lr'] = config.lr * (1 - update / config.num_updates)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(proposer.parameters(), agent.offline.config.grad_clip)
        optimizer.step()
        if update % 50 == 0:
            progress.set_postfix_str(f'cos {cosine.item():.3f}')

    agent.config.plan = False


@torch.no_grad()
def measure(agent, lesson):
    """Return the mean cosine between directions of proposer and plan, and the fraction within 45 degrees."""
    cosine = direction_cosine(agent, agent.offline.nets['proposer'](lesson.z, lesson.z_goal), lesson)
    return cosine.mean().item(), (cosine > 0.5 ** 0.5).float().mean().item()


def run(config):
    """Write a checkpoint with the distilled proposer and return its path."""
    if not config.checkpoint or not config.output:
        raise ValueError('--checkpoint (last.pth or best_model.pth of an online run) and --output are '
                         'required')
    check_ranges(config)
    check_writable(config.output)
    set_seed(config.seed)
    prepare_cpu(torch.device('cpu'))

    checkpoint = load_checkpoint(config.checkpoint, 'online')
    with prefix_errors(config.checkpoint):
        agent = OnlineAgent.from_state_dict(checkpoint['agent'])
    if agent.offline.has_objects:
        raise ValueError(f'{config.checkpoint}: its plans move objects, and only paths on a graph can be '
                         'distilled; choose a checkpoint of a locomotion task with --checkpoint')
    data, source = load_recorded(checkpoint['data'], config.checkpoint, agent.offline, config.dataset_path,
                                 observation_model=observation_model_of(checkpoint))
    print(source.note)

    begin = time.perf_counter()
    teacher = Teacher(agent, data, config.near_goals)
    print(f'{agent.data_map}; routes to all of them in {time.perf_counter() - begin:.1f} s')

    # distil, and compare the proposer with the plan before and after
    lesson = teacher.draw(MEASURED_PAIRS, np.random.default_rng([config.seed, MEASURING_RNG_STREAM]))
    before = measure(agent, lesson)
    begin = time.perf_counter()
    distil(agent, teacher, config)
    seconds = time.perf_counter() - begin
    output = Path(config.output)
    checkpoint['agent'] = agent.state_dict()
    save_checkpoint(output, checkpoint)  # before what may fail
    after = measure(agent, lesson)
    print(f'{config.num_updates:,} updates in {seconds:.0f} s')
    print(f'cos between the directions of proposer and plan: {before[0]:.3f} -> {after[0]:.3f}; '
          f'within 45 degrees: {before[1]:.1%} -> {after[1]:.1%}')
    print(f'written: {output}; it acts without the plan')
    return output


def main(argv=None):
    run(*parse_flags(__doc__, DistilConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
