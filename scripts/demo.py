"""Train a small OPSO agent on the bundled data, offline and online: three to six minutes on two cores.

    python scripts/demo.py --save_dir demo_run
"""

import argparse
import csv
import itertools
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from any folder

from support.flags import run_main, summary  # noqa: E402

DATASET = 'antmaze-medium-navigate-mini-v0'
OFFLINE = ['--num_updates', '60']
ONLINE = ['--max_steps', '3000', '--num_envs', '10', '--eval_episodes', '2', '--final_eval_episodes', '10']


def main():
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument('--save_dir', default='demo_run',
                        help='folder of the runs; -2, -3, … is added if it exists (default: %(default)s)')
    folder = new_folder(Path(parser.parse_args().save_dir).resolve())
    offline = folder / 'offline'
    online = folder / 'online'

    begin = time.time()
    run('offline_trainer.py', '--dataset', DATASET, '--save_dir', offline, *OFFLINE)
    run('online_trainer.py', '--dataset', DATASET, '--offline_checkpoint', offline / 'last.pth',
        '--save_dir', online, *ONLINE)

    with open(online / 'online.csv', newline='') as file:
        last = list(csv.DictReader(file))[-1]
    print(f'\ndone in {(time.time() - begin) / 60:.1f} minutes')
    rates = [float(last[f'evaluation/task{k}_success']) for k in range(1, 6)]
    print('success by task: ' + '  '.join(f'{k}: {rate:.0%}' for k, rate in enumerate(rates, 1)))
    for path in (offline / 'training_curves.png', online / 'online_training_curves.png', online / 'last.pth'):
        print(path)


def new_folder(base):
    """Return `base`, or the first of <base>-2, <base>-3, … that does not exist."""
    names = itertools.chain([base], (Path(f'{base}-{i}') for i in itertools.count(2)))
    return next(path for path in names if not path.exists())


def run(script, *arguments):
    """Print and run a command; end the program if it fails."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    print('$ ' + ' '.join(['python', script, *map(str, arguments)]), flush=True)
    code = subprocess.run(command, cwd=ROOT).returncode
    if code:
        sys.exit(code)


if __name__ == '__main__':
    run_main(main)
