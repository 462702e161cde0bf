"""A user's modules may have the names of OPSO's: each side gets its own."""

import sys
import textwrap

import pytest

import model
import utils
from environments import user_modules
from environments.custom_env import GoalDict, find_factory, open_env

ROBOT = '''
    import utils
    from utils import wrap_angle
    from planning.route import length
    from environments.custom_env import GoalDict

    def make():
        from tasks import names
        import importlib
        return dict(utils=utils.__file__, angle=wrap_angle(7), length=length(), names=names,
                    late=importlib.import_module('mamba').POISON, goal_dict=GoalDict)

    class Env:
        def step(self):
            from tasks import names
            import model as theirs
            return names, theirs.SIZE
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder, the working directory, with modules called as OPSO's are."""
    files = {
        'robot.py': ROBOT,
        'utils.py': 'from model import SIZE\ndef wrap_angle(x): return x + SIZE',
        'model.py': 'SIZE = 3\nPLACE = __file__\ndef make(): return PLACE',
        'tasks.py': 'names = ["up", "down"]',
        'mamba.py': 'POISON = 1',
        'planning/__init__.py': '',
        'planning/route.py': 'from .points import points\ndef length():\n    from . import points as p\n'
                             '    return len(points) + len(p.points)',
        'planning/points.py': 'points = [1, 2]',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setattr(sys, 'meta_path', [*sys.meta_path])
    before = dict(sys.modules)
    user_modules._set_aside.clear()  # modules of a folder of another test
    yield tmp_path
    for name in set(sys.modules) - set(before):
        del sys.modules[name]
    sys.modules.update(before)
    user_modules._set_aside.clear()


@pytest.mark.parametrize('is_package', [True, False])
def test_imports_of_the_users_module_find_the_users_files(folder, is_package):
    if not is_package:
        (folder / 'planning' / '__init__.py').unlink()
    factory = find_factory('robot:make')
    with user_modules.names_of_user():
        found = factory()
    assert found == dict(utils=str(folder / 'utils.py'), angle=10, length=4, names=['up', 'down'], late=1,
                         goal_dict=GoalDict)


def test_imports_inside_functions_find_the_users_files_at_any_time(folder):
    env = sys.modules[find_factory('robot:make').__module__].Env()
    assert env.step() == (['up', 'down'], 3)


def test_opso_keeps_its_modules(folder):
    others = {name: module for name, module in sys.modules.items()
              if name.partition('.')[0] in user_modules.OPSO_NAMES}
    sys.modules[find_factory('robot:make').__module__].Env().step()
    assert {name: sys.modules[name] for name in others} == others
    import planning.graph_planner
    assert sys.modules['utils'] is utils and sys.modules['model'] is model and model.Encoder
    assert planning.graph_planner.__file__.startswith(str(user_modules.ROOT))


def test_module_with_the_name_of_one_of_opsos_is_the_users(folder):
    assert find_factory('model:make')() == str(folder / 'model.py')
    assert find_factory('planning.route:length')() == 4
    with pytest.raises(ValueError, match=r'no function `Encoder` in .*model.py'):
        find_factory('model:Encoder')


def test_a_failing_module_of_the_user_leaves_opsos_in_place(folder):
    (folder / 'utils.py').write_text('raise KeyError("broken")')
    with pytest.raises(ValueError, match="cannot import robot from .*KeyError: 'broken'"):
        find_factory('robot:make')
    assert sys.modules['utils'] is utils and not user_modules._has_user_names()


def test_a_module_without_files_of_opsos_names_gets_opsos(folder):
    for name in ('utils.py', 'model.py'):
        (folder / name).unlink()
    for path in (folder / 'planning').glob('*.py'):
        path.unlink()
    (folder / 'plain.py').write_text('import utils, model\nfrom planning import graph_planner\n'
                                     'def make(): return utils, model')
    spec = utils.__spec__
    assert find_factory('plain:make')() == (utils, model)
    assert utils.__spec__ is spec, 'the import leaves the module as it was'


def test_the_factory_runs_with_the_users_names(folder):
    """gymnasium imports the entry point 'tasks:Env' when the factory makes the environment."""
    (folder / 'tasks.py').write_text(textwrap.dedent('''
        import gymnasium, numpy as np

        class Env(gymnasium.Env):
            observation_space = action_space = gymnasium.spaces.Box(-1, 1, (2,))
            def reset(self, seed=None, options=None):
                super().reset(seed=seed)
                return np.zeros(2, np.float32), {'goal': np.ones(2, np.float32)}
            def step(self, action):
                return np.zeros(2, np.float32), 0.0, False, False, {'success': False}
    '''))
    (folder / 'registered.py').write_text(textwrap.dedent('''
        import gymnasium
        gymnasium.register('OneOfTheUsers-v0', entry_point='tasks:Env')
        def make():
            return gymnasium.make('OneOfTheUsers-v0')
    '''))
    assert open_env('registered:make').unwrapped.__class__.__module__ == 'tasks'


def test_packages_installed_inside_the_users_folder_are_no_modules_of_the_user(folder, monkeypatch):
    """A virtual environment often lies in the working directory."""
    packages = folder / '.venv'
    packages.mkdir()
    (packages / 'package_of_others.py').write_text('')
    (folder / 'with_package.py').write_text('import package_of_others\ndef make(): return package_of_others')
    sys.path.append(str(packages))
    monkeypatch.setattr(user_modules, 'INSTALLED', [packages.resolve()])
    factory = find_factory('with_package:make')
    assert isinstance(sys.modules['with_package'].__loader__, user_modules.UserLoader)
    assert not isinstance(factory().__loader__, user_modules.UserLoader)
