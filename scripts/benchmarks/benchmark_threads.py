"""The benchmark's section on cores: what a second thread gives, and what is left of an update beside another job.

OpenMP reads its settings once, when torch is loaded, so each arrangement runs in a process of its own:

    python scripts/benchmarks/benchmark_threads.py offline 2      # updates a second with two threads
"""

import contextlib
import os
import subprocess
import sys
import time

from benchmark_tools import ROOT, Row, make_offline, make_online

SPIN = 'while True: pass'  # another job that never waits
# what 85 % on medium-navigate took in November 2026, counted then (commit 6d1074b): 1,500 offline updates with 16
# windows and 8,000 online ones
BEFORE_GFLOP = 46_302


def updates_per_second(half, threads, seconds):
    """Measured in this process, after a warm-up."""
    import numpy as np
    import torch

    from support.kernels import prepare_cpu

    torch.set_num_threads(threads)
    prepare_cpu(torch.device('cpu'))
    rng = np.random.default_rng(0)

    if half == 'offline':
        agent, data = make_offline()

        def update():
            agent.update(data.sample(16, rng))
    else:
        update = online_update(rng)

    warm = time.perf_counter() + 1  # `share_cores` looks four times a second
    while time.perf_counter() < warm:
        update()

    count = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        update()
        count += 1
    return count / (time.perf_counter() - begin)


def online_update(rng):
    agent, data, replay = make_online()
    batches = agent.open_batches(data, replay)
    return lambda: agent.update(batches.sample(rng))


def measure(half, threads, seconds, **environment):
    """`updates_per_second` in a fresh process with these environment variables."""
    command = [sys.executable, __file__, half, str(threads), str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT,
                          env={**os.environ, 'OMP_NUM_THREADS': str(threads), **environment})
    return float(done.stdout.split()[-1])


@contextlib.contextmanager
def busy_process():
    """Another job on the same cores."""
    process = subprocess.Popen([sys.executable, '-c', SPIN])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def threads(options):
    """Ratios of updates a second; a row's `ours` is the time of one update with two threads."""
    seconds = 3 if options.quick else 8
    cores = os.cpu_count()
    rates = {}

    for half in ('offline', 'online'):
        counts = [n for n in (1, 2, 4, 8) if n <= max(2, cores)]
        rates[half] = {n: measure(half, n, seconds) for n in counts}
        gains = ', '.join(f'{n}: {rate / rates[half][1]:.2f}x' for n, rate in rates[half].items())
        yield Row(f'{half} update, 2 threads', 1 / rates[half][2], {'1 thread': 1 / rates[half][1]},
                  '1.5x (1.8x)' if half == 'offline' else '1.3x', f'threads: {gains}; {expected(rates[half])}')

    with busy_process():
        beside = measure('offline', 2, seconds)
    fair = rates['offline'][2] * (cores - 1 + 0.5) / cores if cores > 2 else rates['offline'][2] * 2 / 3
    yield Row('offline update, 2 threads, beside one busy process', 1 / beside, {'its fair share': 1 / fair},
              '0.7x', 'fair: two of three runnable threads on two cores, two thirds of the quiet speed')


def expected(rates):
    """What Amdahl's law says of more cores, from the gain that the second one gave."""
    gain = rates[2] / rates[1]
    serial = max(0.0, 2 / gain - 1)
    predicted = ', '.join(f'{n}: {1 / (serial + (1 - serial) / n):.1f}x' for n in (4, 8) if n not in rates)
    return f'by Amdahl with {serial:.0%} serial, not measured: {predicted}' if predicted else ''


def arithmetic(options):
    """GFLOP of matrix products and convolutions, counted by torch: of one update of each half, and of the demo's."""
    import numpy as np
    from demo import OFFLINE, ONLINE
    from torch.utils.flop_counter import FlopCounterMode

    def count(update):
        with FlopCounterMode(display=False) as counter:
            update()
        return counter.get_total_flops() / 1e9

    def number(flags, name):
        return float(flags[flags.index(f'--{name}') + 1])

    def offline_update(**changes):
        agent, data = make_offline(**changes)
        return lambda: agent.update(data.sample(16, np.random.default_rng(0)))

    offline = count(offline_update())
    online = count(online_update(np.random.default_rng(0)))
    yield Row('arithmetic of an update', 0.0, {}, '', f'offline {offline:.1f} GFLOP, online {online:.1f}')

    first = number(OFFLINE, 'num_updates')
    second = number(ONLINE, 'initial_updates')  # its steps are all random ones
    total = offline * first + online * second
    yield Row('arithmetic of a demo, from nothing to what it prints', 0.0, {}, 'half (a quarter)',
              f'{first:,.0f} offline and {second:,.0f} online updates: {total:,.0f} GFLOP, '
              f'{total / BEFORE_GFLOP:.0%} of {BEFORE_GFLOP:,} (1,500 with 16 windows, 8,000 online)')


if __name__ == '__main__':
    print(updates_per_second(sys.argv[1], int(sys.argv[2]), float(sys.argv[3] if len(sys.argv) > 3 else 8)))
