"""Imports of a user's modules beside OPSO's, which may have the same names (utils, model, tasks, ...).

OPSO is a collection of scripts, so its modules have names that a robot's own code may use as well. Code in the
user's folders (the working directory, PYTHONPATH) gets the user's modules, OPSO's code gets OPSO's. Two modules
of one name take turns in `sys.modules`: `names_of_user` puts the user's there. The import statements of the
user's modules do so by themselves, at the top of a file and inside functions.
"""

import builtins
import contextlib
import functools
import importlib
import os
import sys
import sysconfig
import threading
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path

from environments.checks import ERRORS, describe

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [*ROOT.glob('scripts/**/*.py')]
OPSO_DIRS = {ROOT} | {path.parent for path in SCRIPTS}  # folders on OPSO's path of imports
OPSO_NAMES = frozenset(  # top-level names of OPSO's modules and packages
    [path.stem for path in (*ROOT.glob('*.py'), *SCRIPTS)] + [path.parent.name for path in ROOT.glob('*/*.py')])

INSTALLED = [Path(path).resolve() for path in set(sysconfig.get_paths().values())]  # folders of packages

_set_aside = {}  # name -> module, of the side that does not have the names
_state = threading.local()  # `is_user`: whether the user's side has the names
_lock = threading.RLock()


def import_user_module(name):
    """Return the module `name`, the user's if there is one in the user's folders."""
    with names_of_user():
        return importlib.import_module(name)


def find_in_user_module(name, flag, kind):
    """Return what 'module:name' names; the working directory is searched for the module, too.

    Args:
        name: such as 'robot:make_env'.
        flag, kind: for messages, such as '--env' and 'function'.

    Raises:
        ValueError: the module cannot be imported, or nothing callable in it has this name.
    """
    module_name, _, attribute = name.partition(':')
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that it replaces no installed package
    try:
        module = import_user_module(module_name)
    except ERRORS as error:
        raise ValueError(f'{flag} {name}: cannot import {module_name} from {os.getcwd()} or PYTHONPATH '
                         f'({describe(error)}); run in the folder of the module') from error

    found = getattr(module, attribute, None)
    if not callable(found):
        raise ValueError(f'{flag} {name}: there is no {kind} `{attribute}` in {module.__file__}; '
                         'define it or name another one')
    return found


def names_of_user():
    """Return a context in which a name that both sides have is the user's, also for importlib."""
    if not any(isinstance(finder, UserFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, UserFinder())
    return _names(is_user=True)


@contextlib.contextmanager
def _names(is_user):
    """Context in which OPSO's names mean the user's modules, or OPSO's."""
    before = _has_user_names()
    if before == is_user:
        yield
        return

    with _lock:
        _swap()
        _state.is_user = is_user
        try:
            yield
        finally:
            _state.is_user = before
            _swap()


def _has_user_names():
    return getattr(_state, 'is_user', False)


def _swap():
    """Exchange the modules with OPSO's names in `sys.modules` for those of the other side."""
    active = {name: module for name, module in sys.modules.items() if _top(name) in OPSO_NAMES}
    for name in active:
        del sys.modules[name]
    sys.modules.update(_set_aside)
    _set_aside.clear()
    _set_aside.update(active)


def _top(name):
    return name.partition('.')[0]


def user_folders():
    """Return the folders of imports, the working directory first, without OPSO's and installed packages."""
    return _user_folders(os.getcwd(), *sys.path)


@functools.cache
def _user_folders(*entries):
    """Return `user_folders` of a path of imports; each import statement asks for them."""
    folders = [Path(entry).resolve() for entry in dict.fromkeys(entries)]
    return [str(folder) for folder in folders
            if folder.is_dir() and folder not in OPSO_DIRS and not _is_installed(folder)]


def _is_installed(path):
    return any(path.is_relative_to(folder) for folder in INSTALLED)


class UserFinder:
    """Finds the user's modules, so that their import statements find the user's modules, too."""

    def find_spec(self, name, path=None, target=None):
        """Return the spec of a module of the user, or None to search as usual."""
        if _top(name) not in OPSO_NAMES:
            return _adapt(PathFinder.find_spec(name, path))
        if not _has_user_names():
            return None

        # a name of OPSO's: the user's module, or OPSO's where the user has none
        parent_name = name.rpartition('.')[0]
        if not parent_name:
            spec = PathFinder.find_spec(name, user_folders())
            is_user = spec is not None and _has_code(spec)
        else:
            spec = PathFinder.find_spec(name, path)
            is_user = sys.modules[parent_name] is not _set_aside.get(parent_name)
        return _adapt(spec) if is_user else ModuleSpec(name, OpsoLoader(name))


def _has_code(spec):
    """Return whether a spec is of a module, or of a folder with modules."""
    folders = spec.submodule_search_locations or ()
    return spec.origin is not None or any(any(Path(folder).glob('*.py')) for folder in folders)


def _adapt(spec):
    """Return the spec with a `UserLoader` if it is of a Python file in a folder of the user."""
    if spec is not None and type(spec.loader) is SourceFileLoader:
        file = Path(spec.origin).resolve()
        if not _is_installed(file) and any(file.is_relative_to(folder) for folder in user_folders()):
            spec.loader = UserLoader(spec.loader.name, spec.loader.path)
    return spec


class UserLoader(SourceFileLoader):
    """Runs a module with `import_for_user` behind its import statements."""

    def exec_module(self, module):
        """Run the code of the module."""
        module.__builtins__ = vars(builtins) | {'__import__': import_for_user}
        super().exec_module(module)


class OpsoLoader:
    """Gives the user's side a module of OPSO, which is not loaded twice."""

    def __init__(self, name):
        self.name = name

    def create_module(self, spec):
        """Return OPSO's module."""
        with _names(is_user=False):
            module = importlib.import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module):
        """Restore the module's spec, which the import has replaced; its code has run."""
        module.__spec__ = self.spec


def import_for_user(name, globals=None, locals=None, fromlist=(), level=0):
    """Import as `builtins.__import__` does, for a module of the user."""
    package = (globals or {}).get('__package__') or ''
    if _top(package if level else name) not in OPSO_NAMES:
        return builtins.__import__(name, globals, locals, fromlist, level)
    with names_of_user():
        return builtins.__import__(name, globals, locals, fromlist, level)
