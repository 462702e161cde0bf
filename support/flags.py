"""Command-line flags that are the fields of dataclasses, and the end of a script.

Flags may come from files, one or several a line: `python online_trainer.py @configs/humanoid.args --seed 1`.
A flag given again overrides the earlier one.
"""

import argparse
import dataclasses
import getpass
import math
import operator
import os
import shlex
import sys
import tempfile
from pathlib import Path

from support.contents import has_type
from support.text import printable

RANGE_TESTS = {  # option of `flag` -> (test, words)
    'least': (operator.ge, 'at least'),
    'most': (operator.le, 'at most'),
    'above': (operator.gt, 'above'),
    'below': (operator.lt, 'below'),
}


# ----------------------------------------------------------------------------------------------------- flags
def flag(default, help, basic=False, **options):
    """Return a dataclass field that `add_flags` turns into a command-line flag.

    Args:
        default: value without the flag; None means not given.
        help: text for --help.
        basic: whether --help shows the flag; --help_all shows every flag.
        options: `choices`, `type`, `bare` (the value of a flag without one), and limits of a number: `least`,
            `most` (included), `above`, `below` (excluded). `from_data`: 0 is replaced by a number that follows
            from the data (`Run.set_flags`).
    """
    return dataclasses.field(default=default, metadata={'help': help, 'basic': basic, **options})


def add_flags(parser, config_class, show_all=True):
    """Add one `--flag_name` (or `--flag-name`) for each field of a dataclass to a parser.

    Its help has only the basic flags, unless `show_all` is set or the dataclass has no basic flags.
    """
    group = parser.add_argument_group(config_class.__name__, summary(config_class.__doc__))
    for field in dataclasses.fields(config_class):
        options = {'default': field.default, 'help': field.metadata['help']}
        if field.default is not None:
            options['help'] += f' (default: {field.default})'
        if not show_all and field not in _shown_fields(config_class):
            options['help'] = argparse.SUPPRESS

        if bool in (type(field.default), field.metadata.get('type')):
            options['action'] = argparse.BooleanOptionalAction
        else:
            options['type'] = field.metadata.get('type', type(field.default))
            if 'choices' in field.metadata:
                options['choices'] = field.metadata['choices']
            if 'bare' in field.metadata:
                options |= {'nargs': '?', 'const': field.metadata['bare']}
        names = dict.fromkeys([f'--{field.name}', f"--{field.name.replace('_', '-')}"])
        group.add_argument(*names, dest=field.name, **options)


def _shown_fields(config_class):
    """Return the fields that --help shows: the basic ones, or all if none is basic."""
    fields = dataclasses.fields(config_class)
    return [field for field in fields if field.metadata['basic']] or fields


def check_ranges(*configs):
    """Raise ValueError for a value of another type than its flag, outside its range or choices, or not finite."""
    for config in configs:
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if value is not None or field.default is not None:
                _check_type(field, value)
                _check_range(field, value)


def _check_type(field, value):
    kind = field.metadata.get('type', type(field.default))
    if not has_type(value, kind):
        raise ValueError(f'--{field.name} {value}: must be of type {kind.__name__}')


def _check_range(field, value):
    for name, (holds, words) in RANGE_TESTS.items():
        limit = field.metadata.get(name)
        if limit is not None and not (holds(value, limit) and math.isfinite(value)):
            raise ValueError(f'--{field.name} {value}: must be {words} {limit}')

    choices = field.metadata.get('choices')
    if choices and value not in choices:
        raise ValueError(f'--{field.name} {value}: must be one of {", ".join(choices)}')


# ---------------------------------------------------------------------------------------------------- parser
class FlagParser(argparse.ArgumentParser):
    """A parser of flags and of files of flags (`@file`), whose errors name the file."""

    def __init__(self, *args, **options):
        super().__init__(*args, allow_abbrev=False, fromfile_prefix_chars='@', **options)
        self.file = None  # that is being read

    def convert_arg_line_to_args(self, arg_line):
        """Return the words of one line of a file: quotes as in a shell, comments after #."""
        return shlex.split(arg_line, comments=True)

    def parse_file(self, path):
        """Parse the flags of one file alone -> namespace."""
        if not Path(path).is_file():
            self.error(f'@{path}: no such file of flags')
        self.file = path
        try:
            return self.parse_args([f'@{path}'])
        except ValueError as error:  # of shlex
            self.error(str(error))
        finally:
            self.file = None

    def error(self, message):
        super().error(f'{self.file}: {message}' if self.file else message)


