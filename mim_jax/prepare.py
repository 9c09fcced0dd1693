"""Make a dataset's images small once: `python -m mim_jax.prepare --config configs/mae.py:imagenet --out DIR`.

Decoding large photographs is most of the cost of the input. Writes the dataset's splits as ArrayRecord shards that
data.source=tfds reads, in the order of the original. Stopped, it goes on where it was. It is another dataset: a random crop of
a small image is enlarged more often than one of the original, and JPEG is encoded a second time; how far the pixels are off is
printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from mim_jax.command import parse_arguments, read_config, run_program
from mim_jax.data.shards import Shrinking, Written, begin_dataset, end_dataset, write_split
from mim_jax.data.sources import open_source
from mim_jax.errors import UserError
from mim_jax.paths import is_bucket


def main(arguments: Sequence[str]) -> int:
    """Open, shrink, write. Returns the exit status; raises UserError for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.prepare',
        description='Write a dataset with smaller images, of which there is less to decode.',
        epilog='The keys of data say what is read: --config.data.source=folder --config.data.dir=ROOT',
    )
    parser.add_argument('--config', required=True, help='as for mim_jax.train')
    parser.add_argument('--out', required=True, help='the data.dir to be')
    parser.add_argument(
        '--name', default='', help="the data.name to be; without it the dataset's, _ and the short side"
    )
    parser.add_argument('--short-side', type=int, default=256, help='in pixels; smaller images stay as they are')
    parser.add_argument('--quality', type=int, default=92, help='of JPEG, 1 to 100')
    parser.add_argument('--splits', nargs='+', default=[], help='default: those of data.split and data.eval_split')
    parser.add_argument('--shard', type=int, default=4096, help='images in a file')
    options, overrides = parse_arguments(arguments, parser)
    config, _ = read_config(options.config, overrides)
    data, shrink = config.data, Shrinking(options.short_side, options.quality)
    if is_bucket(options.out):
        raise UserError(f'--out {options.out} is a bucket: write to a local folder, and copy it there afterwards.')
    if options.shard < 1:
        raise UserError(f'--shard {options.shard} must be at least 1.')
    if data.source == 'synthetic':
        raise UserError('The synthetic source has no images that could be stored.')
    splits = options.splits or list(dict.fromkeys(name.partition('[')[0] for name in (data.split, data.eval_split)))
    sources = {split: open_source(data, split) for split in splits}
    if len({source.num_classes for source in sources.values()}) > 1:
        counts = ', '.join(f'{split} {source.num_classes}' for split, source in sources.items())
        raise UserError(f'The splits differ in their classes ({counts}): give each a dataset of its own, by --splits.')
    name = options.name or f'{data.name or data.source}_{shrink.short_side}'
    settings = {
        'short_side': shrink.short_side,
        'quality': shrink.quality,
        'shard': options.shard,
        'on_bad_image': data.on_bad_image,
        **{f'fingerprint of {split}': source.fingerprint for split, source in sources.items()},
    }
    folder = begin_dataset(Path(options.out).expanduser(), name, settings)
    written = {}
    for split, source in sources.items():
        print(f'{split}: {source.description}', flush=True)
        start = time.monotonic()

        def report(done: int, total: int = len(source), split: str = split, start: float = start) -> None:
            print(f'{split}: {done:,} of {total:,} images, {time.monotonic() - start:.0f} s', flush=True)

        skip = data.on_bad_image == 'skip'
        written[split] = write_split(source, folder, split, shrink, options.shard, data.threads, skip, report)
        print(describe(split, written[split], shrink), flush=True)
    made = f'{shrink.short_side} pixels at the short side, JPEG quality {shrink.quality}'
    end_dataset(folder, written, next(iter(sources.values())), f'{data.name or data.source}, {made}; mim_jax.prepare')
    print(f'Train on it with --config.data.source=tfds --config.data.name={name} --config.data.dir={options.out}')
    return 0


def describe(split: str, written: Written, shrink: Shrinking) -> str:
    """What became of a split."""
    lines = [
        f'{split}: {sum(written.lengths):,} images in {len(written.lengths)} files, {written.size / 2**20:.1f} MiB.'
    ]
    if written.found:
        lines.append(f'{written.found} of the files were there already.')
    if written.psnrs:
        lines.append(
            f'JPEG of quality {shrink.quality} against the resized pixels, {len(written.psnrs):,} images: PSNR '
            f'{statistics.mean(written.psnrs):.1f} dB on average, lowest {min(written.psnrs):.1f}.'
        )
    if written.bad:
        lines.append(f'{len(written.bad)} images cannot be decoded and were left out, such as {written.bad[0]}.')
    return '\n'.join(lines)


if __name__ == '__main__':
    run_program(main)
