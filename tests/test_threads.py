"""OpenMP threads spin while cores are free and sleep while they are crowded; user settings stay."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import threads

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME')


def run(code, **settings):
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS} | settings
    return subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
                          check=True).stdout.split()


@pytest.mark.parametrize('name', ['offline_trainer', 'online_trainer', 'evaluate', 'model'])
def test_scripts_set_openmp_variables_before_importing_torch(name):
    """OpenMP reads them once, while torch is imported: what is set later does nothing."""
    found = run(f"""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == 'torch':
            print(*(os.environ.get(name) for name in {SETTINGS}))
            os._exit(0) if sys.stdout.flush() is None else None
sys.meta_path.insert(0, Watch())
import {name}
""")
    assert found == ['None', threads.SPINS, '0']


@pytest.mark.parametrize('settings', [{'OMP_WAIT_POLICY': 'ACTIVE'}, {'GOMP_SPINCOUNT': '7'}])
def test_share_cores_keeps_user_settings(settings):
    code = f"""
import os
from support import threads
threads.share_cores()
print(*(os.environ.get(name) for name in {SETTINGS}), threads._watcher)
"""
    assert run(code, **settings) == [settings.get(name, 'None') for name in SETTINGS] + ['None']


def test_share_cores_works_in_child_processes():
    """They inherit what the first one set, which is not a user's choice."""
    code = 'from support import threads; threads.share_cores(); print(threads._watcher is not None)'
    expected = str(threads.waiting_time() is not None)
    assert run(code) == run(code, GOMP_SPINCOUNT=threads.SPINS, KMP_BLOCKTIME='0') == [expected]


@pytest.mark.skipif(threads.waiting_time() is None, reason='needs /proc/self/task/*/schedstat')
def test_share_cores_suppresses_spinning_while_cores_are_crowded():
    """libgomp spins shortly while it has more threads than cores: they come when our threads wait for cores, and all of
    them leave when the cores are free again."""
    found = run("""
import os, time
from support import threads
import torch
if not threads._libgomp():
    raise SystemExit(print('other'))
time_waited, per_look = 0.0, 0.0
def waited():
    global time_waited
    time_waited += per_look
    return time_waited
threads.waiting_time, threads.INTERVAL = waited, 0.02
torch.ones(1 << 20).add_(1)

def tasks():
    return len(os.listdir('/proc/self/task'))

def wait_until(received):
    for _ in range(500):
        if received():
            break
        time.sleep(0.02)
    return tasks()

threads.share_cores()
before, per_look = tasks(), 0.02
crowded, per_look = wait_until(lambda: tasks() > before + 1), 0.0
print(before, crowded, wait_until(lambda: tasks() == before))
""")
    if found == ['other']:
        pytest.skip('torch brought another OpenMP')
    before, crowded, after = map(int, found)
    assert crowded > threads.cores()  # with those that spin
    assert before == after < crowded
