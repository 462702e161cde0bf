"""A small OPSO run on the bundled data, offline and online, that takes three minutes on two cores.

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
DATASET = 'antmaze-medium-navigate-mini-v0'
OFFLINE = ['--num_updates', '500', '--val_interval', '250']
ONLINE = ['--max_steps', '2000', '--initial_updates', '3000', '--final_eval_episodes', '20']


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--save_dir', default='demo_run', help='folder of the two runs; -2, -3, … is added if it is '
                        'there already (default: %(default)s)')
    base = Path(parser.parse_args().save_dir).resolve()
    taken = (Path(f'{base}-{i}') for i in itertools.count(2))
    folder = base if not base.exists() else next(path for path in taken if not path.exists())
    offline, online, begin = folder / 'offline', folder / 'online', time.time()
    run('offline_trainer.py', '--dataset', DATASET, '--save_dir', offline, *OFFLINE)
    run('online_trainer.py', '--dataset', DATASET, '--offline_checkpoint', offline / 'last.pth', '--save_dir', online,
        *ONLINE)
    with open(online / 'online.csv', newline='') as file:
        last = list(csv.DictReader(file))[-1]
    print(f'\ndone in {(time.time() - begin) / 60:.1f} minutes')
    rates = [float(last[f'evaluation/task{k}_success']) for k in range(1, 6)]
    print('success by task: ' + '  '.join(f'{k}: {rate:.0%}' for k, rate in enumerate(rates, 1)))
    for path in (offline / 'training_curves.png', online / 'online_training_curves.png', online / 'last.pth'):
        print(path)


def run(script, *arguments):
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    print('$ ' + ' '.join(['python', script, *map(str, arguments)]), flush=True)
    code = subprocess.run(command, cwd=ROOT).returncode
    if code:
        sys.exit(code)


if __name__ == '__main__':
    main()
