"""Evaluate an online checkpoint by OGBench's protocol: every task, success at the last step.

    python evaluate.py --checkpoint online_checkpoints/antmaze-medium-navigate-v0/seed0/last.pth
    --episodes_per_task 50
    python evaluate.py --checkpoint A/last.pth --compare B/last.pth    on the same episodes
    python evaluate.py --checkpoint A/last.pth --compare A/last.pth --compare_set plan=False    the worth of planning
    python evaluate.py --checkpoint A/last.pth --stuck_noise 1         noise while the robot is stuck
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
from online_agent import OnlineAgent, OnlineConfig
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
    dataset: str = flag('', 'dataset (or module:factory) whose environment replaces the one trained in')
    episodes_per_task: int = flag(50, 'episodes of each task', least=1)
    num_envs: int = flag(8, 'episodes run side by side', least=1)
    seed: int = flag(0, 'seed of starts and goals, the same for every checkpoint', least=0, most=2**32 - 1)
    device: str = flag('auto', 'auto, cpu, cuda or mps')
    mamba_backend: str = flag('auto', 'implementation of the Mamba-2 scan', choices=('auto', 'torch', 'mamba_ssm'))
    plan: bool | None = flag(None, 'planning on the graph of the data (default: as trained)', type=bool)
    action_scale: float | None = flag(None, 'factor on predicted actions (default: as trained)', type=float, above=0)
    stuck_noise: float | None = flag(None, 'std of action noise once stuck (default: as trained)', type=float, least=0)
    compare: str = flag('', 'second checkpoint, evaluated on the same episodes')
    compare_set: str = flag('', 'settings of --compare, such as plan=False,action_scale=1')
    video: bool = flag(False, 'videos of one episode per task; needs EGL or OSMesa')
    output: str = flag('', 'JSON file for the metrics; default: evaluation.json beside the checkpoint')


@dataclasses.dataclass
class ActOverrides:
    """Settings of acting that replace those of a checkpoint; None: as trained."""

    plan: bool | None = None
    action_scale: float | None = None
    stuck_noise: float | None = None

    @classmethod
    def parse(cls, text):
        """Read 'name=value,name=value'. Raises ValueError that names the flag and the settings
        there are."""
        names = [field.name for field in dataclasses.fields(cls)]
        values = {}
        for part in filter(None, text.split(',')):
            name, _, value = part.partition('=')
            if name not in names:
                raise ValueError(f'--compare_set {text}: must be name=value with a name of {", ".join(names)}')
            try:
                values[name] = {'True': True, 'False': False}[value] if name == 'plan' else float(value)
            except (KeyError, ValueError):
                raise ValueError(f'--compare_set {text}: {name} cannot be {value!r}') from None
        check_ranges(OnlineConfig(**values))
        return cls(**values)

    def apply(self, state):
        """Return what `OnlineAgent.state_dict` returned, with these settings."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return state | {'config': state['config'] | given}


def run(config):
    """Evaluate one checkpoint, or two on the same episodes: print, write JSON, draw.

    Returns:
        Dict of metrics with OGBench's names, and intervals.
    """
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

    overrides = ActOverrides(config.plan, config.action_scale, config.stuck_noise)
    compared = ActOverrides.parse(config.compare_set)
    metrics, episodes, agent = measure(config, config.checkpoint, checkpoint, dataset, overrides)
    print_table(metrics, episodes)
    pictures = [output.with_name(f'{output.stem}_{kind}.png')]
    draw_evaluation(maze, agent.offline, episodes, pictures[0], title(dataset, metrics))

    if config.compare:
        others, other_episodes, agent = measure(config, config.compare, other, dataset, compared)
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
    """Return the title of a figure."""
    return f'{dataset}, success {metrics["evaluation/overall_success"]:.0%}'


def print_table(metrics, episodes):
    """Print success with its interval, by task and over all."""
    print(f'{"":10s} success   95 % interval   mean length')
    for name, part in parts(episodes):
        rate = metrics[f'evaluation/{name}_success']
        low = metrics[f'evaluation/{name}_low']
        high = metrics[f'evaluation/{name}_high']
        length = np.mean([episode.length for episode in part])
        print(f'{spaced(name):10s} {rate:7.1%}   {low:5.1%} - {high:6.1%}   {length:8.1f}')


def measure(config, path, checkpoint, dataset, overrides):
    """Evaluate one checkpoint with ActOverrides; return metrics with intervals, episodes and the
    agent."""
    set_seed(config.seed)
    device = choose_device(config.device)
    prepare_cpu(device)
    backend = choose_backend(config.mamba_backend, device)[0]
    with prefix_errors(path):
        agent = OnlineAgent.from_state_dict(overrides.apply(checkpoint['agent']), device, backend)

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
    metrics['plan'] = agent.config.plan
    metrics['action_scale'] = agent.config.action_scale
    metrics['stuck_noise'] = agent.config.stuck_noise
    return metrics, episodes, agent


def parts(episodes):
    """Return pairs of a name and its episodes, for each task and for all together."""
    tasks = sorted({episode.task for episode in episodes})
    by_task = [(f'task{k}', [episode for episode in episodes if episode.task == k]) for k in tasks]
    return [*by_task, ('overall', episodes)]


def spaced(name):
    """Turn 'task1' into 'task 1', for print."""
    return name.replace('task', 'task ')


def compare(path, episodes, other_episodes):
    """Compare two checkpoints on the same episodes; print and return `paired_comparison`s by task
    and overall."""
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
