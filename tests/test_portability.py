"""Windows and macOS: nothing on the main path that only Unix has. Read from the source, since CI runs on Linux."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted({*ROOT.glob('*.py'), *(ROOT / 'scripts').glob('*.py')} - {ROOT / 'scripts' / 'soak.py'})  # it kills
UNIX_MODULES = {'fcntl', 'resource', 'pwd', 'grp', 'termios', 'pty', 'posix'}
UNIX_NAMES = {'fork', 'forkpty', 'getuid', 'geteuid', 'killpg', 'setsid', 'setpgid', 'uname', 'mkfifo', 'nice',
              'SIGKILL', 'SIGSTOP', 'SIGCONT', 'SIGALRM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2', 'alarm', 'sched_setaffinity'}


def problems(source):
    """-> what only Unix has, or what Windows does otherwise, in a source text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            found += [name for name in names if name in UNIX_MODULES]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ('os', 'signal'):
            found += [node.attr] * (node.attr in UNIX_NAMES)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += re.findall(r'^/(?:tmp|dev|var)\b\S*$', node.value)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
            options = {keyword.arg: keyword.value for keyword in node.keywords}
            if name in ('get_context', 'set_start_method') and getattr(node.args[0], 'value', '') != 'spawn':
                found.append(f'{name} other than spawn')
            if name == 'rename':
                found.append('rename: fails on Windows where the target is there; replace does not')
            if name in ('Popen', 'run', 'call') and getattr(options.get('shell'), 'value', False):
                found.append('shell=True')
            if name in ('read_text', 'write_text') and 'encoding' not in options:
                found.append(f'{name} without encoding, line {node.lineno}: not UTF-8 on Windows')
    return found


@pytest.mark.parametrize('source', [
    'import fcntl', 'from resource import getrusage', 'import os\nos.fork()', 'open("/tmp/x")', 'p.read_text()',
    'import signal\nsignal.SIGKILL', 'multiprocessing.get_context("fork")', 'os.rename(a, b)', 'run("ls", shell=True)'])
def test_problems_are_found(source):
    assert problems(source)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_nothing_that_only_unix_has(path):
    assert not problems(path.read_text(encoding='utf-8'))


def test_make_targets_are_wrappers_that_the_docs_spell_out():
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    targets = re.search(r'^\.PHONY:(.*)$', makefile, re.M)[1].split()
    assert {'demo', 'test', 'install', 'clean'} <= set(targets)
    text = (ROOT / 'docs' / 'running.md').read_text(encoding='utf-8')
    assert not [target for target in targets if f'| `make {target}` |' not in text]
