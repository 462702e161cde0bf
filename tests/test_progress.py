"""Progress in logs: plain lines now and then, no bar, no carriage return; on a terminal a bar."""

import io
import re
import sys
from pathlib import Path

import pytest

from support import progress
from support.progress import ProgressLines, WorkProgress, duration, progress_bar, say

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
    assert lines[0] == 'updates: 1,600 of 4,000, 20 per second, 2 min left, loss 0.5' and len(lines) == 3
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
    say('labels: R² 0.9')
    monkeypatch.setattr(sys, 'stderr', None)
    assert isinstance(progress_bar(range(3)), ProgressLines)


@pytest.mark.parametrize('seconds, text', [
    (3, '1 min'), (100, '2 min'), (3599, '1 h 0 min'), (4210, '1 h 10 min')])
def test_duration_is_in_minutes_and_hours(seconds, text):
    assert duration(seconds) == text


# ------------------------------------------------------------------------------------- work of several kinds
def spend(clock, work, name, count, seconds):
    """Do `count` units of work in `seconds`."""
    for _ in range(count):
        clock[0] += seconds / count
        work.update(name)


def test_share_of_work_is_one_of_time(clock, monkeypatch):
    """2,000 steps took 2 s and 100 updates 10 s, so that 14,000 updates take 1,400 s; the steps alone are not 100 %."""
    log = io.StringIO()
    monkeypatch.setattr(sys, 'stderr', log)
    work = WorkProgress({'steps': 0, 'updates': 0})
    work.expect(steps=2000)
    spend(clock, work, 'steps', 2000, 2.0)
    assert work.share() is None, 'the updates have no speed yet'
    work.expect(steps=0, updates=14_000)
    assert work.share() is None
    spend(clock, work, 'updates', 100, 10.0)
    assert work.seconds_left() == pytest.approx(1390)
    assert work.share() == pytest.approx(12 / 1402)

    spend(clock, work, 'updates', 6900, 690.0)
    work.set_postfix_str('success 95%')
    work.show()
    assert log.getvalue().splitlines()[-1] == ('50 %: 2,000 of 2,000 steps, 7,000 of 14,000 updates, 12 min left, '
                                               'success 95%')
    assert len(log.getvalue().splitlines()) == 1 + 700 // 30


def test_expected_time_follows_recent_rounds(clock):
    """The first round is of random steps at 1,000 per second; later rounds take 10 ms a step, with time for labels."""
    work = WorkProgress({'steps': 0, 'updates': 5})
    spend(clock, work, 'steps', 1000, 1.0)
    expected = []
    for left in range(9000, 0, -1000):
        work.expect(steps=left, updates=0)
        spend(clock, work, 'steps', 1000, 8.0)
        clock[0] += 2.0
        work.update('steps', 0)
        expected.append(work.seconds_left() / (left - 1000) if left > 1000 else work.seconds_left())
    assert expected[0] < 0.008 and expected[-2] == pytest.approx(0.01, rel=0.01) and expected[-1] == 0
    assert work.share() == 1


def test_a_terminal_gets_one_bar_of_work(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    work = WorkProgress({'episodes': 3, 'updates': 0})
    work.counter('episodes').update(2)
    clock[0] += 2
    work.update('updates', 10)
    assert terminal.getvalue().splitlines()[-1].endswith('5 episodes, 10 updates')
    work.expect(episodes=0, updates=10)
    work.close()
    assert '50%|' in terminal.getvalue() and '10 of 20 updates, 1 min left' in terminal.getvalue()


@pytest.mark.parametrize('path', sorted(SOURCES), ids=lambda path: path.stem)
def test_no_module_opens_a_bar_of_its_own(path):
    assert not re.search(r'\btqdm\(', path.read_text(encoding='utf-8'))
