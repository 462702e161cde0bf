"""Nothing that nobody asked for: no window or GL library, no network, no file elsewhere; and the seed decides all."""

import getpass
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import offline_trainer
from ogbench_utils import BUNDLED_NAME
from support.files import load_checkpoint
from support.metrics import read_csv

ROOT = Path(__file__).resolve().parent.parent
OFFLINE = ['--d_model', '32', '--headdim', '16', '--d_state', '8', '--hidden_dim', '32', '--context_length', '20',
           '--batch_size', '4', '--num_updates', '4', '--val_interval', '2', '--val_batches', '1', '--max_trajectories',
           '4']
ONLINE = ['--idm_hidden_dim', '32', '--batch_size', '2', '--num_envs', '2', '--random_steps', '60', '--max_steps',
          '120', '--labeler_updates', '2', '--initial_updates', '2', '--eval_episodes', '1',
          '--final_eval_episodes', '1']
WATCH = '''
import atexit, json, os, runpy, sys
seen = {'written': set(), 'network': []}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
def watch(event, arguments):
    if event == 'open' and not isinstance(arguments[0], int):
        path, mode, flags = arguments
        if isinstance(mode, str) and set(mode) & set('wax+') or flags & WRITES:
            seen['written'].add(os.path.abspath(os.fsdecode(path)))
    elif event == 'os.remove' and arguments[1] >= 0:
        pass  # a name inside a folder that is being removed, which is seen itself
    elif event in ('os.mkdir', 'os.rename', 'os.remove', 'os.link', 'os.symlink', 'shutil.rmtree'):
        seen['written'] |= {os.path.abspath(os.fsdecode(p)) for p in arguments if isinstance(p, (str, bytes))}
    elif event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto', 'urllib.Request'):
        seen['network'].append([event, repr(arguments[1:])])
sys.addaudithook(watch)
def report():
    maps = open('/proc/self/maps').read() if os.path.exists('/proc/self/maps') else ''
    loaded = sorted({line.split()[-1] for line in maps.splitlines() if '.so' in line})
    done = {'written': sorted(seen['written']), 'network': seen['network'], 'loaded': loaded, 'modules': [*sys.modules]}
    with open(os.environ['WATCH_REPORT'], 'w') as file:
        json.dump(done, file)
atexit.register(report)
script = sys.argv[1]
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(script))
runpy.run_path(script, run_name='__main__')
'''


@pytest.fixture(scope='module')
def short_episodes(tmp_path_factory):
    """Environment variables under which python cuts all episodes after 30 steps, in worker processes as well."""
    folder = tmp_path_factory.mktemp('site')
    (folder / 'sitecustomize.py').write_text(
        'import gymnasium\nmake = gymnasium.make\n'
        'gymnasium.make = lambda *args, **options: make(*args, max_episode_steps=30, **options)\n')
    (folder / 'tmp').mkdir()
    return {'PYTHONPATH': str(folder), 'OMP_NUM_THREADS': '1', 'TMPDIR': str(folder / 'tmp')}


def watched(script, *flags, cwd, variables):
    """Run a script under an audit hook, without display and GL settings -> what it did."""
    report = cwd.parent / f'{Path(script).stem}.json'
    plain = {name: value for name, value in os.environ.items()
             if name not in ('DISPLAY', 'WAYLAND_DISPLAY', 'MUJOCO_GL', 'PYOPENGL_PLATFORM', 'MPLCONFIGDIR',
                             'TORCHINDUCTOR_CACHE_DIR')}  # torch itself sets the last one
    plain |= {'WATCH_REPORT': str(report), 'PYTHONDONTWRITEBYTECODE': '1', **variables}
    subprocess.run([sys.executable, '-c', WATCH, ROOT / script, *flags], cwd=cwd, env=plain, check=True,
                   capture_output=True)
    return json.loads(report.read_text())


