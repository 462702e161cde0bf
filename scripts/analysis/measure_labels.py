"""How good are labels, of a checkpoint or of scripts/label_with_simulator.py? The share of the variance of true actions (R2) that they
explain.

    python scripts/data/collect_dataset.py --dataset antmaze-medium-navigate-v0 --num_episodes 10 --num_val_episodes 1 \\
        --output_dir with_actions --seed 77 --no-state_only
    python scripts/analysis/measure_labels.py --checkpoint online_checkpoints/antmaze-medium-navigate-v0/seed0/last.pth \\
        --actions_path with_actions/antmaze-medium-navigate-v0.npz
    python scripts/analysis/measure_labels.py --rehearsed_path actions.npz \\
        --actions_path with_actions/antmaze-medium-navigate-v0.npz

Of a checkpoint, any file of the same robot will do; of scripts/label_with_simulator.py, it must be the same episodes.
A diagnosis: OPSO never reads actions of data. Those in the file must be in [-1, 1], as in OGBench's.
"""

import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from any folder

import support.threads  # noqa: F401, E402  before torch

import numpy as np  # noqa: E402
import torch  # noqa: E402

from labeling.labeler import explained  # noqa: E402
from observing.observation_models import observation_model_of  # noqa: E402
from online_agent import OnlineAgent  # noqa: E402
from online_batches import label_rows  # noqa: E402
from support.files import load_checkpoint, prefix_errors  # noqa: E402
from support.flags import flag, parse_flags, run_main  # noqa: E402
from support.kernels import prepare_cpu  # noqa: E402
from support.npz import fingerprint_of_actions, load_actions, load_trajectories  # noqa: E402
from trajectories import TrajectoryDataset  # noqa: E402


@dataclasses.dataclass
class LabelConfig:
    """what to measure"""
    checkpoint: str = flag('', 'last.pth or best_model.pth of an online run')
    actions_path: str = flag('', 'npz file with `observations`, `terminals` and `actions` of the same robot (required)')
    rehearsed_path: str = flag('', 'actions.npz of scripts/label_with_simulator.py instead of a checkpoint')


def run(config):
    """-> R2; also printed."""
    if not config.actions_path or bool(config.checkpoint) == bool(config.rehearsed_path):
        raise ValueError('--actions_path is required, and --checkpoint or --rehearsed_path')

    trajectories = load_trajectories(config.actions_path)
    with np.load(config.actions_path, allow_pickle=False) as file:
        if 'actions' not in file:
            raise ValueError(f'{config.actions_path}: there are no `actions` in it; collect it with --no-state_only')
        actions = file['actions']

    if config.rehearsed_path:
        rows, labels = labels_of_rehearsal(config, trajectories)
    else:
        rows, labels = labels_of_checkpoint(config, trajectories)
    if actions.shape[1] != labels.shape[1]:
        raise ValueError(f'{config.actions_path}: actions of {actions.shape[1]} numbers, '
                         f'{config.checkpoint or config.rehearsed_path} has {labels.shape[1]}')

    r2 = explained(labels, torch.from_numpy(actions[rows]))
    print(f'R2 of the labels of {len(rows):,} steps that are imitated: {r2:.3f}')
    return r2


def labels_of_checkpoint(config, trajectories):
    """-> rows (n,) of the steps that its agent would imitate, and what its labeler infers of them (n, A)."""
    checkpoint = load_checkpoint(config.checkpoint, 'online')
    prepare_cpu(torch.device('cpu'))
    with prefix_errors(config.checkpoint):
        agent = OnlineAgent.from_state_dict(checkpoint['agent'])

    observations, starts, ends = trajectories
    observations = observation_model_of(checkpoint).observe_trajectories(observations, starts, ends, seed=0)
    store = agent.latent_store(TrajectoryDataset(observations, starts, ends), cached=False)
    return store.transition_rows, label_rows(store, store.transition_rows, agent.label)


def labels_of_rehearsal(config, trajectories):
    """-> rows (n,) of all steps, and the actions that were found for them (n, A)."""
    observations, starts, ends = trajectories
    with np.load(config.rehearsed_path, allow_pickle=False) as file:
        size = len(file['terminals'])
    kept = ends < size
    data = TrajectoryDataset(observations[:size], starts[kept], ends[kept])
    if fingerprint_of_actions(config.rehearsed_path) != data.fingerprint():
        raise ValueError(f'{config.rehearsed_path}: its actions are not of the episodes in {config.actions_path}')
    return data.transition_rows, torch.from_numpy(load_actions(config.rehearsed_path, size)[data.transition_rows])


def main(argv=None):
    run(*parse_flags(__doc__.splitlines()[0], LabelConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
