"""Progress in logs: plain lines now and then, no bar, no carriage return; on a terminal a bar."""

import io
import re
import sys
from pathlib import Path

import pytest

from support import progress
from support.progress import ProgressLines, progress_bar, say

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ('.', 'environments', 'figures', 'labeling', 'observing', 'planning', 'support', 'scripts', 'scripts/*')
SOURCES = {path for folder in FOLDERS for path in ROOT.glob(f'{folder}/*.py')} - {ROOT / 'support' / 'progress.py'}


class Terminal(io.StringIO):
    def isatty(self):
        return True


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(28, 'No space left on device')


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose first item is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    return now


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    assert list(progress_bar(range(3), 'updates', mininterval=0)) == [0, 1, 2]
    assert '3/3' in terminal.getvalue() and '\r' in terminal.getvalue()


def test_a_log_gets_a_plain_line_now_and_then(clock, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, 'stderr', log)
    with progress_bar(total=4000, initial=1000, unit='update') as bar:
        bar.set_postfix_str('loss 0.5')
        for _ in range(100):
            clock[0] += 1
            bar.update(20)
        assert bar.n == 3000 and bar.total == 4000
    lines = log.getvalue().splitlines()
    assert lines[0] == 'updates: 1,600 of 4,000, 20 per second, loss 0.5' and len(lines) == 3
    assert not set('\r\x1b') & set(log.getvalue())


def test_short_loops_leave_no_line(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, 'stderr', log)
    assert list(progress_bar(range(500), 'labels', leave=False, delay=1)) == list(range(500))
    assert list(progress_bar(iter('ab'), total=2)) == ['a', 'b']
    assert log.getvalue() == ''


def test_bytes_have_a_prefix(clock, monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, 'stderr', log)
    bar = progress_bar(desc='data', total=None, unit='B', unit_scale=True)
    clock[0] += 60
    bar.update(3_000_000)
    assert log.getvalue() == 'data: 3.00M, 5e+04 per second\n'


def test_a_log_that_cannot_be_written_ends_no_loop(clock, monkeypatch):
    monkeypatch.setattr(sys, 'stderr', FullDisk())
    monkeypatch.setattr(sys, 'stdout', FullDisk())
    bar = progress_bar(total=3)
    clock[0] += 60
    bar.update()
    say('expected time: 1 min')
    monkeypatch.setattr(sys, 'stderr', None)
    assert isinstance(progress_bar(range(3)), ProgressLines)


@pytest.mark.parametrize('path', sorted(SOURCES), ids=lambda path: path.stem)
def test_no_module_opens_a_bar_of_its_own(path):
    assert not re.search(r'\btqdm\(', path.read_text(encoding='utf-8'))
