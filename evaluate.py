"""Evaluate an online checkpoint by OGBench's protocol: five tasks, success at the last step of an episode.

    python evaluate.py --checkpoint online_checkpoints/antmaze-medium-navigate-v0/seed0/last.pth --episodes_per_task 50
"""

import dataclasses
import json
from pathlib import Path

from tqdm import tqdm

from maze_figures import Maze, draw_paths
from model import choose_backend
from ogbench_utils import make_env
from online_agent import OnlineAgent
from rollouts import evaluate
from runs import load_checkpoint, write_atomic
from stats import wilson_interval
from utils import choose_device, flag, parse_flags, run_main, set_seed
from workers import open_envs


@dataclasses.dataclass
class EvaluateConfig:
    """what to evaluate, and how long"""
    checkpoint: str = flag('', 'last.pth or best_model.pth of an online run (required)')
    dataset: str = flag('', 'evaluate in the environment of this dataset instead of the one trained in')
    episodes_per_task: int = flag(50, 'episodes of each of the five tasks')
    num_envs: int = flag(8, 'episodes run side by side')
    env_processes: int = flag(0, 'processes for the environments; 0: one per core, at most 4; results are the same')
    seed: int = flag(0, 'seed of starts and goals; episode (task, i) is the same for every checkpoint')
    device: str = flag('auto', 'auto, cpu, cuda or mps')
    mamba_backend: str = flag('auto', 'implementation of the Mamba-2 scan', choices=('auto', 'torch', 'mamba_ssm'))
    output: str = flag('', 'JSON file for the numbers; default evaluation.json beside the checkpoint')


def run(config):
    """-> dict of metrics, OGBench's names, with intervals; also printed and written as JSON."""
    if not config.checkpoint:
        raise ValueError('--checkpoint is required: last.pth or best_model.pth of an online run')
    if min(config.episodes_per_task, config.num_envs) < 1:
        raise ValueError('--episodes_per_task and --num_envs must be at least 1')
    set_seed(config.seed)
    device = choose_device(config.device)
    content = load_checkpoint(config.checkpoint, 'online')
    agent = OnlineAgent.from_checkpoint(content['agent'], device, choose_backend(config.mamba_backend, device)[0])
    envs = open_envs(config.dataset or content['dataset'], config.num_envs, config.env_processes, make_env)
    if envs[0].observation_space.shape[0] != agent.offline.observation_dim:
        raise ValueError(f'{config.checkpoint} is for observations of {agent.offline.observation_dim} dimensions, '
                         f'the environment has {envs[0].observation_space.shape[0]}')
    n = config.episodes_per_task
    with tqdm(total=5 * n, desc='evaluation', unit='episode', dynamic_ncols=True, mininterval=1.0) as progress:
        metrics, episodes = evaluate(agent, envs, n, config.seed, progress)
    print(f'{"":10s} success   95 % interval   mean length')
    for name, part in [(f'task {k}', [e for e in episodes if e['task'] == k]) for k in range(1, 6)] + [
            ('overall', episodes)]:
        low, high = wilson_interval(sum(e['success'] for e in part), len(part))
        key = 'overall' if name == 'overall' else name.replace(' ', '')
        metrics |= {f'evaluation/{key}_low': low, f'evaluation/{key}_high': high}
        print(f'{name:10s} {metrics[f"evaluation/{key}_success"]:7.1%}   {low:5.1%} - {high:6.1%}   '
              f'{sum(e["length"] for e in part) / len(part):8.1f}')
    output = Path(config.output or Path(config.checkpoint).with_name('evaluation.json'))
    metrics |= {'checkpoint': config.checkpoint, 'episodes_per_task': n, 'seed': config.seed}
    write_atomic(output, lambda file: file.write(json.dumps(metrics, indent=2).encode()))
    picture = output.with_name(f'{output.stem}_paths.png')
    draw_paths(Maze(make_env(config.dataset or content['dataset'])), episodes, picture,
               f'{content["dataset"]}, success {metrics["evaluation/overall_success"]:.0%}')
    print(f'written: {output}, {picture}')
    return metrics


def main(argv=None):
    run(*parse_flags(__doc__.splitlines()[0], EvaluateConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
