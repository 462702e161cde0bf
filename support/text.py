"""Text of unknown origin, made printable."""

MAX_LENGTH = 600  # characters of one foreign text in a message


def printable(text):
    """Return a foreign text (of a server, a file, another program) as one line without control characters.

    White space becomes one space. Other characters that move the cursor, change colours or hide text are
    written as escapes such as \\x1b. A long text is cut.
    """
    line = ' '.join(str(text).split())
    line = ''.join(char if char.isprintable() else char.encode('unicode_escape').decode() for char in line)
    return line if len(line) <= MAX_LENGTH else f'{line[:MAX_LENGTH]} …'
