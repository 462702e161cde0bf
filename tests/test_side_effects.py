"""Side effects of the scripts: files, network, loaded libraries; and results that depend on the seed only."""

import getpass
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import offline_trainer
from ogbench_utils import BUNDLED_NAME
from support.files import load_checkpoint
from support.metrics import read_csv

ROOT = Path(__file__).resolve().parent.parent
OFFLINE = shlex.split('--d_model 32 --headdim 16 --d_state 8 --hidden_dim 32 --context_length 20 '
                      '--batch_size 4 --num_updates 4 --val_interval 2 --log_interval 2 --max_trajectories 4')
ONLINE = shlex.split('--idm_hidden_dim 32 --batch_size 2 --num_envs 2 --random_steps 60 --max_steps 120 '
                     '--initial_updates 2 --eval_episodes 1 --final_eval_episodes 1')
# run commands one after another under an audit hook and write what each of them did to the file $WATCH_REPORT
WATCH = '''
import atexit, json, os, runpy, sys
events = {'written': set(), 'network': []}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
def watch(event, arguments):
    if event == 'open' and not isinstance(arguments[0], int):
        path, mode, flags = arguments
        if isinstance(mode, str) and set(mode) & set('wax+') or flags & WRITES:
            events['written'].add(os.path.abspath(os.fsdecode(path)))
    elif event == 'os.remove' and arguments[1] >= 0:
        pass  # a name inside a folder whose removal is an event of its own
    elif event in ('os.mkdir', 'os.rename', 'os.remove', 'os.link', 'os.symlink', 'shutil.rmtree'):
        paths = [path for path in arguments if isinstance(path, (str, bytes))]
        events['written'] |= {os.path.abspath(os.fsdecode(path)) for path in paths}
    elif event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto', 'urllib.Request'):
        events['network'].append([event, repr(arguments[1:])])
sys.addaudithook(watch)
reports = {}
def write_reports():
    text = json.dumps(reports, default=sorted)
    with open(os.environ['WATCH_REPORT'], 'w') as file:
        file.write(text)
atexit.register(write_reports)
if 'NO_USER' in os.environ:
    import pwd
    def unknown(*_):
        raise KeyError('getpwuid(): uid not found')
    pwd.getpwuid = unknown
for script, *flags in json.loads(sys.argv[1]):
    events = reports[os.path.basename(script)] = {'written': set(), 'network': []}
    if 'torch' in sys.modules:
        from labeling.labeler import Labeler
        Labeler.fit.__defaults__ = 2, *Labeler.fit.__defaults__[1:]  # updates of its kernel, to save time
    sys.argv = [script, *flags]
    sys.path.insert(0, os.path.dirname(script))
    runpy.run_path(script, run_name='__main__')
    maps = open('/proc/self/maps').read() if os.path.exists('/proc/self/maps') else ''
    events['loaded'] = sorted({line.split()[-1] for line in maps.splitlines() if '.so' in line})
    events['modules'] = [*sys.modules]
'''
# variables of a container whose user id has no entry in the password database, and that sets no HOME
NO_USER = dict.fromkeys(('HOME', 'LOGNAME', 'USER', 'LNAME', 'USERNAME')) | {'NO_USER': '1'}
COMMANDS = [['offline_trainer.py', '--dataset', BUNDLED_NAME, *OFFLINE],
            ['online_trainer.py', '--dataset', BUNDLED_NAME, *ONLINE],
            ['evaluate.py', '--checkpoint', f'online_checkpoints/{BUNDLED_NAME}/seed0/last.pth',
             '--episodes_per_task', '1']]


@pytest.fixture(scope='module')
def short_episodes(tmp_path_factory):
    """Return environment variables under which python ends all episodes after 30 steps."""
    folder = tmp_path_factory.mktemp('site')
    (folder / 'sitecustomize.py').write_text(
        'import gymnasium\nmake = gymnasium.make\n'
        'gymnasium.make = lambda *args, **options: make(*args, max_episode_steps=30, **options)\n')
    (folder / 'tmp').mkdir()
    return {'PYTHONPATH': str(folder), 'OMP_NUM_THREADS': '1', 'TMPDIR': str(folder / 'tmp')}


