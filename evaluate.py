"""Evaluate an online checkpoint by OGBench's protocol: every task, success at the last step of an episode.

    python evaluate.py --checkpoint online_checkpoints/antmaze-medium-navigate-v0/seed0/last.pth --episodes_per_task 50
    python evaluate.py --checkpoint A/last.pth --compare B/last.pth    on the same episodes
    python evaluate.py --checkpoint A/last.pth --compare A/last.pth --no-compare_plan    what does the plan do?
    python evaluate.py --checkpoint A/last.pth --stuck_noise 1          it stirs where it would lie still
    python evaluate.py --checkpoint A/last.pth --video                 one video per task
"""

import dataclasses
import json
from pathlib import Path

import support.threads  # noqa: F401  before torch

import numpy as np
from tqdm import tqdm

from environments.safe_env import num_tasks, open_envs
from figures.pictures import draw_evaluation, open_maze
from figures.videos import record
from mamba import choose_backend
from observing.observation_models import observation_model_of
from ogbench_utils import make_env
from online_agent import OnlineAgent
from rollouts import evaluate
from support.devices import choose_device, set_seed
from support.files import load_checkpoint, prefix_errors, write_atomic
from support.flags import check_ranges, flag, parse_flags, run_main
from support.kernels import prepare_cpu
from support.stats import paired_comparison, wilson_interval


@dataclasses.dataclass
class EvaluateConfig:
    """what to evaluate, and how long"""
    checkpoint: str = flag('', 'last.pth or best_model.pth of an online run (required)')
    dataset: str = flag('', 'evaluate in the environment of this dataset, or module:factory, instead of the one trained'
                            ' in')
    episodes_per_task: int = flag(50, 'episodes of each task', least=1)
    num_envs: int = flag(8, 'episodes run side by side', least=1)
    seed: int = flag(0, 'seed of starts and goals; episode (task, i) is the same for every checkpoint',
                     least=0, most=2**32 - 1)
    device: str = flag('auto', 'auto, cpu, cuda or mps')
    mamba_backend: str = flag('auto', 'implementation of the Mamba-2 scan', choices=('auto', 'torch', 'mamba_ssm'))
    plan: bool | None = flag(None, 'act by plans on the map of the data, or not (default: as it was trained)',
                             type=bool)
    compare: str = flag('', 'another checkpoint, evaluated on the same episodes and compared with')
    compare_plan: bool | None = flag(None, 'the same as --plan, for --compare', type=bool)
    action_scale: float | None = flag(None, 'do so much of what I infers (default: as it was trained)', type=float,
                                      above=0)
    compare_action_scale: float | None = flag(None, 'the same as --action_scale, for --compare', type=float, above=0)
    stuck_noise: float | None = flag(None, 'noise on the actions of who stays in his place (default: as it was '
                                          'trained)', type=float, least=0)
    compare_rest_noise: float | None = flag(None, 'the same as --stuck_noise, for --compare', type=float, least=0)
    video: bool = flag(False, 'render one episode of each task, without a display; needs EGL or OSMesa')
    output: str = flag('', 'JSON file for the numbers; default evaluation.json beside the checkpoint')


@dataclasses.dataclass
class Acting:
    """How a checkpoint is to act, each None: as it was trained."""

    plan: bool | None = None
    action_scale: float | None = None
    stuck_noise: float | None = None

    def told_to(self, state):
        """What `OnlineAgent.state_dict` returned -> the same of an agent that acts so."""
        told = {name: value for name, value in vars(self).items() if value is not None}
        return state | {'config': state['config'] | told}

    def check_map(self, agent, path):
        """Raises ValueError if the agent of the checkpoint `path` lacks the map that this needs."""
        for name in ('plan', 'stuck_noise'):
            if getattr(self, name) and agent.state_map is None:
                raise ValueError(f'--{name}: {path} has no map of the data, it is of an older version; '
                                 f'python scripts/checkpoints/add_map.py --checkpoint {path} adds one')


