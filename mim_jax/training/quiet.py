"""Keeps Orbax's pages of tracebacks off the terminal: each error they print is also raised, and told in one line.

When one array of a checkpoint cannot be read, Orbax abandons the reads of all others, and each of those complains
later, from a thread or when it is collected, through a logger or a hook of the interpreter.
"""

import functools
import logging
import sys

ABANDONED = ('Event loop is closed', 'Encountered error while reading array index', 'OCDBT database')


@functools.cache
def silence_orbax() -> None:
    """Filters Orbax's own log records and its abandoned reads out of this process; everything else passes."""
    logging.getLogger('absl').addFilter(lambda record: 'orbax' not in record.pathname)
    logging.getLogger('asyncio').addFilter(lambda record: not (record.exc_info and _is_abandoned(record.exc_info[1])))
    unraisable_hook, except_hook = sys.unraisablehook, sys.excepthook

    def report_unraisable(unraisable):
        if not _is_abandoned(unraisable.exc_value):
            unraisable_hook(unraisable)

    def report_exception(kind, error, traceback):
        if not _is_abandoned(error):
            except_hook(kind, error, traceback)

    sys.unraisablehook, sys.excepthook = report_unraisable, report_exception


def _is_abandoned(error: BaseException | None) -> bool:
    return any(words in str(error) for words in ABANDONED)