def watched(commands, cwd, variables):
    """Run commands in one process under the audit hook, without settings of display, GL and caches.

    Args:
        variables: of the environment; None removes one.

    Returns:
        {script: report}
    """
    report = cwd.parent / f'{cwd.name}.json'
    removed = ('DISPLAY', 'WAYLAND_DISPLAY', 'MUJOCO_GL', 'PYOPENGL_PLATFORM', 'MPLCONFIGDIR',
               'TORCHINDUCTOR_CACHE_DIR')  # torch itself sets the last
    plain = {name: value for name, value in os.environ.items() if name not in removed}
    plain |= {'WATCH_REPORT': str(report), 'PYTHONDONTWRITEBYTECODE': '1', **variables}
    plain = {name: value for name, value in plain.items() if value is not None}
    words = json.dumps([[str(ROOT / script), *flags] for script, *flags in commands])
    done = subprocess.run([sys.executable, '-c', WATCH, words], cwd=cwd, env=plain, text=True, capture_output=True)
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
    return json.loads(report.read_text())


@pytest.fixture(scope='module')
def watched_runs(tmp_path_factory, short_episodes):
    """Run both trainings and an evaluation; return the working directory and the report of each script."""
    cwd = tmp_path_factory.mktemp('work') / 'here'
    cwd.mkdir()
    return cwd, watched(COMMANDS, cwd, short_episodes)


def test_scripts_write_no_file_outside_the_run_folder(watched_runs, short_episodes):
    cwd, reports = watched_runs
    for script, report in reports.items():
        root = 'offline_checkpoints' if script.startswith('offline') else 'online_checkpoints'
        runs, work = str(cwd / root), str(cwd)
        temporary = (short_episodes['TMPDIR'], '/dev/', '/proc/')
        outside = [path for path in report['written'] if not path.startswith(runs)
                   and (path.startswith(work) or not path.startswith(temporary))]
        assert not outside, f'{script} wrote {outside}'
        assert any(path.startswith(runs) for path in report['written'])
    assert sorted(path.name for path in cwd.iterdir()) == ['offline_checkpoints', 'online_checkpoints']
    left = {path.name for path in Path(short_episodes['TMPDIR']).iterdir()}
    user = getpass.getuser()
    assert left <= {f'matplotlib-{user}', f'torchinductor_{user}'}  # fonts and kernels


def test_scripts_use_no_network(watched_runs):
    for script, report in watched_runs[1].items():
        assert report['network'] == [], script


def test_scripts_load_no_gl_library(watched_runs):
    for script, report in watched_runs[1].items():
        names = ('libGL', 'libEGL', 'libOSMesa', 'libOpenGL', 'libGLX', 'libvulkan', 'libX11', 'libwayland')
        libraries = [path for path in report['loaded'] if Path(path).name.startswith(names)]
        assert not libraries and not [name for name in report['modules'] if name.startswith('OpenGL')], script
        assert script == 'offline_trainer.py' or any('mujoco' in path for path in report['loaded'])


def test_results_of_a_seed_are_bitwise_equal(watched_runs, short_episodes, assert_same):
    """Another process, folder and hash seed give the same metrics, networks and generators, without HOME or a
    name of the user."""
    cwd = watched_runs[0]
    again = cwd.parent / 'again'
    again.mkdir()
    offline, online, _ = COMMANDS
    watched([[*offline, '--no-maze_figures'], online], again,
            short_episodes | NO_USER | {'PYTHONHASHSEED': '7'})
    for root, csv in (('offline_checkpoints', 'train.csv'), ('online_checkpoints', 'online.csv')):
        one, other = (folder / root / BUNDLED_NAME / 'seed0' for folder in (cwd, again))
        rows = [[{k: v for k, v in row.items() if not k.startswith('time')} for row in read_csv(run / csv)]
                for run in (one, other)]
        assert rows[0] == rows[1] and len(rows[0]) >= 2
        agents = [load_checkpoint(run / 'last.pth') for run in (one, other)]
        for agent in agents:
            del agent['random']['numpy']  # the generator of the environments
        for key in ('agent', 'random', 'rng'):
            assert_same(agents[0][key], agents[1][key], key)


def test_results_of_two_seeds_differ(watched_runs, no_pictures, tmp_path):
    run = tmp_path / 'run'
    offline_trainer.main(['--dataset', BUNDLED_NAME, *OFFLINE, '--seed', '1', '--save_dir', str(run)])
    first_run = watched_runs[0] / 'offline_checkpoints' / BUNDLED_NAME / 'seed0'
    rows = [read_csv(folder / 'train.csv') for folder in (run, first_run)]
    for one, other in zip(*rows, strict=True):
        assert one['training/total_loss'] != other['training/total_loss']
