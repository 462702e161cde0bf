"""Which module may import which: one direction, from the trainers down to the agents and on to the leaves."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ('planning', 'labeling', 'observing', 'figures', 'environments', 'support')  # one level deep
FILES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts): path
    for pattern in ('*.py', *(f'{folder}/*.py' for folder in FOLDERS), 'scripts/**/*.py')
    for path in sorted(ROOT.glob(pattern))
    if path.name != '__init__.py'
}
SUPPORT = {name for name in FILES if name.startswith('support.')}
SCRIPTS = {name for name in FILES if name.startswith('scripts.')}
MODULES = set(FILES) - SUPPORT - SCRIPTS
# module -> the modules that it may import; `support` is open to all of them
ALLOWED = {
    # what OPSO is
    'utils': set(),
    'mamba': set(),
    'model': {'environments.checks', 'environments.user_modules', 'mamba'},
    'ogbench_utils': {'environments.custom_env'},
    'trajectories': {'observing.observation_models', 'ogbench_utils', 'planning.time_scales'},
    'offline_agent': {'model', 'utils'},
    'offline_trainer': {'environments.agreement', 'environments.checks', 'environments.custom_env',
                        'figures.pictures', 'mamba', 'observing.observation_models', 'offline_agent',
                        'ogbench_utils', 'planning.goal_weights', 'trajectories', 'utils'},
    'tasks': {'model', 'planning.graph_planner', 'planning.objects'},
    'online_agent': {'labeling.labeler', 'labeling.online_batches', 'model', 'observing.state_estimator',
                     'offline_agent', 'planning.graph_planner', 'planning.object_planner', 'planning.planners',
                     'tasks', 'utils'},
    'rollouts': {'environments.checks', 'ogbench_utils', 'utils'},
    'opso': {'figures.maze_figures', 'observing.observation_models', 'offline_agent', 'ogbench_utils',
             'online_agent', 'rollouts'},
    'online_trainer': {'environments.agreement', 'environments.checks', 'environments.custom_env',
                       'environments.safe_env', 'figures.pictures', 'figures.videos', 'labeling.labeler', 'mamba',
                       'observing.observation_models', 'offline_agent', 'ogbench_utils', 'online_agent',
                       'rollouts', 'tasks', 'trajectories', 'utils'},
    'evaluate': {'environments.checks', 'environments.safe_env', 'figures.pictures', 'figures.videos', 'mamba',
                 'observing.observation_models', 'ogbench_utils', 'online_agent', 'rollouts'},
    # what goes beyond
    'environments.agreement': {'environments.checks', 'ogbench_utils'},
    'environments.checks': set(),
    'environments.data_check': {'environments.agreement', 'environments.checks', 'environments.custom_env',
                                'observing.observation_models', 'ogbench_utils', 'planning.goal_weights',
                                'planning.time_scales', 'trajectories'},
    'environments.custom_env': {'environments.checks', 'environments.user_modules'},
    'environments.gymnasium_tasks': set(),
    'environments.wheeled_robots': set(),
    'environments.robots': set(),
    'environments.user_modules': {'environments.checks'},
    'environments.safe_env': {'environments.checks', 'observing.observation_models', 'ogbench_utils'},
    'observing.observation_models': {'environments.checks', 'observing.transforms'},
    'observing.transforms': set(),
    'observing.state_estimator': {'model', 'trajectories'},
    'planning.planners': set(),
    'planning.graph_planner': {'planning.planners'},
    'planning.goal_weights': {'planning.objects', 'planning.slow_directions', 'planning.time_scales'},
    'planning.objects': set(),
    'planning.slow_directions': set(),
    'planning.time_scales': {'planning.slow_directions'},
    'planning.object_planner': {'planning.objects', 'planning.planners'},
    'labeling.joint_axes': set(),
    'labeling.labeler': {'labeling.joint_axes'},
    'labeling.corrective_data': {'planning.objects'},
    'labeling.online_batches': {'labeling.corrective_data', 'observing.state_estimator', 'trajectories'},
    'labeling.simulator_labels': {'labeling.labeler', 'model'},
    'figures.maze_figures': {'observing.observation_models', 'ogbench_utils'},
    'figures.pictures': {'environments.checks', 'figures.maze_figures', 'observing.observation_models',
                         'ogbench_utils'},
    'figures.videos': {'environments.checks', 'environments.custom_env', 'observing.observation_models',
                       'ogbench_utils'},
}


def imported(source):
    """Return the names of all modules that a source text imports, inside functions as well; `from support import x`
    gives support.x."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'no relative imports'
            if node.module in FOLDERS:
                names |= {f'{node.module}.{alias.name}' for alias in node.names}
            else:
                names.add(node.module)
    return names


def imported_by(name):
    return imported(FILES[name].read_text(encoding='utf-8'))


def test_imports_are_found():
    source = ('import a.b, c\nfrom d.e import f\ndef g():\n    import h\n'
              'from support import i\nclass I:\n    from j import k')
    assert imported(source) == {'a.b', 'c', 'd.e', 'h', 'support.i', 'j'}


def test_every_module_is_in_the_table():
    assert set(ALLOWED) == MODULES


def test_the_root_has_at_most_13_modules():
    assert len([name for name in MODULES if '.' not in name]) <= 13


@pytest.mark.parametrize('name', ALLOWED)
def test_modules_import_downwards_only(name):
    local = imported_by(name) & MODULES
    assert local <= ALLOWED[name], f'{FILES[name]} must not import {sorted(local - ALLOWED[name])}'


def test_the_table_has_no_cycle():
    order = graphlib.TopologicalSorter(ALLOWED).static_order()
    assert set(order) == set(ALLOWED)


@pytest.mark.parametrize('name', sorted(SUPPORT))
def test_support_imports_nothing_of_opso(name):
    assert not imported_by(name) & MODULES


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


def test_data_files_and_videos_load_no_torch():
    """Commands on data, and each process that renders or collects, would wait for its import."""
    code = "import sys, figures.videos, ogbench_utils; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
