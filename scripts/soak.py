"""Checks that are too long for tests: trainings killed fifty times, and memory over long trainings.

    python scripts/soak.py kills --count 50
    python scripts/soak.py memory
    python scripts/soak.py size

`kills` kills both trainings with SIGKILL at random moments, often during a save, and resumes them until they
end. After each kill last.pth must load, and the result must equal that of an uninterrupted run to the bit.
`memory` measures the resident memory over 2,000 offline updates and 20,000 online environment steps. `size`
measures the peak memory of both trainings on synthetic files of the size of the two largest official ones.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from any folder

import support.threads  # noqa: F401, E402  before torch

import numpy as np  # noqa: E402
import torch  # noqa: E402

from ogbench_utils import official_shape  # noqa: E402
from support.files import load_checkpoint  # noqa: E402
from support.metrics import read_csv  # noqa: E402

DATA = ['--dataset', 'antmaze-medium-navigate-mini-v0']
TINY = ['--d_model', '32', '--headdim', '16', '--d_state', '8', '--hidden_dim', '64',
        '--context_length', '20', '--batch_size', '8', '--max_trajectories', '20']
COMMANDS = {
    'offline': ['offline_trainer.py', *DATA, *TINY, '--num_updates', '800', '--val_interval', '10',
                '--no-maze_figures'],
    'online': ['online_trainer.py', *DATA, '--random_steps', '1000', '--max_steps', '30000',
               '--initial_updates', '150', '--update_ratio', '0.05', '--batch_size', '4',
               '--eval_interval', '15000', '--eval_episodes', '1', '--final_eval_episodes', '1',
               '--num_envs', '1']}


def start(kind, folder, *flags):
    """Start a training in a process."""
    script, *rest = COMMANDS[kind]
    words = [sys.executable, str(ROOT / script), *rest, '--save_dir', str(folder), *flags]
    if kind == 'online':
        words += ['--offline_checkpoint', str(folder.parent / 'offline-whole' / 'last.pth')]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder.parent,
                            text=True)


def finish(process):
    """Wait for a training; end the program if it failed."""
    error = process.communicate()[1]
    if process.returncode:
        sys.exit(f'the training failed: {error[-2000:]}')


def same(a, b):
    """Return whether nested dicts and lists of tensors and builtins are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def timeless(path):
    """Return the rows of a CSV without their times."""
    return [{k: v for k, v in row.items() if not k.startswith('time')} for row in read_csv(path)]


def kills(kind, count, folder):
    """Kill one training `count` times; end the program if its result differs from an uninterrupted run."""
    whole = folder / f'{kind}-whole'
    broken = folder / f'{kind}-killed'
    last = broken / 'last.pth'
    csv = {'offline': 'train', 'online': 'online'}[kind]

    begin = time.time()
    finish(start(kind, whole))
    seconds = time.time() - begin
    print(f'{kind}: uninterrupted in {seconds:.0f} s', flush=True)

    process = start(kind, broken)
    done = 0
    while done < count:
        while not (broken / 'config.json').exists() and process.poll() is None:
            time.sleep(0.05)

        # every other kill follows a save, so that the run makes progress; the rest may hit the start as well
        if done % 2 == 0:
            wait_for_save(process, last)
        time.sleep(random.uniform(0, 1.5 * seconds / count))
        if process.poll() is not None:
            break

        process.send_signal(signal.SIGKILL)
        process.communicate()
        done += 1
        load_checkpoint(last, kind)
        process = start(kind, broken, '--resume')
    finish(process)

    for name in ('last.pth', 'best_model.pth'):
        contents = [load_checkpoint(run / name) for run in (whole, broken)]
        for content in contents:
            del content['flags']
            content['random'].pop('numpy')
        if not same(*contents):
            sys.exit(f'{kind}: {name} differs after {done} kills')
    if timeless(whole / f'{csv}.csv') != timeless(broken / f'{csv}.csv'):
        sys.exit(f'{kind}: {csv}.csv differs after {done} kills')
    print(f'{kind}: {done} kills, last.pth loaded after each; checkpoints and CSV equal those of the '
          'uninterrupted run to the bit', flush=True)


def wait_for_save(process, path, timeout=120):
    """Wait until a training saves `path` again, ends, or `timeout` seconds have passed."""
    old_time = path.stat().st_mtime if path.exists() else 0
    limit = time.time() + timeout
    while process.poll() is None and time.time() < limit:
        if path.exists() and path.stat().st_mtime > old_time:
            return
        time.sleep(0.005)


def resident(pid):
    """Return the resident memory of a process in MB (Linux)."""
    status = Path(f'/proc/{pid}/status').read_text(encoding='utf-8')
    return int(re.search(r'VmRSS:\s+(\d+)', status)[1]) / 1024


