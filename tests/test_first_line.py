"""The first line of a command: at once, on stderr, for scripts of this repository only."""

import sys

import pytest

from support.first_line import ROOT, print_first_line


@pytest.mark.parametrize('path, flags, line', [
    ('evaluate.py', ['--checkpoint', 'last.pth'], 'evaluate.py: loading libraries\n'),
    ('scripts/analysis/draw_maze.py', [], 'scripts/analysis/draw_maze.py: loading libraries\n'),
    ('evaluate.py', ['--help'], ''),
    ('evaluate.py', ['--help-all'], ''),
    ('tests/conftest.py', [], ''),
    ('../robot.py', [], ''),
])
def test_scripts_say_that_they_load_libraries(path, flags, line, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules['__main__'], '__file__', str(ROOT / path), raising=False)
    monkeypatch.setattr(sys, 'argv', [path, *flags])
    print_first_line()
    assert capsys.readouterr() == ('', line)


def test_programs_without_a_file_or_stderr_get_no_line(monkeypatch, capsys):
    monkeypatch.setattr(sys.modules['__main__'], '__file__', None, raising=False)
    print_first_line()
    assert capsys.readouterr() == ('', '')

    monkeypatch.setattr(sys.modules['__main__'], '__file__', str(ROOT / 'evaluate.py'))
    monkeypatch.setattr(sys, 'argv', ['evaluate.py'])
    monkeypatch.setattr(sys, 'stderr', None)
    print_first_line()
    assert capsys.readouterr() == ('', '')
