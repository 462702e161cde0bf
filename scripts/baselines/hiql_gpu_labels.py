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

from labeling.labeler import r2_score  # noqa: E402
from online_agent import OnlineAgent  # noqa: E402
from support.files import check_writable, load_checkpoint  # noqa: E402
from support.flags import run_main, summary  # noqa: E402
from support.npz import load_arrays  # noqa: E402
from support.progress import progress_bar  # noqa: E402

ROWS_AT_ONCE = 20_000


def infer(checkpoint, observations):
    """Infer the actions (N, A) between each state and the next; the last row repeats its state."""
    agent = OnlineAgent.from_state_dict(load_checkpoint(checkpoint, 'online')['agent'])
    states = torch.from_numpy(observations)
    steps = torch.stack([states, torch.cat([states[1:], states[-1:]])], 1)
    return torch.cat([agent.label(some) for some in progress_bar(steps.split(ROWS_AT_ONCE), checkpoint)])


def main():
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument('--data_path', required=True, help='npz with observations, terminals and actions')
    parser.add_argument('--checkpoints', nargs='+', required=True, help='last.pth of online runs')
    parser.add_argument('--output', required=True)
    flags = parser.parse_args()

    arrays = load_arrays(flags.data_path, ('observations', 'terminals', 'actions'))
    observations, terminals, true = arrays.values()
    check_writable(flags.output)
    inside = ~terminals.astype(bool)
    actions = [true]
    lines = []
    for checkpoint in flags.checkpoints:
        labels = infer(checkpoint, observations)
        lines.append(f'R2 {r2_score(labels[inside], torch.from_numpy(true[inside])):.3f}: {checkpoint}')
        actions.append(labels.numpy())

    np.savez(flags.output, observations=observations, terminals=terminals, actions=np.stack(actions).astype(np.float16))
    print('\n'.join(lines))


if __name__ == '__main__':
    run_main(main)
