"""Make a small checkpoint that acts like a large one: for giving away, not for going on with.

    python scripts/shrink_checkpoint.py --checkpoint online_checkpoints/NAME/seed0/last.pth --output small.pth

Replay, optimiser and generators go; averaged networks stand for those they are averages of; matrices are kept in half
precision. `python evaluate.py --checkpoint last.pth --compare small.pth` says what that costs.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from support.files import load_checkpoint, save_checkpoint  # noqa: E402
from support.flags import run_main  # noqa: E402


def shrink(checkpoint):
    """An online checkpoint -> what of it acts; equal tensors are one object, which torch writes once."""
    agent = dict(checkpoint['agent'])
    offline = dict(agent['offline'])
    targets = half(offline['targets'])
    acting = half(agent['acting'])

    proposer = {name: value for name, value in acting.items() if name.startswith('proposer.')}
    others = {name: value for name, value in acting.items() if name not in proposer}
    offline.update(nets=half(offline['nets']) | targets | proposer, targets=targets, optimizer=None)
    agent.update(offline=offline, trained=half(agent['trained']) | others, acting=acting, optimizer=None)
    return {'kind': checkpoint['kind'], 'dataset': checkpoint['dataset'], 'data': checkpoint['data'], 'agent': agent}


def half(weights):
    """Matrices only: small numbers like the means of the observations need their digits."""
    return {name: value.half() if value.is_floating_point() and value.dim() > 1 else value
            for name, value in weights.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--checkpoint', required=True, help='last.pth or best_model.pth of an online run')
    parser.add_argument('--output', required=True, help='file to write')
    flags = parser.parse_args()
    save_checkpoint(Path(flags.output), shrink(load_checkpoint(flags.checkpoint, 'online')))
    sizes = [Path(path).stat().st_size / 1e6 for path in (flags.checkpoint, flags.output)]
    print(f'{flags.output}: {sizes[1]:.1f} MB instead of {sizes[0]:.1f}')


if __name__ == '__main__':
    run_main(main)