def memory(kind, flags, folder):
    """Print the resident memory at each row of the CSV of a training with default sizes."""
    script = f'{kind}_trainer.py'
    csv = {'offline': 'train.csv', 'online': 'online.csv'}[kind]
    run = folder / kind
    process = subprocess.Popen([sys.executable, str(ROOT / script), *DATA, *flags, '--save_dir', str(run)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    num_rows = 0
    measured = []
    while process.poll() is None:
        rows = read_csv(run / csv) if (run / csv).exists() else []
        if len(rows) > num_rows:
            num_rows = len(rows)
            time.sleep(0.5)
            if process.poll() is None:
                measured.append((int(rows[-1]['step']), resident(process.pid)))
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f'{script} failed')
    sizes = ', '.join(f'{step:,}: {size:.0f}' for step, size in measured)
    print(f'{kind}, resident MB at step: {sizes}', flush=True)


def write_walks(path, trajectories, rows, dimensions):
    """Write a dataset of random walks in the range of a maze, with random other dimensions.

    It is uncompressed and written trajectory by trajectory.
    """
    rng = np.random.default_rng(0)
    observations = np.lib.format.open_memmap(path.with_suffix('.npy'), 'w+', np.float32,
                                             (trajectories * rows, dimensions))
    for i in range(trajectories):
        states = observations[i * rows:(i + 1) * rows]
        walk = rng.uniform(0, 20, 2) + rng.normal(0, 0.2, (rows, 2)).cumsum(0)
        states[:, :2] = np.abs((walk + 20) % 40 - 20)  # reflected at 0 and 20
        states[:, 2:] = rng.standard_normal((rows, dimensions - 2), np.float32)
    observations.flush()
    terminals = np.zeros(trajectories * rows, bool)
    terminals[rows - 1::rows] = True
    np.savez(path, observations=observations, terminals=terminals)
    path.with_suffix('.npy').unlink()


def peak(script, *flags, folder):
    """Run a script and return its peak resident memory in MB (Linux)."""
    words = [sys.executable, str(ROOT / script), *map(str, flags)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               cwd=folder)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f'{script} failed: {error[-2000:]}')
    return usage.ru_maxrss / 1024


def size(name, trajectories, rows, dimensions, folder):
    """Print the peak memory of both trainings; the limits are 1.5 and 2 times the states plus 700 MB."""
    path = folder / f'{name}.npz'
    write_walks(path, trajectories, rows, dimensions)
    write_walks(folder / f'{name}-val.npz', trajectories // 10, rows, dimensions)
    states = trajectories * rows * dimensions * 4 / 2**20
    offline = folder / name / 'offline'

    def show(half, megabytes, factor):
        bound = factor * states + 700
        print(f'{name}, {states:.0f} MB of states, {half}: peak {megabytes:.0f} MB, limit {bound:.0f} MB',
              flush=True)
        if megabytes > bound:
            sys.exit('the peak is above the limit')

    show('offline', peak('offline_trainer.py', '--dataset', name, '--dataset_path', path, '--num_updates', 40,
                         '--val_interval', 20, '--save_dir', offline, folder=folder), 1.5)
    show('online', peak('online_trainer.py', '--dataset', name, '--offline_checkpoint', offline / 'last.pth',
                        '--max_steps', 12_000, '--random_steps', 10_000,
                        '--initial_updates', 30, '--update_ratio', 0, '--final_eval_episodes', 1,
                        '--save_dir', folder / name / 'online', folder=folder), 2.0)
    shutil.rmtree(folder / name)
    path.unlink()


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or ' ').splitlines()[0])
    parser.add_argument('what', choices=('kills', 'memory', 'size'))
    parser.add_argument('--count', type=int, default=50, help='kills of each training (default: %(default)s)')
    options = parser.parse_args()
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.what == 'kills':
            for kind in COMMANDS:
                kills(kind, options.count, folder)
        elif options.what == 'size':
            for name in ('antmaze-medium-explore-v0', 'humanoidmaze-medium-navigate-v0'):
                size(name, *official_shape(name), folder)
        else:
            checkpoint = str(folder / 'offline' / 'last.pth')
            memory('offline', ['--num_updates', '2000', '--log_interval', '100', '--val_interval', '500'],
                   folder)
            memory('online', ['--offline_checkpoint', checkpoint, '--max_steps', '20000',
                              '--random_steps', '2000',
                              '--initial_updates', '400', '--num_envs', '2', '--eval_interval', '10000',
                              '--eval_episodes', '1', '--final_eval_episodes', '1'], folder)


if __name__ == '__main__':
    main()
