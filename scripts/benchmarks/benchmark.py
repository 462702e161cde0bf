"""How fast OPSO is, as ratios to named peers that run in the same process, in turns with it.

    python scripts/benchmarks/benchmark.py --markdown              # the table of the README, under five minutes on two cores
    python scripts/benchmarks/benchmark.py --quick --only layer    # a few seconds

Every time is the median over rounds; in each round everything that is compared runs once, so that whatever else the
machine does falls on all alike. All run with the settings OPSO runs with, its matrix kernels included
(support/kernels.py).
"""

import argparse
import dataclasses
import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path

import torch
from benchmark_acting import acting, evaluation, loading, online
from benchmark_threads import arithmetic, threads
from benchmark_tools import ROOT  # noqa: F401  makes the modules beside README.md importable
from benchmark_training import cuda, curve, layer, offline, parts

from support.flags import run_main
from support.kernels import choose_matmul_kernels

SECTIONS = {f.__name__: f for f in (threads, arithmetic, layer, curve, offline, parts, acting, online,
                                    evaluation, loading, cuda)}


def seconds_text(seconds):
    scale, unit = next((s, u) for s, u in ((1, 's'), (1e3, 'ms'), (1e6, 'us')) if seconds * s >= 1 or u == 'us')
    return f'{seconds * scale:.3g} {unit}' if seconds else ''


def ratios_text(row):
    return '; '.join(f'{seconds / row.ours:.2g}x {name}' if seconds else f'(not installed: {name})'
                     for name, seconds in row.peers.items())


def machine():
    names = {name: metadata.version(name) for name in ('torch', 'numpy', 'mujoco', 'ogbench', 'transformers', 'mambapy',
                                                       'mamba-ssm')
             if name in {d.metadata['Name'].lower() for d in metadata.distributions()}}
    cpu = platform.processor() or platform.machine()
    if Path('/proc/cpuinfo').exists():
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        cpu = next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), cpu)
    versions = ', '.join(f'{name} {version}' for name, version in names.items())
    return (f'{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s) for torch, '
            f'Python {platform.python_version()}, {versions}')


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='fewer rounds and smaller sizes: under a minute')
    parser.add_argument('--only', default='', help=f'comma-separated sections out of {", ".join(SECTIONS)}')
    parser.add_argument('--device', default='cpu', help='cuda adds the rows of a GPU')
    parser.add_argument('--threads', type=int, default=1, help='threads of torch (default: 1)')
    parser.add_argument('--markdown', action='store_true', help='print a table for a README')
    parser.add_argument('--json', default='', help='file for the numbers')
    parser.add_argument('--figure', default='', help='PNG of the time over the sequence length')
    options = parser.parse_args(argv)
    options.rounds = lambda n: max(2, n // 4) if options.quick else n
    chosen = options.only.split(',') if options.only else list(SECTIONS)
    if unknown := [name for name in chosen if name not in SECTIONS]:
        raise ValueError(f'--only {unknown[0]}: the sections are {", ".join(SECTIONS)}')
    if options.device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError('--device cuda: torch sees no CUDA device here')
    torch.set_num_threads(options.threads)
    choose_matmul_kernels()
    rows, begin = [], time.perf_counter()
    if options.markdown:
        print('| what | ours | ratio: time of the peer over ours | goal | remarks |\n|---|---|---|---|---|')
    for name in chosen:
        for row in SECTIONS[name](options):
            rows.append(dataclasses.asdict(row))
            cells = (row.what, seconds_text(row.ours), ratios_text(row), row.goal, row.note)
            text = '| ' + ' | '.join(cells) + ' |' if options.markdown else '\n    '.join(filter(None, cells))
            print(text, flush=True)
    print(f'\n{machine()}; {time.perf_counter() - begin:.0f} s')
    if options.json:
        Path(options.json).write_text(json.dumps({'machine': machine(), 'rows': rows}, indent=2), encoding='utf-8')


if __name__ == '__main__':
    run_main(main)
