"""Teach the plan back to the proposer: f_P(z, z_g) learns to lead where the map of the data would, so that acting needs
neither the map nor Dijkstra. Nothing else in the checkpoint is retrained.

    python scripts/checkpoints/distil_plan.py --checkpoint online_checkpoints/NAME/seed0/last.pth --output distilled.pth
    python evaluate.py --checkpoint distilled.pth --compare online_checkpoints/NAME/seed0/last.pth

Of a proposal, acting reads the direction of its place. So the loss is 1 - cos between the direction of l(f_P(z, z_g)) and
that of the plan, the next node on the way from s to g or g itself. Half of the goals are drawn from anywhere, so that
far routes are learned, and half from nearby, so that arriving is, and the way around a wall to what lies right behind
it: of two states from anywhere, one hardly ever lies near the other. `--objective embedding` regresses in V's embedding
instead, as the offline half does.
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
from tqdm import tqdm  # noqa: E402

from observing.observation_models import observation_model_of  # noqa: E402
from online_agent import OnlineAgent  # noqa: E402
from planning.graph_planner import AT_GOAL, NO_PATH  # noqa: E402
from support.devices import set_seed  # noqa: E402
from support.files import load_checkpoint, prefix_errors, save_checkpoint  # noqa: E402
from support.flags import check_ranges, flag, parse_flags, run_main  # noqa: E402
from support.kernels import prepare_cpu  # noqa: E402
from trajectories import load_recorded  # noqa: E402

ROWS_AT_ONCE = 1 << 16
NEARBY = 0.1  # of all nodes: those that are near a node
MEASURED = 8192  # pairs of a state and a goal by which the proposer is measured before and after


@dataclasses.dataclass
class DistilConfig:
    """which checkpoint, which data, how long"""
    checkpoint: str = flag('', 'last.pth or best_model.pth of an online run (required)')
    output: str = flag('', 'file to write (required)')
    dataset_path: str = flag('', 'npz file of the states; default: the very file of the offline run')
    objective: str = flag('direction', "what is compared with the plan's: the direction of the proposal, or its embedding "
                                     'by V', choices=('direction', 'embedding'))
    near_goals: float = flag(0.5, 'share of goals near the state, on either side of a wall; the rest is from anywhere',
                             least=0, most=1)
    num_updates: int = flag(5000, 'gradient steps', least=1)
    batch_size: int = flag(1024, 'pairs of a state and a goal per gradient step', least=1)
    lr: float = flag(1e-3, "Adam's learning rate at first; it falls to 0, linearly", above=0)
    seed: int = flag(0, 'seed of states and goals', least=0, most=2**32 - 1)


@dataclasses.dataclass
class Lesson:
    """Pairs of a state and a goal between which a path leads, and where the plan heads for. D latent dimensions."""

    states: torch.Tensor  # (n, S) raw
    z: torch.Tensor  # (n, D)
    z_goal: torch.Tensor  # (n, D)
    next_states: torch.Tensor  # (n, S) raw: the next node's state, or the goal


class Teacher:
    """Draws lessons from a `TrajectoryDataset` and the agent's map.

    near_goals: share of goals near their state. routes (K, K + 1): `StateMap.route` to each node, one Dijkstra each,
    once; rows (n,): the rows of the data that are on the map, node by node; nodes (n,): theirs; first, count (K,):
    where in `rows` those of a node begin, and how many there are; nearby (K, M): the nodes nearest to each, itself
    included.
    """

    def __init__(self, agent, data, near_goals=0.5):
        self.near_goals = near_goals
        self.store = agent.latent_store(data)
        state_map = agent.state_map
        self.node_states = torch.from_numpy(state_map.states).to(agent.device)

        size = len(state_map)
        self.routes = np.empty((size, size + 1), np.int32)
        for node in tqdm(range(size), 'routes', leave=False, dynamic_ncols=True, delay=1):
            self.routes[node] = state_map.route(node)
        starts = range(0, len(data), ROWS_AT_ONCE)
        nodes = np.concatenate([state_map.locate(data.observations[i:i + ROWS_AT_ONCE]) for i in starts])
        self.rows = np.argsort(nodes, kind='stable')[np.sum(nodes < 0):]
        self.nodes = nodes[self.rows]
        self.first = np.searchsorted(self.nodes, np.arange(size))
        self.count = np.bincount(self.nodes, minlength=size)
        if not len(self.rows) or not (self.routes >= 0).any():
            raise ValueError('no path of the map leads from state to state of the data: there is nothing to teach')

        visited = np.flatnonzero(self.count)  # all of them, but for other data than the map's
        most = max(1, round(NEARBY * len(visited)))
        centers = state_map.centers
        nearest = KDTree(centers[visited]).query(centers, k=range(1, most + 1))[1]
        self.nearby = visited[nearest]

    def draw(self, n, rng):
        """n pairs, less those without a path -> Lesson."""
        states = rng.integers(len(self.rows), size=n)
        anywhere = rng.integers(len(self.rows), size=n)
        near = self._near(states, rng)
        goals = np.where(rng.random(n) < self.near_goals, near, anywhere)

        ahead = self.routes[self.nodes[goals], self.nodes[states]]
        connected = ahead != NO_PATH
        ahead = torch.from_numpy(ahead[connected]).to(self.node_states.device).long()
        rows = self.rows[states[connected]]
        goal_rows = self.rows[goals[connected]]

        at_goal = (ahead == AT_GOAL).unsqueeze(-1)
        next_states = torch.where(at_goal, self.store.states(goal_rows), self.node_states[ahead.clamp(min=0)])
        return Lesson(
            states=self.store.states(rows),
            z=self.store.read(rows),
            z_goal=self.store.read(goal_rows),
            next_states=next_states,
        )

    def _near(self, states, rng):
        """states (n,): positions in `rows` -> as many of states nearby."""
        nearby = self.nearby[self.nodes[states], rng.integers(self.nearby.shape[1], size=len(states))]
        return self.first[nearby] + (rng.random(len(states)) * self.count[nearby]).astype(np.int64)


def heading_cosine(agent, proposed, lesson):
    """cos between the directions of the proposals' places and of the plan's (n,), as `infer_action` reads them;
    proposed (n, D): z'."""
    place = agent.encoder.place(lesson.states)
    proposed_heading = F.normalize(agent.acting['feature_decoder'](proposed) - place, dim=-1)
    planned_heading = F.normalize(agent.encoder.place(lesson.next_states) - place, dim=-1)
    return (proposed_heading * planned_heading).sum(-1)


