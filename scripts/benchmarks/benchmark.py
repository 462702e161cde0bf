"""Measure the speed of OPSO as ratios to named peers, which run in turns with it in the same process.

    python scripts/benchmarks/benchmark.py --markdown              # table of docs/speed.md, 5 minutes
    python scripts/benchmarks/benchmark.py --quick --only layer    # a few seconds

Times are medians over rounds. Each round runs all compared functions once, so that other load on the machine
affects them alike. OPSO and peers use OPSO's matrix kernels (support/kernels.py).
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

from support.files import write_atomic
from support.flags import run_main, summary
from support.kernels import choose_matmul_kernels

SECTIONS = {section.__name__: section for section in (
    threads, arithmetic, layer, curve, offline, parts, acting, online, evaluation, loading, cuda)}
PACKAGES = ('torch', 'numpy', 'mujoco', 'ogbench', 'transformers', 'mambapy', 'mamba-ssm')


def seconds_text(seconds):
    """Write a time with its unit; '' for 0."""
    if not seconds:
        return ''
    units = ((1, 's'), (1e3, 'ms'), (1e6, 'us'))
    scale, unit = next((pair for pair in units if seconds * pair[0] >= 1), units[-1])
    return f'{seconds * scale:.3g} {unit}'


def ratios_text(row):
    """Write the ratios of the peers' times over ours."""
    return '; '.join(f'{seconds / row.ours:.2g}x {name}' if seconds else f'(not installed: {name})'
                     for name, seconds in row.peers.items())


def machine():
    """Describe processor, threads and versions of packages in one line."""
    installed = {distribution.metadata['Name'].lower() for distribution in metadata.distributions()}
    versions = ', '.join(f'{name} {metadata.version(name)}' for name in PACKAGES if name in installed)

    cpu = platform.processor() or platform.machine()
    if Path('/proc/cpuinfo').exists():
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        cpu = next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), cpu)
    return (f'{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s) for torch, '
            f'Python {platform.python_version()}, {versions}')


def main(argv=None):
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument('--quick', action='store_true', help='fewer rounds and smaller sizes; under a minute')
    parser.add_argument('--only', default='', help=f'comma-separated sections of {", ".join(SECTIONS)}')
    parser.add_argument('--device', default='cpu', help='cpu or cuda, which adds the rows of a GPU')
    parser.add_argument('--threads', type=int, default=1, help='threads of torch (default: %(default)s)')
    parser.add_argument('--markdown', action='store_true', help='print a Markdown table')
    parser.add_argument('--json', default='', help='file for the times')
    parser.add_argument('--figure', default='', help='.png, .pdf or .svg file of time over sequence length')
    options = parser.parse_args(argv)
    options.rounds = lambda n: max(2, n // 4) if options.quick else n

    # check the flags
    chosen = options.only.split(',') if options.only else list(SECTIONS)
    if unknown := [name for name in chosen if name not in SECTIONS]:
        raise ValueError(f'--only {unknown[0]}: the sections are {", ".join(SECTIONS)}')
    if options.device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError('--device cuda: no CUDA device here; use --device cpu')

    # run the sections and print each row at once
    torch.set_num_threads(options.threads)
    choose_matmul_kernels()
    rows = []
    begin = time.perf_counter()
    if options.markdown:
        print('| what | ours | ratio: time of the peer over ours | goal | remarks |\n|---|---|---|---|---|')
    for name in chosen:
        for row in SECTIONS[name](options):
            rows.append(dataclasses.asdict(row))
            if options.json:  # after each row, since a later section may fail
                content = json.dumps({'machine': machine(), 'rows': rows}, indent=2)
                write_atomic(options.json, lambda file, content=content: file.write(content.encode()))
            cells = (row.what, seconds_text(row.ours), ratios_text(row), row.goal, row.note)
            text = '| ' + ' | '.join(cells) + ' |' if options.markdown else '\n    '.join(filter(None, cells))
            print(text, flush=True)

    print(f'\n{machine()}; {time.perf_counter() - begin:.0f} s')


if __name__ == '__main__':
    run_main(main)
