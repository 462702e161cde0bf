"""Success of the actors that hiql_gpu.py wrote, by numpy alone.

    python scripts/baselines/hiql_gpu_evaluate.py --actors runs/hiql_gpu/large-navigate_70000.npz \
        --dataset antmaze-large-navigate-v0 --low 0 --episodes 50 --output runs/hiql_gpu

Goals, episodes and what counts are those of OGBench's evaluation (its temperature 0: the means of both levels), the
episodes of a task side by side. Adds a line to <output>/<dataset>/evaluations.jsonl.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import ogbench


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))


def actor(weights, name):
    """-> function (n, inputs) -> (n, outputs), the mean of an actor of three layers."""
    def dense(x, place):
        return x @ weights[f"{name}{place}['kernel']"] + weights[f"{name}{place}['bias']"]

    def mean(x):
        for i in range(3):
            x = gelu(dense(x, f"['actor_net']['Dense_{i}']"))
        return dense(x, "['mean_net']")

    weights = {key: value.astype(np.float32) for key, value in weights.items() if key.startswith(f'{name}[')}
    return mean


def run_task(env_name, task, episodes, high, low):
    """-> success of each of the episodes, (episodes,) bool."""
    np.random.seed(1000 + task)
    envs = [ogbench.make_env_and_datasets(env_name, env_only=True) for _ in range(episodes)]
    starts = [env.reset(seed=1000 * task + i, options={'task_id': task}) for i, env in enumerate(envs)]
    states = np.array([state for state, _ in starts], np.float32)
    goals = np.array([info['goal'] for _, info in starts], np.float32)
    successes = np.zeros(episodes, bool)
    running = list(range(episodes))

    while running:
        subgoals = high(np.concatenate([states[running], goals[running]], 1))
        subgoals *= np.sqrt(subgoals.shape[1]) / np.linalg.norm(subgoals, axis=1, keepdims=True)
        actions = low(np.concatenate([states[running], subgoals], 1)).clip(-1, 1)
        still = []
        for i, action in zip(running, actions, strict=True):
            states[i], _, terminated, truncated, info = envs[i].step(action)
            if terminated or truncated:
                successes[i] = info['success']
            else:
                still.append(i)
        running = still
    return successes


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or ' ').splitlines()[0])
    parser.add_argument('--actors', required=True, help='<name>_<updates>.npz')
    parser.add_argument('--dataset', required=True)
    parser.add_argument('--low', type=int, default=0, help='which low-level actor (default: %(default)s, true actions)')
    parser.add_argument('--label_steps', type=int, default=0,
                        help='environment steps that its labels were inferred from; 0: true actions')
    parser.add_argument('--episodes', type=int, default=50, help='of each task (default: %(default)s)')
    parser.add_argument('--output', required=True)
    flags = parser.parse_args()

    weights = dict(np.load(flags.actors, allow_pickle=False))
    high, low = actor(weights, 'high'), actor(weights, f'low{flags.low}')
    row = {'updates': int(Path(flags.actors).stem.rsplit('_', 1)[1]), 'label_steps': flags.label_steps,
           'episodes_per_task': flags.episodes}
    for task in range(1, 6):
        row[f'task{task}'] = float(run_task(flags.dataset, task, flags.episodes, high, low).mean())
    row['overall'] = float(np.mean([row[f'task{task}'] for task in range(1, 6)]))

    folder = Path(flags.output) / flags.dataset
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'evaluations.jsonl', 'a', encoding='utf-8') as lines:
        lines.write(json.dumps(row) + '\n')
    print(json.dumps(row))


if __name__ == '__main__':
    main()
