"""Command-line flags that are the fields of a dataclass, and how a script ends."""

import argparse
import dataclasses
import getpass
import math
import operator
import os
import sys
import tempfile
from pathlib import Path


def flag(default, help, **options):
    """A dataclass field that `add_flags` turns into a command-line flag; options: `choices`, `type`, and the range that
    `check_ranges` knows: `least`, `most` (included), `above`, `below` (excluded)."""
    return dataclasses.field(default=default, metadata={'help': help, **options})


def add_flags(parser, config_class):
    """One `--flag_name` (or `--flag-name`) for each field of a dataclass, its default shown in --help."""
    group = parser.add_argument_group(config_class.__name__, (config_class.__doc__ or '').strip())
    for field in dataclasses.fields(config_class):
        options = {'default': field.default, 'help': field.metadata['help']}
        if field.default is not None:  # else the help says what happens without it
            options['help'] += f' (default: {field.default})'
        if bool in (type(field.default), field.metadata.get('type')):
            options['action'] = argparse.BooleanOptionalAction
        else:
            options['type'] = field.metadata.get('type', type(field.default))
            if 'choices' in field.metadata:
                options['choices'] = field.metadata['choices']
        names = dict.fromkeys([f'--{field.name}', f"--{field.name.replace('_', '-')}"])
        group.add_argument(*names, dest=field.name, **options)


def check_ranges(*configs):
    """Raise ValueError for a number outside the range of its flag, NaN and infinity among them."""
    tests = {'least': (operator.ge, 'at least'), 'most': (operator.le, 'at most'), 'above': (operator.gt, 'above'),
             'below': (operator.lt, 'below')}
    for field, value in ((f, getattr(c, f.name)) for c in configs for f in dataclasses.fields(c)):
        if value is None:  # not given
            continue
        for name, (holds, words) in tests.items():
            if name in field.metadata and not (holds(value, field.metadata[name]) and math.isfinite(value)):
                raise ValueError(f'--{field.name} {value}: must be {words} {field.metadata[name]}')
        if field.metadata.get('choices') and value not in field.metadata['choices']:
            raise ValueError(f'--{field.name} {value}: must be one of {", ".join(field.metadata["choices"])}')


def parse_flags(description, *config_classes, argv=None):
    """-> one instance of each dataclass, filled from the command line (unknown flags end the program)."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    for config_class in config_classes:
        add_flags(parser, config_class)
    values = vars(parser.parse_args(argv))
    return [cls(**{f.name: values[f.name] for f in dataclasses.fields(cls)}) for cls in config_classes]


def run_main(main):
    """Run a script's `main`: what the user can mend is one line on stderr and exit code 2, not a traceback. Where
    nobody reads the output any more (`| head`), it ends without a word."""
    try:
        keep_out_of_home()
        main()
        if sys.stdout is not None:  # closed
            sys.stdout.flush()
    except (ValueError, OSError, FloatingPointError) as error:
        if isinstance(error, BrokenPipeError) and not is_read():
            sys.exit(1)
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        sys.exit(130)


def is_read():
    """Does somebody read stdout? An empty line probes it. If not, what is left to be written goes nowhere."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def keep_out_of_home():
    """matplotlib would keep its list of fonts in the home directory, which may be missing or read-only; each user gets
    a folder among the temporary ones instead. In a container the user id need not have a name."""
    if 'MPLCONFIGDIR' in os.environ:
        return
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # the kinds depend on the version of Python
        user = str(os.getuid()) if hasattr(os, 'getuid') else 'user'
    os.environ['MPLCONFIGDIR'] = str(Path(tempfile.gettempdir(), f'matplotlib-{user}'))


def make_config(config_class, values):
    """A dataclass from a checkpoint's dict. Raises ValueError that names fields which this code does not know."""
    unknown = sorted(values.keys() - {field.name for field in dataclasses.fields(config_class)})
    if unknown:
        raise ValueError(f'it has settings that this version does not know: {", ".join(unknown)}')
    return config_class(**values)
