"""Text of unknown origin, made printable."""

import re

import numpy as np

MAX_FOREIGN = 300  # characters of one foreign text in a message


def printable(text, max_length=None):
    """Return a text as one line without control characters; a longer one than `max_length` is cut.

    Line breaks and tabs become one space. Other characters that move the cursor, change colours or hide text
    become escapes such as \\x1b.
    """
    line = re.sub(r'\s*[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]\s*', ' ', str(text)).strip()
    line = ''.join(char if char.isprintable() else char.encode('unicode_escape').decode() for char in line)
    return line if max_length is None or len(line) <= max_length else f'{line[:max_length]} …'


def listed(values, most):
    """Return at most `most` of some values, separated by commas, for a message."""
    return ', '.join(map(str, values[:most])) + (', …' if len(values) > most else '')


def ranges(numbers):
    """Return increasing numbers as text: '0-2, 5', or 'none'."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1) if len(numbers) else []
    return ', '.join(f'{run[0]}-{run[-1]}' if len(run) > 1 else f'{run[0]}' for run in runs) or 'none'


def foreign(text):
    """Return a text that a server, a file or another program wrote, for a message."""
    return printable(text, MAX_FOREIGN)
