"""Who may import whom: one direction, from the trainers down to the agents and on to the leaves."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = {path.stem: path for folder in (ROOT, ROOT / 'scripts') for path in sorted(folder.glob('*.py'))}
ALLOWED = {
    'threads': set(),
    'utils': set(),
    'locks': set(),
    'trackers': set(),
    'runs': {'locks', 'trackers', 'utils'},
    'kernels': set(),
    'parallel': set(),
    'scan': set(),
    'model': {'kernels', 'scan', 'threads'},
    'stats': set(),
    'figures': {'runs', 'stats'},
    'ogbench_utils': set(),
    'trajectories': {'ogbench_utils', 'utils'},
    'workers': {'ogbench_utils'},
    'rollouts': {'ogbench_utils', 'utils', 'workers'},
    'offline_agent': {'model', 'parallel', 'utils'},
    'latents': {'utils'},
    'online_agent': {'kernels', 'offline_agent', 'model', 'utils'},
    'maze_figures': {'figures', 'ogbench_utils', 'rollouts'},
    'videos': {'ogbench_utils'},
    'offline_trainer': {'figures', 'maze_figures', 'offline_agent', 'ogbench_utils', 'parallel', 'runs', 'scan',
                        'threads', 'trajectories', 'utils'},
    'online_trainer': {'figures', 'latents', 'maze_figures', 'online_agent', 'offline_agent', 'ogbench_utils',
                       'rollouts', 'runs', 'scan', 'threads', 'trajectories', 'utils', 'videos', 'workers'},
}


def imported(source):
    """Top-level names of all modules that a source text imports, inside functions as well."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'the modules lie side by side: no relative imports'
            names.add(node.module.split('.')[0])
    return names


def test_imports_are_found():
    source = 'import a.b, c\nfrom d.e import f\ndef g():\n    import h\nclass I:\n    from j import k'
    assert imported(source) == {'a', 'c', 'd', 'h', 'j'}


@pytest.mark.parametrize('name', ALLOWED)
def test_modules_import_downwards_only(name):
    local = imported(FILES[name].read_text(encoding='utf-8')) & set(FILES)
    assert local <= ALLOWED[name], f'{name}.py must not import {sorted(local - ALLOWED[name])}'


def test_nothing_but_tests_imports_a_trainer():
    for name, path in FILES.items():
        trainers = imported(path.read_text(encoding='utf-8')) & {'offline_trainer', 'online_trainer'}
        assert not trainers, f'{name}.py imports {sorted(trainers)}'


@pytest.mark.parametrize('name', ['offline_trainer', 'online_trainer', 'evaluate', 'model'])
def test_torch_finds_sleeping_threads_when_it_loads(name):
    """OpenMP reads OMP_WAIT_POLICY once, while torch is imported: what is set later does nothing."""
    code = f"""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == 'torch':
            sys.exit(40 + (os.environ.get('OMP_WAIT_POLICY') == 'PASSIVE'))
sys.meta_path.insert(0, Watch())
import {name}
"""
    environment = {key: value for key, value in os.environ.items() if key != 'OMP_WAIT_POLICY'}
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=environment).returncode == 41
