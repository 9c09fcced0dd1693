"""Files of weights: safetensors read and written without PyTorch; PyTorch's own only through its weights-only loader.

Nothing in a file is ever executed: safetensors holds numbers alone, and torch.load(weights_only=True) builds tensors and
plain containers and refuses everything else.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from mim_jax.errors import UserError
from mim_jax.paths import open_path, replacing

Arrays = dict[str, np.ndarray]
LONGEST_HEADER = 100_000_000  # bytes, as the format says
WRAPPERS = ('model', 'state_dict')  # keys under which training programs keep the weights among other things
DTYPES = {
    **{'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16, 'BOOL': np.bool_},
    **{'I64': np.int64, 'I32': np.int32, 'I16': np.int16, 'I8': np.int8},
    **{'U64': np.uint64, 'U32': np.uint32, 'U16': np.uint16, 'U8': np.uint8},
}


class WeightsError(UserError):
    """A file of weights that cannot be read, or that does not fit."""


@dataclass(frozen=True)
class Weights:
    """arrays: {name: array}, floats as fp32; notes: what was done to get there, a line each; metadata: text of the file.

    half: some were stored in 16 bits, so that values are exact to about three digits only.
    """

    path: Path
    arrays: Arrays
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    half: bool = False


def read_weights(path: str | Path) -> Weights:
    """Reads .safetensors (or a folder that holds model.safetensors) or, with PyTorch installed, .pth, .pt and .bin.

    What a file is, is told from its content. The wrappers 'model' and 'state_dict' are opened and a 'module.' before every
    name is dropped; floats become fp32. Raises WeightsError: nothing there, truncated, of another kind, with code in it,
    or with values that are not finite.
    """
    path = find_file(open_path(path))
    kind = tell_kind(path)
    tree, metadata = _read_safetensors(path) if kind == 'safetensors' else (_read_torch(path), {})
    notes: list[str] = []
    arrays = _unwrap(tree, path, notes)
    half = any(array.dtype in (np.float16, ml_dtypes.bfloat16) for array in arrays.values())
    arrays = _to_fp32(arrays, notes)
    broken = [name for name, a in arrays.items() if a.dtype.kind == 'f' and not np.isfinite(a).all()]
    if broken:
        raise WeightsError(f'{path} has values that are NaN or infinite in {", ".join(broken)}; the training diverged.')
    return Weights(path, arrays, tuple(notes), metadata, half)


def read_metadata(path: Path) -> dict[str, str]:
    """The text in a safetensors file's header, of which alone is read. Raises WeightsError where it is damaged."""
    with path.open('rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        header = file.read(min(length, LONGEST_HEADER))
    try:
        return json.loads(header).get('__metadata__', {})
    except (ValueError, AttributeError) as error:
        raise WeightsError(f'{path} is truncated or damaged ({error}); delete it.') from error


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes {name: array} in one piece: `path` is the whole new file or what was there before."""
    with replacing(path) as temporary:
        # Kept in a dict, because the writer is given addresses: a transposed view must be laid out anew.
        save_file({name: np.asarray(array, order='C') for name, array in arrays.items()}, temporary, dict(metadata))


def find_file(path: Path) -> Path:
    """The path itself, or model.safetensors in the folder that it is. Raises WeightsError when there is none."""
    if path.is_dir():
        inside = path / 'model.safetensors'
        if not inside.is_file():
            raise WeightsError(f'{path} is a folder without a file model.safetensors; name the file of weights in it.')
        return inside
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob('*') if p.suffix in ('.safetensors', '.pth', '.pt', '.bin'))
        hint = f' {path.parent} has: {", ".join(near)}.' if near else ''
        raise WeightsError(f'There is no file {path}.{hint}')
    return path


def digest_file(path: Path) -> str:
    """Its sha256."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def tell_kind(path: Path) -> str:
    """'safetensors' or 'torch', by content. Raises WeightsError for anything else."""
    with path.open('rb') as file:
        head = file.read(64)
    if head[4:9] == b'\0\0\0\0{':  # a length below 2^32, whose first bytes may be anything, and JSON
        return 'safetensors'
    if head[:2] == b'PK':  # torch's archive is a zip file with a pickle inside
        try:
            with path.open('rb') as file, zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as error:
            raise WeightsError(f'{path} is truncated or damaged ({error}); fetch it again.') from error
        if any(name.endswith('/data.pkl') for name in names):
            return 'torch'
    elif head[:1] == b'\x80':  # a pickle, torch's form before 1.6
        return 'torch'
    elif path.suffix == '.safetensors':
        return 'safetensors'
    raise WeightsError(
        f'{path} is neither a safetensors file nor one of PyTorch: it begins with {head[:24]!r}. Was the download complete?'
    )


def _read_safetensors(path: Path) -> tuple[Arrays, dict[str, str]]:
    data = path.read_bytes()
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise WeightsError(f'{path} is truncated or damaged ({error}); fetch or write it again.') from error
    arrays = {}
    for name, entry in entries:
        if entry['dtype'] not in DTYPES:
            raise WeightsError(f'{path}: {name} is stored as {entry["dtype"]}; quantised weights are not read.')
        arrays[name] = np.frombuffer(entry['data'], DTYPES[entry['dtype']]).reshape(entry['shape'])
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])
    return arrays, header.get('__metadata__', {})


