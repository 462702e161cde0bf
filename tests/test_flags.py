"""Flags from dataclasses: two levels of help, and files of flags; and the streams of a script."""

import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.flags import flag, make_config, parse_flags, run_main

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass
class Basic:
    """some flags are basic"""
    rate: float = flag(0.1, 'learning rate', basic=True, above=0)
    kind: str = flag('slow', 'kind of run', basic=True, choices=('slow', 'fast'))
    hidden_dim: int = flag(8, 'width of the network', least=1)
    draw: bool = flag(True, 'draw figures')


@dataclasses.dataclass
class Plain:
    """no flag is basic"""
    noise: float = flag(0.0, 'standard deviation of the noise')


def parse(*argv, configs=(Basic, Plain)):
    return parse_flags('a script', *configs, argv=list(argv))


def help_text(capsys, word, configs=(Basic, Plain)):
    with pytest.raises(SystemExit) as end:
        parse(word, configs=configs)
    assert end.value.code == 0
    return capsys.readouterr().out


def write(folder, text, name='robot.args'):
    path = folder / name
    path.write_text(text, encoding='utf-8')
    return f'@{path.as_posix()}'  # a backslash is an escape in such files


def error_of(capsys, *argv):
    """Return the last line on stderr of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as end:
        parse(*argv)
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


# Help


def test_help_shows_basic_flags_and_names_help_all(capsys):
    text = help_text(capsys, '--help')
    assert '--rate' in text and '--kind' in text and 'learning rate (default: 0.1)' in text
    assert '--hidden_dim' not in text and '--draw' not in text
    assert text.rstrip().endswith('`--help_all` lists all 5 flags')


def test_help_shows_all_flags_of_a_dataclass_without_basic_flags(capsys):
    assert '--noise' in help_text(capsys, '--help')
    text = help_text(capsys, '--help', configs=[Plain])
    assert '--noise' in text and 'lists all' not in text


@pytest.mark.parametrize('word', ['--help_all', '--help-all'])
def test_help_all_shows_every_flag(capsys, word):
    text = help_text(capsys, word)
    for name in ('--rate', '--kind', '--hidden_dim', '--hidden-dim', '--draw', '--no-draw', '--noise'):
        assert name in text
    assert 'lists all' not in text


def test_flags_that_help_hides_can_be_given():
    config, _ = parse('--hidden_dim', '3', '--no-draw')
    assert (config.hidden_dim, config.draw) == (3, False)


# Files of flags


def test_file_of_flags_holds_several_flags_per_line_and_comments(tmp_path):
    path = write(tmp_path, '# a robot\n--rate 0.5 --kind fast  # both\n\n--no-draw\n  --noise "2.5"\n')
    basic, plain = parse(path)
    assert (basic.rate, basic.kind, basic.draw, plain.noise) == (0.5, 'fast', False, 2.5)
    assert basic.hidden_dim == 8, 'the default'


def test_later_flags_override_a_file(tmp_path):
    path = write(tmp_path, '--rate 0.5')
    assert parse(path, '--rate', '2')[0].rate == 2
    assert parse('--rate', '2', path)[0].rate == 0.5
    assert parse(path, write(tmp_path, '--rate 3', 'other.args'))[0].rate == 3


def test_file_of_flags_may_name_another_file(tmp_path):
    inner = write(tmp_path, '--rate 0.5', 'inner.args')
    assert parse(write(tmp_path, f'{inner}\n--noise 1'))[0].rate == 0.5


@pytest.mark.parametrize('text, words', [
    ('--colour red', 'unrecognized arguments: --colour red'),
    ('--rate much', "argument --rate: invalid float value: 'much'"),
    ('--kind odd', 'argument --kind: invalid choice'),
    ('--rat 0.5', 'unrecognized arguments: --rat 0.5'),
    ('--rate "0.5', 'No closing quotation'),
    ('@missing.args', 'missing.args'),
])
def test_error_in_a_file_of_flags_names_the_file(tmp_path, capsys, text, words):
    path = write(tmp_path, text)
    line = error_of(capsys, '--noise', '1', path)
    assert f'error: {path[1:]}: ' in line and words in line
    assert path not in error_of(capsys, '--colour', 'red')


def test_value_out_of_range_in_a_file_of_flags_names_the_file(tmp_path):
    path = write(tmp_path, '--hidden_dim 0')
    with pytest.raises(ValueError, match='robot.args: --hidden_dim 0: must be at least 1'):
        parse(path)


def test_missing_file_of_flags_is_one_error_line(tmp_path, capsys):
    assert error_of(capsys, f'@{tmp_path.as_posix()}/none.args').endswith('none.args: no such file of flags')


# The end of a script


def test_an_environment_variable_that_mujoco_refuses_is_one_line(capsys):
    def main():
        raise RuntimeError('Environment variable MUJOCO_GL must be one of egl, glfw: got wgl')

    with pytest.raises(SystemExit, match='2'):
        run_main(main)
    assert capsys.readouterr().err == 'error: Environment variable MUJOCO_GL must be one of egl, glfw: got wgl\n'


# Values of files


@pytest.mark.parametrize('values, words', [
    ({'rate': '0.5'}, '--rate 0.5: must be of type float'), ({'rate': True}, 'of type float'),
    ({'rate': float('nan')}, '--rate nan: must be above 0'), ({'hidden_dim': 8.0}, '--hidden_dim 8.0: must be of type'),
    ({'hidden_dim': None}, '--hidden_dim None'), ({'kind': 'odd'}, '--kind odd: must be one of slow, fast'),
    ({'kind': 3}, 'of type str'), ({'draw': 1}, 'of type bool'), ({'colour': 1}, 'does not know: colour'),
])
def test_settings_of_a_checkpoint_are_checked_as_flags_are(values, words):
    with pytest.raises(ValueError, match=words):
        make_config(Basic, values)
    assert make_config(Basic, {'rate': 1, 'kind': 'fast'}) == Basic(1, 'fast')
# ------------------------------------------------------------------------------------------------ the streams
def test_a_stdout_that_lacks_a_character_ends_no_script(monkeypatch):
    """A Japanese Windows redirects to cp932, which has no superscript 2."""
    for encoding in ('cp932', 'ascii'):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, 'stdout', stream)
        run_main(lambda: print('R² 0.97, für …'))
        assert stream.buffer.getvalue().startswith(b'R\\xb2 0.97')


def test_lines_of_a_log_are_written_at_once(monkeypatch):
    """A log of a batch system shows the last line before a kill."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding='utf-8')
    monkeypatch.setattr(sys, 'stdout', stream)

    def main():
        print('run folder: here')
        assert stream.buffer.getvalue() == b'run folder: here\n'

    run_main(main)


def test_help_of_the_demo_is_printed_in_ascii():
    words = [sys.executable, ROOT / 'scripts' / 'demo.py', '--help']
    done = subprocess.run(words, capture_output=True, env=os.environ | {'PYTHONIOENCODING': 'ascii'})
    assert done.returncode == 0 and b'demo_run' in done.stdout, done.stderr
