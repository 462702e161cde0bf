"""Sections of the benchmark on threads, other jobs and arithmetic; `benchmark.py` runs them.

OpenMP reads its settings once, when torch is loaded, so that each measurement runs in a process of its own:

    python scripts/benchmarks/benchmark_threads.py offline 2      # updates per second with two threads
"""

import contextlib
import os
import subprocess
import sys
import time

from benchmark_tools import ROOT, Row, make_offline, make_online

BUSY_LOOP = 'while True: pass'  # a job that never waits
# for 85 % on medium-navigate at commit 6d1074b: 1,500 offline updates with 16 windows, 8,000 online updates
REFERENCE_GFLOP = 46_302


def updates_per_second(half, threads, seconds):
    """Measure the updates per second of a half in this process, after a warm-up."""
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

    warm_up_end = time.perf_counter() + 1  # s; `share_cores` measures four times per second
    while time.perf_counter() < warm_up_end:
        update()

    count = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        update()
        count += 1
    return count / (time.perf_counter() - begin)


def online_update(rng):
    """Return a function that makes an online update."""
    agent, data, replay = make_online()
    batches = agent.open_batches(data, replay)
    return lambda: agent.update(batches.sample(rng))


def measure(half, threads, seconds, **environment):
    """Run `updates_per_second` in a fresh process with the given environment variables."""
    command = [sys.executable, __file__, half, str(threads), str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT,
                          env={**os.environ, 'OMP_NUM_THREADS': str(threads), **environment})
    return float(done.stdout.split()[-1])


@contextlib.contextmanager
def busy_process():
    """Run another job on the same cores."""
    process = subprocess.Popen([sys.executable, '-c', BUSY_LOOP])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def threads(options):
    """Time an update with two threads, with one thread, and beside another job."""
    seconds = 3 if options.quick else 8
    cores = os.cpu_count()
    rates = {}

    for half in ('offline', 'online'):
        counts = [n for n in (1, 2, 4, 8) if n <= max(2, cores)]
        rates[half] = {n: measure(half, n, seconds) for n in counts}
        speedups = ', '.join(f'{n}: {rate / rates[half][1]:.2f}x' for n, rate in rates[half].items())
        yield Row(f'{half} update, 2 threads', 1 / rates[half][2], {'1 thread': 1 / rates[half][1]},
                  '1.5x (1.8x)' if half == 'offline' else '1.3x',
                  f'threads: {speedups}; {predicted_speedups(rates[half])}')

    with busy_process():
        beside = measure('offline', 2, seconds)
    fair = rates['offline'][2] * (cores - 1 + 0.5) / cores if cores > 2 else rates['offline'][2] * 2 / 3
    yield Row('offline update, 2 threads, beside one busy process', 1 / beside, {'fair fraction': 1 / fair},
              '0.7x', 'fair: two of three runnable threads on two cores, two thirds of the speed alone')


def predicted_speedups(rates):
    """Predict the speedup on more cores by Amdahl's law from that of two threads; '' if all are measured."""
    speedup = rates[2] / rates[1]
    serial = max(0.0, 2 / speedup - 1)
    predicted = ', '.join(f'{n}: {1 / (serial + (1 - serial) / n):.1f}x' for n in (4, 8) if n not in rates)
    return f'by Amdahl with {serial:.0%} serial, not measured: {predicted}' if predicted else ''


def arithmetic(options):
    """Count the GFLOP of matrix products and convolutions in an update of each half and in the demo."""
    import numpy as np
    from demo import OFFLINE, ONLINE
    from torch.utils.flop_counter import FlopCounterMode

    def count(update):
        with FlopCounterMode(display=False) as counter:
            update()
        return counter.get_total_flops() / 1e9

    def value_of(flags, name):
        return float(flags[flags.index(f'--{name}') + 1])

    def offline_update(**changes):
        agent, data = make_offline(**changes)
        return lambda: agent.update(data.sample(16, np.random.default_rng(0)))

    offline = count(offline_update())
    online = count(online_update(np.random.default_rng(0)))
    yield Row('arithmetic of an update', 0.0, {}, '',
              f'offline {offline:.1f} GFLOP, online {online:.1f} GFLOP')

    offline_count = value_of(OFFLINE, 'num_updates')
    online_count = value_of(ONLINE, 'initial_updates')  # the demo's environment steps are all random
    total = offline * offline_count + online * online_count
    yield Row('arithmetic of the demo', 0.0, {}, 'half (a quarter)',
              f'{offline_count:,.0f} offline and {online_count:,.0f} online updates: {total:,.0f} GFLOP, '
              f'{total / REFERENCE_GFLOP:.0%} of {REFERENCE_GFLOP:,} (1,500 with 16 windows, 8,000 online)')


if __name__ == '__main__':
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 8.0
    print(updates_per_second(sys.argv[1], int(sys.argv[2]), seconds))
