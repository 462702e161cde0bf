"""No Unix-only feature on the main path, judged from the source."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ('.', 'environments', 'figures', 'labeling', 'observing', 'planning', 'scripts', 'scripts/*')
FILES = sorted({path for folder in FOLDERS for path in ROOT.glob(f'{folder}/*.py')}
               - {ROOT / 'scripts' / 'soak.py'})  # which sends SIGKILL
UNIX_MODULES = {'fcntl', 'resource', 'pwd', 'grp', 'termios', 'pty', 'posix'}
UNIX_NAMES = {'fork', 'forkpty', 'getuid', 'geteuid', 'killpg', 'setsid', 'setpgid', 'uname', 'mkfifo',
              'nice', 'alarm', 'sched_setaffinity', 'SIGKILL', 'SIGSTOP', 'SIGCONT', 'SIGALRM', 'SIGHUP',
              'SIGUSR1', 'SIGUSR2'}


def problems(source):
    """Return the features of a source text that only Unix has, or that differ on Windows."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            found += [name for name in names if name in UNIX_MODULES]
        elif isinstance(node, ast.Attribute) and getattr(node.value, 'id', '') in ('os', 'signal'):
            found += [node.attr] * (node.attr in UNIX_NAMES)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += re.findall(r'^/(?:tmp|dev|var)\b\S*$', node.value)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
            options = {keyword.arg: keyword.value for keyword in node.keywords}
            if name in ('get_context', 'set_start_method') and getattr(node.args[0], 'value', '') != 'spawn':
                found.append(f'{name} other than spawn')
            if name == 'rename':
                found.append('rename: fails on Windows if the target exists; replace does not')
            if name in ('Popen', 'run', 'call') and getattr(options.get('shell'), 'value', False):
                found.append('shell=True')
            if name in ('read_text', 'write_text') and 'encoding' not in options:
                found.append(f'{name} without encoding, line {node.lineno}: not UTF-8 on Windows')
    return found


@pytest.mark.parametrize('source', [
    'import fcntl', 'from resource import getrusage', 'import os\nos.fork()', 'open("/tmp/x")',
    'p.read_text()', 'import signal\nsignal.SIGKILL', 'multiprocessing.get_context("fork")',
    'os.rename(a, b)', 'run("ls", shell=True)'])
def test_problems_finds_unix_features(source):
    assert problems(source)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_sources_use_no_unix_features(path):
    assert not problems(path.read_text(encoding='utf-8'))


def test_docs_list_the_make_targets():
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    targets = re.search(r'^\.PHONY:(.*)$', makefile, re.M)[1].split()
    assert {'demo', 'test', 'install', 'clean'} <= set(targets)
    text = (ROOT / 'docs' / 'running.md').read_text(encoding='utf-8')
    assert not [target for target in targets if f'| `make {target}` |' not in text]
