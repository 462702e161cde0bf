"""The end of forked processes, for tests that fork instead of starting an interpreter."""

import os
import sys
import threading
import traceback

from tqdm import tqdm


def end_with(function):
    """Call a function in a forked process; end the process with the exit code that an interpreter would have."""
    tqdm.set_lock(threading.RLock())  # tqdm shares its own with the parent: a killed child would block it
    code = 1
    try:
        function()
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
