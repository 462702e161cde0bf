"""Measure labels: R2 between the labels of a dataset and its true actions.

    python scripts/data/collect_dataset.py --dataset antmaze-medium-navigate-v0 --num_episodes 10 \\
        --num_val_episodes 1 --output_dir with_actions --seed 77 --no-state_only
    python scripts/analysis/measure_labels.py \\
        --checkpoint online_checkpoints/antmaze-medium-navigate-v0/seed0/last.pth \\
        --actions_path with_actions/antmaze-medium-navigate-v0.npz
    python scripts/analysis/measure_labels.py --labels_path actions.npz \\
        --actions_path with_actions/antmaze-medium-navigate-v0.npz

A checkpoint labels any file of the same robot. The labels of scripts/label_with_simulator.py need the file of
the episodes that they were inferred for. True actions must be in [-1, 1], as in OGBench's files. OPSO itself
does not train on them.
"""

import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from any folder

import support.threads  # noqa: F401, E402  before torch

import torch  # noqa: E402

from labeling.labeler import r2_score  # noqa: E402
from labeling.online_batches import StateStore, label_steps  # noqa: E402
from observing.observation_models import observation_model_of  # noqa: E402
from online_agent import OnlineAgent  # noqa: E402
from support.files import load_checkpoint, prefix_errors  # noqa: E402
from support.flags import flag, parse_flags, run_main  # noqa: E402
from support.kernels import prepare_cpu  # noqa: E402
from support.npz import (  # noqa: E402
    fingerprint_of_actions,
    load_actions,
    load_arrays,  # noqa: E402
    load_trajectories,
)
from trajectories import TrajectoryDataset  # noqa: E402


@dataclasses.dataclass
class LabelConfig:
    """labels and true actions"""
    checkpoint: str = flag('', 'last.pth or best_model.pth of an online run')
    actions_path: str = flag('', 'npz file with `observations`, `terminals` and true `actions` (required)')
    labels_path: str = flag('', 'actions.npz of scripts/label_with_simulator.py, instead of --checkpoint')


def run(config):
    """Print and return the R2 of the labels."""
    if not config.actions_path or bool(config.checkpoint) == bool(config.labels_path):
        raise ValueError('--actions_path is required, and either --checkpoint or --labels_path')

    # load the true actions
    trajectories = load_trajectories(config.actions_path)
    arrays = load_arrays(config.actions_path)
    if 'actions' not in arrays:
        raise ValueError(f'{config.actions_path}: it has no `actions`; collect it with --no-state_only')
    actions = arrays['actions']

    # load or infer the labels
    if config.labels_path:
        rows, labels = labels_of_simulator(config, trajectories)
    else:
        rows, labels = labels_of_checkpoint(config, trajectories)
    if actions.shape[1] != labels.shape[1]:
        raise ValueError(f'{config.actions_path}: actions have {actions.shape[1]} dimensions, those of '
                         f'{config.checkpoint or config.labels_path} have {labels.shape[1]}')

    r2 = r2_score(labels, torch.from_numpy(actions[rows]))
    print(f'R2 of the labels of {len(rows):,} steps: {r2:.3f}')
    return r2


def labels_of_checkpoint(config, trajectories):
    """Return the rows (n,) that the agent would imitate and the actions (n, A) that its labeler infers."""
    checkpoint = load_checkpoint(config.checkpoint, 'online')
    prepare_cpu(torch.device('cpu'))
    with prefix_errors(config.checkpoint):
        agent = OnlineAgent.from_state_dict(checkpoint['agent'])

    observations, starts, ends = trajectories
    observations = observation_model_of(checkpoint).observe_trajectories(observations, starts, ends, seed=0)
    store = StateStore(TrajectoryDataset(observations, starts, ends), agent, caches=False)
    rows = store.source.observed_pairs
    return rows, label_steps(store, rows, agent.label)


def labels_of_simulator(config, trajectories):
    """Return the rows (n,) of all steps and their actions (n, A) in the file of simulator labels."""
    # drop the trajectories that were not labeled
    observations, starts, ends = trajectories
    size = len(load_arrays(config.labels_path, ['terminals'])['terminals'])
    is_labeled = ends < size
    data = TrajectoryDataset(observations[:size], starts[is_labeled], ends[is_labeled])

    if fingerprint_of_actions(config.labels_path) != data.fingerprint():
        raise ValueError(f'{config.labels_path}: its actions are not of the episodes in '
                         f'{config.actions_path}')
    rows = data.transition_rows
    return rows, torch.from_numpy(load_actions(config.labels_path, size)[rows])


def main(argv=None):
    run(*parse_flags(__doc__, LabelConfig, argv=argv))


if __name__ == '__main__':
    run_main(main)