def distillation_loss(agent, objective, lesson):
    """What the proposer minimises -> (loss, mean cosine)."""
    proposed = agent.values['proposer'](lesson.z, lesson.z_goal)
    cosine = heading_cosine(agent, proposed, lesson)
    if objective == 'direction':
        return (1 - cosine).mean(), cosine.mean()

    embed = agent.offline.targets['value'].embed
    with torch.no_grad():
        target = embed(agent.encoder.encode_features(lesson.next_states))
    return (embed(proposed) - target).square().sum(-1).mean(), cosine.mean()


def distil(agent, teacher, config):
    """Train the proposer of an OnlineAgent for `config.num_updates`; the agent acts by it, without the plan, from then
    on."""
    rng = np.random.default_rng([config.seed, 8])
    proposer = agent.values['proposer']
    proposer.load_state_dict(agent.acting['proposer'].state_dict())  # what acts is what learns on
    optimizer = torch.optim.Adam(proposer.parameters(), lr=config.lr, fused=True)

    progress = tqdm(range(config.num_updates), 'updates', leave=False, dynamic_ncols=True, mininterval=1.0)
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

    agent.acting['proposer'].load_state_dict(proposer.state_dict())
    agent.config.plan = False


@torch.no_grad()
def measure(agent, lesson):
    """-> mean cosine between the acting proposer's directions and the plan's, and the share of those less than 45 degrees
    apart."""
    cosine = heading_cosine(agent, agent.acting['proposer'](lesson.z, lesson.z_goal), lesson)
    return cosine.mean().item(), (cosine > 0.5 ** 0.5).float().mean().item()


def run(config):
    """-> path of the checkpoint with the distilled proposer."""
    if not config.checkpoint or not config.output:
        raise ValueError('--checkpoint, last.pth or best_model.pth of an online run, and --output are required')
    check_ranges(config)
    set_seed(config.seed)
    prepare_cpu(torch.device('cpu'))

    checkpoint = load_checkpoint(config.checkpoint, 'online')
    with prefix_errors(config.checkpoint):
        agent = OnlineAgent.from_state_dict(checkpoint['agent'])
    if agent.state_map is None:
        raise ValueError(f'{config.checkpoint} has no map of the data, it is of an older version; '
                         f'python scripts/checkpoints/add_map.py --checkpoint {config.checkpoint} adds one')
    if agent.moves_things:
        raise ValueError(f'{config.checkpoint} plans with things that it moves; only the ways of a map can be taught')
    data, source = load_recorded(checkpoint['data'], config.checkpoint, config.dataset_path,
                                 observation_model=observation_model_of(checkpoint), **agent.offline.config.sampling())
    print(source.note)

    begin = time.perf_counter()
    teacher = Teacher(agent, data, config.near_goals)
    print(f'{agent.state_map}; routes to all of them in {time.perf_counter() - begin:.1f} s')

    lesson = teacher.draw(MEASURED, np.random.default_rng([config.seed, 9]))
    before = measure(agent, lesson)
    begin = time.perf_counter()
    distil(agent, teacher, config)
    after = measure(agent, lesson)
    print(f'{config.num_updates:,} updates in {time.perf_counter() - begin:.0f} s')
    print(f'cos between the directions of proposer and plan: {before[0]:.3f} -> {after[0]:.3f}; less than 45 degrees '
          f'apart: {before[1]:.1%} -> {after[1]:.1%}')

    output = Path(config.output)
    checkpoint['agent'] = agent.state_dict()
    save_checkpoint(output, checkpoint)
    print(f'written: {output}; it acts without the plan')
    return output


def main(argv=None):
    run(*parse_flags(__doc__.splitlines()[0], DistilConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
