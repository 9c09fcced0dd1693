"""Images per second of the input, ours beside torchvision's. .venv-parity/bin/python benchmarks/input.py --folder ROOT

Decode, RandomResizedCrop(224, scale .2 to 1, bicubic, antialiased), flip; the same files, the same number of cores. The peer is
MAE's own pipeline: torchvision's ImageFolder and transforms on Pillow, ToTensor, Normalize, a DataLoader with a worker a core.
Ours gives bytes, which the step normalises on the device; what it costs there is part of benchmarks/step.py. Contestants are
processes that take turns; a turn is a pass over the files, in batches. Each also reads the files after `mim_jax.prepare` has
made their short side 256 (ours from its shards; the peer from the same images as files).

ROOT has folders of classes, such as ../shared/data/imagenet_sample_folder (photos whose short side is 256 already).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks' / 'results' / 'input.json'
SIZE, BATCH = 224, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', type=Path, required=True)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--cores', type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument('--short-side', type=int, default=256)
    parser.add_argument('--out', type=Path, default=RESULTS)
    parser.add_argument('--serve', nargs=3, default=[], help=argparse.SUPPRESS)  # contestant, folder, name of shards
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    if options.serve:
        serve(*options.serve, options.cores)
        return
    with tempfile.TemporaryDirectory() as made:
        small = prepare(options.folder, Path(made), options.short_side)
        places = {
            'mim_jax': ('mim_jax', options.folder, ''),
            'torchvision': ('torchvision', options.folder, ''),
            'mim_jax, prepared': ('mim_jax', made, 'small'),
            'torchvision, prepared': ('torchvision', small, ''),
        }
        served = {name: start(*place, options.cores) for name, place in places.items()}
        rates: dict[str, list[float]] = {name: [] for name in served}
        try:
            for turn in range(options.rounds + 1):
                for name, child in served.items():
                    rate = ask(name, child)
                    if turn:  # the first warms up
                        rates[name].append(rate)
        finally:
            for child in served.values():
                child.kill()
                child.wait()
    report(rates, options)


def prepare(folder: Path, made: Path, short_side: int) -> Path:
    """Shards of the images, made small, and a folder of the same encoded images for the peer."""
    line = ['--config', 'configs/mae.py:folder', f'--config.data.dir={folder.absolute()}', '--out', str(made)]
    line += ['--name', 'small', '--short-side', str(short_side), '--splits', 'train']
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-m', 'mim_jax.prepare', *line]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    sys.path.insert(0, str(ROOT))
    source = open_images(str(made), 'small')
    files = made / 'files'
    for index in range(len(source)):
        example = source[index]
        path = files / f'{example.label:05d}' / f'{index}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(example.image)
    return files


def open_images(folder: str, name: str) -> Any:
    """Our source: of TFDS where there is a name, of a folder else."""
    from ml_collections import ConfigDict

    from mim_jax.data.sources import open_source

    return open_source(ConfigDict({'source': 'tfds' if name else 'folder', 'name': name, 'dir': folder}), 'train')


def start(contestant: str, folder: Path | str, name: str, cores: int) -> subprocess.Popen:
    """A contestant's process."""
    command = [sys.executable, __file__, '--folder', str(folder), '--cores', str(cores)]
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
    return subprocess.Popen(
        [*command, '--serve', contestant, str(folder), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def ask(name: str, child: subprocess.Popen) -> float:
    """Images per second of one pass."""
    child.stdin.write('go\n')
    child.stdin.flush()
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f'{name} ended with status {child.wait()}')
    return float(json.loads(line))


def report(rates: dict[str, list[float]], options: argparse.Namespace) -> None:
    """A table, and this folder's part of results/input.json."""
    found = {'command': ' '.join(sys.argv), 'date': time.strftime('%Y-%m-%d'), 'cores': options.cores, 'rates': rates}
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    pairs = {
        'ratio': ('mim_jax', 'torchvision'),
        'ratio_prepared': ('mim_jax, prepared', 'torchvision'),
        'ratio_both_prepared': ('mim_jax, prepared', 'torchvision, prepared'),
    }
    print('| contestant | images a second and core, median | least to most |\n|---|---|---|')
    for name, values in rates.items():
        each = [value / options.cores for value in values]
        print(f'| {name} | {statistics.median(each):.0f} | {min(each):.0f} to {max(each):.0f} |')
    for key, (ours, theirs) in pairs.items():
        ratios = [a / b for a, b in zip(rates[ours], rates[theirs], strict=True)]
        found[key] = [statistics.median(ratios), min(ratios), max(ratios)]
        print(f'{ours} / {theirs}: {found[key][0]:.2f} ({found[key][1]:.2f} to {found[key][2]:.2f})')
    options.out.parent.mkdir(parents=True, exist_ok=True)
    kept[f'{options.folder.name}, short side {options.short_side}'] = found
    options.out.write_text(json.dumps(kept, indent=1) + '\n')


# -- a contestant's process ----------------------------------------------------------------------------------------------
def serve(contestant: str, folder: str, name: str, cores: int) -> None:
    """Answer every line with the images per second of one pass."""
    passes = (ours if contestant == 'mim_jax' else torchvisions)(folder, name, cores)
    for _ in sys.stdin:
        begun = time.perf_counter()
        count = next(passes)
        print(count / (time.perf_counter() - begun), flush=True)


def ours(folder: str, name: str, cores: int) -> Iterator[int]:
    """Passes over our loader, without its cache; each gives the number of its images."""
    from mim_jax.data.augment import Crop
    from mim_jax.data.loader import Loader

    source = open_images(folder, name)
    loader = Loader(source, {'main': Crop('rrc', SIZE)}, BATCH, seed=0, threads=cores)
    steps = len(source) // BATCH
    turn = 0
    while True:
        yield sum(len(batch['main']) for batch in loader.batches(turn * steps, (turn + 1) * steps))
        turn += 1


def torchvisions(folder: str, name: str, cores: int) -> Iterator[int]:
    """Passes over MAE's pipeline (facebookresearch/mae main_pretrain.py)."""
    del name
    import torch
    from torchvision import datasets, transforms

    torch.set_num_threads(1)
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    dataset = datasets.ImageFolder(folder, transform)
    loader = torch.utils.data.DataLoader(
        dataset, BATCH, shuffle=True, num_workers=cores, drop_last=True, persistent_workers=True
    )
    while True:
        yield sum(len(images) for images, _ in loader)


if __name__ == '__main__':
    main()
