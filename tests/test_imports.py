"""Who may import whom: one direction, from the trainers down to the agents and on to the leaves."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts): path
    for folder in (ROOT, ROOT / 'support', ROOT / 'scripts', *ROOT.glob('scripts/*/'))
    for path in sorted(folder.glob('*.py'))
}
SUPPORT = {name for name in FILES if name.startswith('support.')}
ROOT_MODULES = {name for name in FILES if '.' not in name}
# module -> the modules of the root that it may import; `support` is open to all of them
ALLOWED = {
    'utils': set(),
    'mamba': set(),
    'model': {'mamba'},
    'custom_env': set(),
    'observation_model': set(),
    'ogbench_utils': {'custom_env'},
    'trajectories': {'ogbench_utils', 'utils', 'observation_model'},
    'environments': {'ogbench_utils', 'observation_model'},
    'rollouts': {'environments', 'ogbench_utils', 'utils'},
    'offline_agent': {'model', 'utils'},
    'things': set(),
    'imputed': {'model', 'utils'},
    'corrective': {'things'},
    'online_batches': {'imputed', 'offline_agent', 'corrective', 'things', 'utils'},
    'planner': set(),
    'labeler': set(),
    'rehearsals': {'labeler', 'model'},
    'label_dataset': {'ogbench_utils', 'custom_env', 'rehearsals', 'trajectories', 'utils'},
    'online_agent': {'imputed', 'labeler', 'offline_agent', 'online_batches', 'model', 'planner', 'things',
                     'utils'},
    'maze_figures': {'ogbench_utils', 'observation_model'},
    'pictures': {'maze_figures', 'ogbench_utils', 'observation_model'},
    'videos': {'ogbench_utils', 'custom_env', 'observation_model'},
    'offline_trainer': {'offline_agent', 'ogbench_utils', 'custom_env', 'mamba', 'pictures', 'things',
                        'trajectories', 'utils', 'observation_model'},
    'online_trainer': {'environments', 'online_agent', 'offline_agent', 'ogbench_utils', 'custom_env', 'pictures',
                       'rollouts', 'mamba', 'trajectories', 'utils', 'videos', 'observation_model'},
    'evaluate': {'environments', 'mamba', 'ogbench_utils', 'online_agent', 'pictures', 'rollouts', 'observation_model', 'utils',
                 'videos'},
}


def imported(source):
    """Names of all modules that a source text imports, inside functions as well; `from support import x` gives
    support.x."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'the modules lie side by side: no relative imports'
            if node.module == 'support':
                names |= {f'support.{alias.name}' for alias in node.names}
            else:
                names.add(node.module)
    return names


def imported_by(name):
    return imported(FILES[name].read_text(encoding='utf-8'))


def test_imports_are_found():
    source = ('import a.b, c\nfrom d.e import f\ndef g():\n    import h\n'
              'from support import i\nclass I:\n    from j import k')
    assert imported(source) == {'a.b', 'c', 'd.e', 'h', 'support.i', 'j'}


def test_every_module_of_the_root_is_in_the_table():
    assert set(ALLOWED) == ROOT_MODULES


@pytest.mark.parametrize('name', ALLOWED)
def test_modules_import_downwards_only(name):
    local = imported_by(name) & ROOT_MODULES
    assert local <= ALLOWED[name], f'{name}.py must not import {sorted(local - ALLOWED[name])}'


def test_the_table_has_no_circle():
    order = graphlib.TopologicalSorter(ALLOWED).static_order()
    assert set(order) == set(ALLOWED)


@pytest.mark.parametrize('name', sorted(SUPPORT))
def test_support_knows_nothing_of_the_root(name):
    assert not imported_by(name) & ROOT_MODULES


def test_nothing_but_tests_imports_a_trainer():
    for name in FILES:
        trainers = imported_by(name) & {'offline_trainer', 'online_trainer'}
        assert not trainers, f'{name} imports {sorted(trainers)}'


def test_importing_the_model_changes_no_setting_of_torch():
    """Matrix kernels and threads are settings of the whole process: programs choose them, an import may not."""
    code = """
import support.threads
import torch
def settings():
    return torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.backends.mkldnn.matmul.fp32_precision
before = settings()
import model, offline_agent, online_agent
assert settings() == before, (settings(), before)
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
