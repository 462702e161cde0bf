"""True actions, and what agents of OPSO inferred in their place, in one file for hiql_gpu.py.

    python scripts/baselines/hiql_gpu_labels.py --data_path data_actions/antmaze-large-navigate-v0.npz --checkpoints \
        reproduced/steps-200/antmaze-large-navigate-v0/seed16/online/last.pth \
        reproduced/main/antmaze-large-navigate-v0/seed16/online/last.pth --output hiql_data/large-navigate.npz

It has `observations` (N, S), `terminals` (N,) and `actions` (1 + checkpoints, N, A), float16, the true ones first.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from any folder

import support.threads  # noqa: F401, E402  before torch

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from labeling.labeler import r2_score  # noqa: E402
from online_agent import OnlineAgent  # noqa: E402
from support.files import load_checkpoint  # noqa: E402
from support.flags import run_main  # noqa: E402

ROWS_AT_ONCE = 20_000


def infer(checkpoint, observations):
    """Infer the actions (N, A) between each state and the next; the last row repeats its state."""
    agent = OnlineAgent.from_state_dict(load_checkpoint(checkpoint, 'online')['agent'])
    states = torch.from_numpy(observations)
    steps = torch.stack([states, torch.cat([states[1:], states[-1:]])], 1)
    return torch.cat([agent.label(some) for some in tqdm(steps.split(ROWS_AT_ONCE), checkpoint)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data_path', required=True, help='npz with observations, terminals and actions')
    parser.add_argument('--checkpoints', nargs='+', required=True, help='last.pth of online runs')
    parser.add_argument('--output', required=True)
    flags = parser.parse_args()

    with np.load(flags.data_path, allow_pickle=False) as file:
        observations, terminals, true = file['observations'], file['terminals'], file['actions']
    inside = ~terminals.astype(bool)
    actions = [true]
    for checkpoint in flags.checkpoints:
        labels = infer(checkpoint, observations)
        print(f'R2 {r2_score(labels[inside], torch.from_numpy(true[inside])):.3f}: {checkpoint}')
        actions.append(labels.numpy())

    Path(flags.output).parent.mkdir(parents=True, exist_ok=True)
    np.savez(flags.output, observations=observations, terminals=terminals, actions=np.stack(actions).astype(np.float16))


if __name__ == '__main__':
    run_main(main)