def _read_torch(path: Path) -> Any:
    """The object in a file of torch.save, tensors as numpy arrays."""
    if importlib.util.find_spec('torch') is None:
        raise WeightsError(
            f'{path} is a PyTorch file, and PyTorch is not installed here: pip install torch, or save its weights as '
            'safetensors where PyTorch is (safetensors.torch.save_file).'
        )
    import torch

    try:
        # Training programs keep their command line beside the weights; a Namespace is a bag of values without code.
        with torch.serialization.safe_globals([argparse.Namespace]), path.open('rb') as file:
            loaded = torch.load(file, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f'{path} holds more than tensors, which PyTorch refuses to load because it could run code: '
            f'{_refused_part(str(error))}. Nothing of it was executed. Ask its author for a file of weights alone, or, only '
            'if you trust it, save its tensors anew with safetensors.torch.save_file.'
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightsError(f'{path} is truncated or damaged ({line}); fetch it again.') from error
    return _to_numpy(loaded, torch)


def _refused_part(message: str) -> str:
    """The line of PyTorch's refusal that names what it met."""
    lines = [line.strip() for line in message.splitlines() if 'Unsupported' in line or 'GLOBAL' in line]
    return (lines or message.splitlines() or ['an unreadable pickle'])[0].rstrip('.')


def _to_numpy(value: Any, torch: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.dtype == torch.bfloat16:
            return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()
    return {key: _to_numpy(inner, torch) for key, inner in value.items()} if isinstance(value, dict) else value


def _unwrap(tree: Any, path: Path, notes: list[str]) -> Arrays:
    """The state dict inside; lines to `notes` for everything that is left behind."""
    for _ in WRAPPERS:
        inside = next((key for key in WRAPPERS if isinstance(tree, dict) and isinstance(tree.get(key), dict)), None)
        if inside is None:
            break
        others = sorted(str(key) for key in tree if key != inside)
        notes.append(f"unwrapped '{inside}'" + (f', left aside: {", ".join(others)}' if others else ''))
        tree = tree[inside]
    arrays = {name: a for name, a in tree.items() if isinstance(a, np.ndarray)} if isinstance(tree, dict) else {}
    if not arrays:
        raise WeightsError(f"{path} has no arrays by name, at the top or under 'model' or 'state_dict'.")
    if len(arrays) < len(tree):
        notes.append(f'left aside, not arrays: {", ".join(sorted(str(name) for name in tree if name not in arrays))}')
    if all(name.startswith('module.') for name in arrays):
        notes.append("dropped 'module.' before every name")
        arrays = {name.removeprefix('module.'): array for name, array in arrays.items()}
    return arrays


def _to_fp32(arrays: Arrays, notes: list[str]) -> Arrays:
    converted: dict[str, int] = {}
    result = {}
    for name, array in arrays.items():
        if array.dtype in (np.float16, np.float64, ml_dtypes.bfloat16):
            converted[str(array.dtype)] = converted.get(str(array.dtype), 0) + 1
            with np.errstate(over='ignore'):  # what does not fit becomes infinite, and is refused as such
                array = array.astype(np.float32)
        result[name] = array
    notes += [f'{count} arrays converted from {dtype} to float32' for dtype, count in converted.items()]
    return result
