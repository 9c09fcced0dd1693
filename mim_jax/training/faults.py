"""What an error met while a checkpoint is read or written says: damage, a full disk, or a fault that may pass."""

import errno
import re

import jax

from mim_jax.parallel.hosts import are_several

MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
MISSING_ERRORS = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# How TensorStore names what it cannot find, cut short, or decode (seen when every file was cut and altered at random).
# The others (UNKNOWN, ABORTED, INTERNAL, UNAVAILABLE, RESOURCE_EXHAUSTED, ...) say nothing about the file.
DAMAGE_CODES = {'NOT_FOUND', 'DATA_LOSS', 'OUT_OF_RANGE', 'FAILED_PRECONDITION', 'INVALID_ARGUMENT'}
# What Python and Orbax raise for JSON, UTF-8 or a structure that is not what was written.
DECODING_ERRORS = (ValueError, LookupError, AttributeError, TypeError, NotImplementedError)


def is_damage(error: BaseException) -> bool:
    """Whether a reading error shows that files are missing, truncated or altered; anything unknown does not."""
    chain = _chain(error)
    texts = [str(link) for link in chain]
    numbers = {link.errno for link in chain if isinstance(link, OSError)} - {None}
    numbers |= {int(number) for text in texts for number in re.findall(r"os_error_code='(\d+)'", text)}
    codes = {found[1] for text in texts if (found := re.match(r'([A-Z]+(?:_[A-Z]+)*): ', text))}
    if not (numbers <= MISSING and codes <= DAMAGE_CODES):
        return False
    return bool(codes) or any(isinstance(link, MISSING_ERRORS + DECODING_ERRORS) for link in chain)


def is_out_of_space(error: BaseException) -> bool:
    """Whether a writing error is cured by free space: a full disk, a quota, or a limit on the size of a file."""
    chain = _chain(error)
    if any(isinstance(link, OSError) and link.errno in NO_SPACE for link in chain):
        return True
    signs = r'No space left|quota ?exceeded|File too large|RESOURCE_EXHAUSTED(?!.*(memory|open files))'
    return any(re.search(signs, str(link), re.IGNORECASE | re.DOTALL) for link in chain)


def is_about_hosts(error: BaseException) -> bool:
    """Whether an error met while hosts work together comes from between them: one that is gone, not a file, is at fault."""
    return are_several() and any(isinstance(link, jax.errors.JaxRuntimeError) for link in _chain(error))


def root_cause(error: BaseException) -> str:
    """What the first error of the chain says, without TensorStore's settings and long temporary paths."""
    first = _chain(error)[-1]
    text = (str(first).strip() or type(first).__name__).splitlines()[0]
    text = re.sub(r' in OCDBT database at local file "[^"]*"', '', text)
    return re.sub(r' \[\w+(\[\d+\])?=.*', '', re.sub(r'"/[^"]*/', '"', text)).rstrip('.')


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what led to it, the first one last."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    return chain
