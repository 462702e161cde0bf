"""Make a small checkpoint for evaluation out of one that can be trained further.

    python scripts/checkpoints/shrink_checkpoint.py --checkpoint online_checkpoints/NAME/seed0/last.pth \\
        --output small.pth

Replay, optimiser and random generators are dropped, averaged networks replace the trained ones, and matrices
are stored in half precision. `python evaluate.py --checkpoint last.pth --compare small.pth` measures the loss
of success.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from any folder

from support.files import load_checkpoint, save_checkpoint  # noqa: E402
from support.flags import run_main  # noqa: E402


def shrink(checkpoint):
    """Return the acting part of an online checkpoint; equal tensors are one object, which torch writes once.
    """
    agent = dict(checkpoint['agent'])
    offline = dict(agent['offline'])
    targets = half(offline['targets'])
    acting = half(agent['acting'])

    proposer = {name: value for name, value in acting.items() if name.startswith('proposer.')}
    others = {name: value for name, value in acting.items() if name not in proposer}
    offline.update(nets=half(offline['nets']) | targets | proposer, targets=targets, optimizer=None)
    agent.update(offline=offline, trained=half(agent['trained']) | others, acting=acting, optimizer=None)
    return {name: checkpoint[name] for name in ('kind', 'dataset', 'data')} | {'agent': agent}


def half(weights):
    """Return the weights with matrices, but not vectors such as means of states, in half precision."""
    return {name: value.half() if value.is_floating_point() and value.dim() > 1 else value
            for name, value in weights.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--checkpoint', required=True, help='last.pth or best_model.pth of an online run')
    parser.add_argument('--output', required=True, help='file to write')
    flags = parser.parse_args()
    save_checkpoint(Path(flags.output), shrink(load_checkpoint(flags.checkpoint, 'online')))
    sizes = [Path(path).stat().st_size / 1e6 for path in (flags.checkpoint, flags.output)]
    print(f'{flags.output}: {sizes[1]:.1f} MB, {flags.checkpoint}: {sizes[0]:.1f} MB')


if __name__ == '__main__':
    run_main(main)
