"""Shrink an online checkpoint to what acting needs. A shrunk checkpoint cannot be resumed.

    python scripts/checkpoints/shrink_checkpoint.py \\
        --checkpoint online_checkpoints/NAME/seed0/last.pth --output small.pth
    python evaluate.py --checkpoint online_checkpoints/NAME/seed0/last.pth --compare small.pth

The replay, the optimiser and the generators are dropped, and of the data's path the folder. Moving averages
replace the networks that they average. Matrices of networks that a planning agent does not use (Q, V, proposer,
prediction heads) are stored in half precision.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from any folder

import support.threads  # noqa: F401, E402  before torch

from support.files import load_checkpoint, save_checkpoint  # noqa: E402
from support.flags import run_main, summary  # noqa: E402


def shrink(checkpoint):
    """Return the shrunk checkpoint. Equal tensors are one object, which torch writes once."""
    agent = dict(checkpoint['agent'])

    # the offline networks, with their targets in place of encoder and V
    offline = dict(agent['offline'])
    targets = halve_matrices(offline['targets'])
    nets = halve_matrices(offline['nets']) | targets
    agent['offline'] = offline | {'nets': nets, 'targets': targets, 'optimizer': None}

    # the online networks
    agent |= {'nets': agent['ema_nets'], 'optimizer': None}

    return {
        'kind': checkpoint['kind'],
        'dataset': checkpoint['dataset'],
        'data': checkpoint['data'] | {'path': Path(checkpoint['data']['path']).name},
        'agent': agent,
    }


def halve_matrices(weights):
    """Return a state_dict with matrices in half precision, except those of the encoder. Vectors keep theirs."""
    halved = {}
    for name, value in weights.items():
        is_matrix = value.is_floating_point() and value.dim() > 1
        halved[name] = value.half() if is_matrix and not name.startswith('encoder.') else value
    return halved


def main():
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument('--checkpoint', required=True, help='last.pth or best_model.pth of an online run')
    parser.add_argument('--output', required=True, help='file to write')
    flags = parser.parse_args()

    save_checkpoint(Path(flags.output), shrink(load_checkpoint(flags.checkpoint, 'online')))
    sizes = [Path(path).stat().st_size / 1e6 for path in (flags.checkpoint, flags.output)]
    print(f'written: {flags.output}; {sizes[0]:.1f} MB became {sizes[1]:.1f} MB')


if __name__ == '__main__':
    run_main(main)