class HelpAll(argparse.Action):
    """Print the help of all flags and exit."""

    def __init__(self, option_strings, dest, full_parser=None, help=None):
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=help)
        self.full_parser = full_parser

    def __call__(self, parser, namespace, values, option_string=None):
        self.full_parser().print_help()
        parser.exit()


def parse_flags(description, *config_classes, argv=None):
    """Return one instance of each dataclass, filled from the command line; unknown flags end the program.

    Args:
        description: docstring of the script, whose first line --help shows.
        config_classes: dataclasses of flags.
        argv: words; None: those of the command line.

    Raises:
        ValueError: a value in a file of flags is outside the range of its flag.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = _make_parser(description, config_classes, show_all=False)

    # files of flags alone first, so that errors name the file
    for path in [word[1:] for word in argv if word.startswith('@')]:
        configs = _make_configs(config_classes, parser.parse_file(path))
        try:
            check_ranges(*configs)
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from None

    return _make_configs(config_classes, parser.parse_args(argv))


def _make_parser(description, config_classes, show_all):
    total = sum(len(dataclasses.fields(config_class)) for config_class in config_classes)
    shown = sum(len(_shown_fields(config_class)) for config_class in config_classes)
    closing = None if show_all or shown == total else f'`--help_all` lists all {total} flags'

    parser = FlagParser(description=summary(description), epilog=closing)
    parser.add_argument('--help_all', '--help-all', action=HelpAll, help='show all flags and exit',
                        full_parser=lambda: _make_parser(description, config_classes, show_all=True))
    for config_class in config_classes:
        add_flags(parser, config_class, show_all)
    return parser


def _make_configs(config_classes, namespace):
    configs = []
    for config_class in config_classes:
        names = [field.name for field in dataclasses.fields(config_class)]
        configs.append(config_class(**{name: getattr(namespace, name) for name in names}))
    return configs


def make_config(config_class, values):
    """Return a dataclass made of a checkpoint's dict, whose values are checked as flags are.

    Raises:
        ValueError: a name is unknown, or a value is not one that its flag can have.
    """
    unknown = sorted(map(str, values.keys() - {field.name for field in dataclasses.fields(config_class)}))
    if unknown:
        raise ValueError(f'it has settings that this version does not know: {", ".join(unknown)}')
    config = config_class(**values)
    check_ranges(config)
    return config


# --------------------------------------------------------------------------------------------------- scripts
def summary(doc):
    """Return the first line of a docstring, which is None under `python -OO`."""
    return (doc or '').partition('\n')[0]


def run_main(main):
    """Run a script's `main`.

    An error that the user can correct becomes one line on stderr and exit code 2, without a traceback. If the
    reader of stdout has closed it (`| head`), the script ends without a message.
    """
    try:
        set_streams()
        set_matplotlib_cache()
        main()
        if sys.stdout is not None:  # None: the script was started without stdout
            sys.stdout.flush()
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        if isinstance(error, BrokenPipeError) and not stdout_is_open():
            sys.exit(1)
        if isinstance(error, MemoryError):
            error = (f'the memory is too small ({error or type(error).__name__}); use fewer data, with '
                     '--max_trajectories in a trainer')
        print(f'error: {printable(error)}', file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if 'MUJOCO_GL' not in str(error):  # an environment variable that MuJoCo refuses
            raise
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        sys.exit(130)


def stdout_is_open():
    """Return whether stdout still has a reader; an empty line tests it. If not, redirect stdout to nowhere.
    """
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def set_streams():
    """Let stdout and stderr print characters that their encoding lacks, as \\xb2, and each line at once."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # a stand-in, or None, has no such method
            stream.reconfigure(errors='backslashreplace', line_buffering=True)


def set_matplotlib_cache():
    """Give matplotlib a cache folder among the temporary files, one per user.

    Its default is the home directory, which may be missing or read-only. A user id in a container may have no
    name.
    """
    if 'MPLCONFIGDIR' in os.environ:
        return
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # the type depends on the version of Python
        user = str(os.getuid()) if hasattr(os, 'getuid') else 'user'
    os.environ['MPLCONFIGDIR'] = str(Path(tempfile.gettempdir(), f'matplotlib-{user}'))
