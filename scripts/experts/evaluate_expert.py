"""Evaluate the expert that collected the data, which follows the shortest path on the maze's map.

    python scripts/experts/evaluate_expert.py --dataset antmaze-medium-navigate-v0 --noise 0 --seed 12345

The protocol is OGBench's, on the same episodes as `evaluate.py` with this seed. With --noise 0.2 the expert
walks as in the navigate and stitch data: its success is that of a perfect imitator of these states.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts' / 'data')]  # run from any folder

import support.threads  # noqa: F401, E402  before torch

import numpy as np  # noqa: E402
from collect_dataset import CollectConfig  # noqa: E402
from collect_maze import EXPERTS, MazeCollector, expert_path  # noqa: E402

from ogbench_utils import make_env  # noqa: E402
from rollouts import evaluate  # noqa: E402
from support.files import check_writable, write_atomic  # noqa: E402
from support.flags import run_main, summary  # noqa: E402

HUMANOID_HEAD = 23  # index of the head's height in the humanoid's observation
STANDING_HEAD = 1.2  # metres


class Expert:
    """An agent for `rollouts.evaluate` that follows the shortest path, with noise on its actions."""

    def __init__(self, dataset, path, noise, seed, action_scale=1.0):
        path = expert_path(dataset, path)
        self.action_scale = action_scale
        self.collector = MazeCollector(CollectConfig(dataset, 'expert', path, noise, 2, True, seed))
        self.rng = np.random.default_rng(seed)

    def initial_state(self, batch_size):
        return None

    def reset_state(self, state, rows):
        return state

    def read_goal(self, goal):
        return goal

    def act(self, observations, goals, state):
        """Return the actions (B, A) for observations, goals (B, S), and the state."""
        actions = [self.collector.action(self.rng, s, self.collector.direction_to(s[:2], g[:2]))
                   for s, g in zip(observations, goals, strict=True)]
        return self.action_scale * np.stack(actions).astype(np.float32), state


def fallen(dataset, episodes):
    """Return metrics of falls at the end; for the humanoid, also the fraction of time that it stood."""
    last = np.stack([episode.observations[-1] for episode in episodes])
    if dataset.startswith('antmaze'):
        quaternions = last[:, 3:7]
        return {'evaluation/on_its_back': float(np.mean(1 - 2 * np.sum(quaternions[:, 1:3] ** 2, 1) < 0))}

    heads = np.concatenate([episode.observations[:, HUMANOID_HEAD] for episode in episodes])
    return {'evaluation/on_the_ground': float(np.mean(last[:, HUMANOID_HEAD] < STANDING_HEAD)),
            'evaluation/share_standing': float(np.mean(heads > STANDING_HEAD))}


def main():
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument('--dataset', default='antmaze-medium-navigate-v0',
                        help='dataset of an ant or a humanoid (default: %(default)s)')
    parser.add_argument('--noise', type=float, default=0.0,
                        help='standard deviation of the action noise (default: 0)')
    parser.add_argument('--action_scale', type=float, default=1.0, help='factor on its actions (default: 1)')
    parser.add_argument('--episodes_per_task', type=int, default=20, help='(default: 20)')
    parser.add_argument('--seed', type=int, default=0, help='seed of starts, goals and noise (default: 0)')
    parser.add_argument('--expert_path', help='weights of the expert (default: those in datasets/)')
    parser.add_argument('--output', default='', help='JSON file for the metrics')
    flags = parser.parse_args()
    if flags.dataset.split('-')[0].removesuffix('maze') not in EXPERTS:
        raise ValueError(f'--dataset {flags.dataset}: the experts are an ant and a humanoid')
    if flags.output:
        check_writable(flags.output)
    agent = Expert(flags.dataset, flags.expert_path, flags.noise, flags.seed, flags.action_scale)
    envs = [make_env(flags.dataset) for _ in range(8)]
    metrics, episodes = evaluate(agent, envs, flags.episodes_per_task, flags.seed)
    metrics |= fallen(flags.dataset, episodes)
    asked = ('dataset', 'noise', 'action_scale', 'episodes_per_task', 'seed')
    metrics |= {name: getattr(flags, name) for name in asked}
    if flags.output:
        write_atomic(Path(flags.output), lambda file: file.write(json.dumps(metrics, indent=2).encode()))
    print('\n'.join(f'{name:32s} {value}' for name, value in metrics.items()))


if __name__ == '__main__':
    run_main(main)