def run(config):
    """-> dict of metrics, OGBench's names, with intervals; also printed, written as JSON and drawn."""
    if not config.checkpoint:
        raise ValueError('--checkpoint is required: last.pth or best_model.pth of an online run')
    check_ranges(config)

    checkpoint = load_checkpoint(config.checkpoint, 'online')
    other = load_checkpoint(config.compare, 'online') if config.compare else None
    dataset = config.dataset or checkpoint['dataset']
    output = Path(config.output or Path(config.checkpoint).with_name('evaluation.json'))
    observation_model = observation_model_of(checkpoint)
    maze = open_maze(dataset, observation_model)
    kind = 'paths' if maze else 'values'

    acting = Acting(config.plan, config.action_scale, config.stuck_noise)
    metrics, episodes, agent = measure(config, config.checkpoint, checkpoint, dataset, acting)
    print_table(metrics, episodes)
    pictures = [output.with_name(f'{output.stem}_{kind}.png')]
    draw_evaluation(maze, agent.offline, episodes, pictures[0], title(dataset, metrics))

    if config.compare:
        acting = Acting(config.compare_plan, config.compare_action_scale, config.compare_rest_noise)
        others, other_episodes, agent = measure(config, config.compare, other, dataset, acting)
        metrics['comparison'] = compare(config.compare, episodes, other_episodes)
        pictures.append(output.with_name(f'{output.stem}_compared_{kind}.png'))
        draw_evaluation(maze, agent.offline, other_episodes, pictures[1], title(dataset, others))

    write_atomic(output, lambda file: file.write(json.dumps(metrics, indent=2).encode()))
    print('written: ' + ', '.join(map(str, [output, *pictures])))

    if config.video:
        for path in record(dataset, episodes, output.with_name(f'{output.stem}_videos'), observation_model):
            print(f'video: {path}')
    return metrics


def title(dataset, metrics):
    return f'{dataset}, success {metrics["evaluation/overall_success"]:.0%}'


def print_table(metrics, episodes):
    """Success with its interval, by task and over all."""
    print(f'{"":10s} success   95 % interval   mean length')
    for name, part in parts(episodes):
        rate = metrics[f'evaluation/{name}_success']
        low = metrics[f'evaluation/{name}_low']
        high = metrics[f'evaluation/{name}_high']
        length = np.mean([episode.length for episode in part])
        print(f'{spaced(name):10s} {rate:7.1%}   {low:5.1%} - {high:6.1%}   {length:8.1f}')


def measure(config, path, checkpoint, dataset, acting):
    """Evaluate one checkpoint, `Acting` as it is told -> (metrics with intervals, episodes, agent)."""
    set_seed(config.seed)
    device = choose_device(config.device)
    prepare_cpu(device)
    backend = choose_backend(config.mamba_backend, device)[0]
    with prefix_errors(path):
        agent = OnlineAgent.from_state_dict(acting.told_to(checkpoint['agent']), device, backend)
    acting.check_map(agent, path)

    envs = open_envs(dataset, config.num_envs, make_env, observation_model_of(checkpoint))
    dimensions = envs[0].observation_space.shape[0]
    if dimensions != agent.offline.observation_dim:
        raise ValueError(f'{path} is for observations of {agent.offline.observation_dim} dimensions, '
                         f'the environment has {dimensions}')

    n = config.episodes_per_task
    total = num_tasks(envs[0]) * n
    with tqdm(total=total, desc='evaluation', unit='episode', dynamic_ncols=True, mininterval=1.0) as progress:
        metrics, episodes = evaluate(agent, envs, n, config.seed, progress)

    for name, part in parts(episodes):
        low, high = wilson_interval(sum(episode.success for episode in part), len(part))
        metrics[f'evaluation/{name}_low'] = low
        metrics[f'evaluation/{name}_high'] = high
    metrics['checkpoint'] = str(path)
    metrics['dataset'] = dataset
    metrics['episodes_per_task'] = n
    metrics['seed'] = config.seed
    metrics['plan'] = agent.plans
    metrics['action_scale'] = agent.config.action_scale
    metrics['stuck_noise'] = agent.config.stuck_noise
    return metrics, episodes, agent


def parts(episodes):
    """-> [(name, its episodes)] for each task and all of them together."""
    tasks = sorted({episode.task for episode in episodes})
    by_task = [(f'task{k}', [episode for episode in episodes if episode.task == k]) for k in tasks]
    return [*by_task, ('overall', episodes)]


def spaced(name):
    """'task1' -> 'task 1', as it is printed."""
    return name.replace('task', 'task ')


def compare(path, episodes, other_episodes):
    """Both checkpoints ran the same episodes -> dict of `paired_comparison`s by task and overall; also printed."""
    print(f'\nminus {path}, on the same episodes')
    print(f'{"":10s} difference   95 % interval     only this   only that   p')

    results = {'checkpoint': str(path)}
    for (name, ours), (_, theirs) in zip(parts(episodes), parts(other_episodes), strict=True):
        r = paired_comparison([episode.success for episode in ours], [episode.success for episode in theirs])
        print(f'{spaced(name):10s} {100 * r["difference"]:+8.1f}     {100 * r["low"]:+6.1f} - '
              f'{100 * r["high"]:+6.1f}   {r["only_ours"]:9d}   {r["only_theirs"]:9d}   {r["p_value"]:.3f}')
        results[name] = r
    return results


def main(argv=None):
    run(*parse_flags(__doc__.splitlines()[0], EvaluateConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