@pytest.fixture(scope='module')
def watched_runs(tmp_path_factory, short_episodes):
    """Both trainings and an evaluation -> (working directory, {script: what it did})."""
    cwd = tmp_path_factory.mktemp('work') / 'here'
    cwd.mkdir()
    commands = {
        'offline_trainer.py': ['--dataset', BUNDLED_NAME, *OFFLINE],
        'online_trainer.py': ['--dataset', BUNDLED_NAME, *ONLINE],
        'evaluate.py': ['--checkpoint', f'online_checkpoints/{BUNDLED_NAME}/seed0/last.pth',
                        '--episodes_per_task', '1']}
    return cwd, {script: watched(script, *flags, cwd=cwd, variables=short_episodes)
                 for script, flags in commands.items()}


def test_no_file_is_written_outside_the_run_folder(watched_runs, short_episodes):
    cwd, reports = watched_runs
    for script, report in reports.items():
        root = 'offline_checkpoints' if script.startswith('offline') else 'online_checkpoints'
        own, work = str(cwd / root), str(cwd)
        temporary = (short_episodes['TMPDIR'], '/dev/', '/proc/', str(cwd.parent / f'{Path(script).stem}.json'))
        elsewhere = [path for path in report['written'] if not path.startswith(own)
                     and (path.startswith(work) or not path.startswith(temporary))]
        assert not elsewhere, f'{script} wrote {elsewhere}'
        assert any(path.startswith(own) for path in report['written'])
    assert sorted(path.name for path in cwd.iterdir()) == ['offline_checkpoints', 'online_checkpoints']
    left = {path.name for path in Path(short_episodes['TMPDIR']).iterdir()}
    user = getpass.getuser()
    assert left <= {f'matplotlib-{user}', f'torchinductor_{user}'}  # one folder each for all runs: fonts, kernels


def test_nothing_is_sent_to_any_network(watched_runs):
    for script, report in watched_runs[1].items():
        assert report['network'] == [], script


def test_no_gl_library_is_loaded(watched_runs):
    for script, report in watched_runs[1].items():
        libraries = [path for path in report['loaded'] if Path(path).name.startswith(
            ('libGL', 'libEGL', 'libOSMesa', 'libOpenGL', 'libGLX', 'libvulkan', 'libX11', 'libwayland'))]
        assert not libraries and not [name for name in report['modules'] if name.startswith('OpenGL')], script
        assert script == 'offline_trainer.py' or any('mujoco' in path for path in report['loaded'])


def test_the_seed_fixes_everything(watched_runs, short_episodes, assert_same):
    """Another process, folder and hash seed, environments in two processes: the same numbers to the last bit."""
    cwd = watched_runs[0]
    again = cwd.parent / 'again'
    again.mkdir()
    for script, flags in (('offline_trainer.py', OFFLINE), ('online_trainer.py', ONLINE)):
        subprocess.run([sys.executable, ROOT / script, '--dataset', BUNDLED_NAME, *flags], cwd=again, check=True,
                       capture_output=True, env=os.environ | short_episodes | {'PYTHONHASHSEED': '7'})
    for root, csv in (('offline_checkpoints', 'train.csv'), ('online_checkpoints', 'online.csv')):
        one, other = (folder / root / BUNDLED_NAME / 'seed0' for folder in (cwd, again))
        rows = [[{k: v for k, v in row.items() if not k.startswith('time')} for row in read_csv(run / csv)]
                for run in (one, other)]
        assert rows[0] == rows[1] and len(rows[0]) == 2
        agents = [load_checkpoint(run / 'last.pth') for run in (one, other)]
        for agent in agents:
            del agent['random']['numpy']  # the environments' one, which workers have for themselves
        for key in ('agent', 'random', 'rng'):
            assert_same(agents[0][key], agents[1][key], key)


def test_another_seed_is_another_run(watched_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(offline_trainer.OfflineTraining, 'draw_curves', lambda _: None)
    offline_trainer.main(['--dataset', BUNDLED_NAME, *OFFLINE, '--seed', '1', '--save_dir', str(tmp_path / 'run')])
    other = watched_runs[0] / 'offline_checkpoints' / BUNDLED_NAME / 'seed0'
    rows = [read_csv(run / 'train.csv') for run in (tmp_path / 'run', other)]
    assert all(one['training/total_loss'] != other['training/total_loss'] for one, other in zip(*rows, strict=True))
