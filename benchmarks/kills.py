"""Kill a run of several processes at random moments; it must end as if nothing had happened. python benchmarks/kills.py DIR

For every number of processes one run is left in peace. Then others like it, under launch/babysit.py and launch/local_pod.py,
are killed a few times each: one process or all, by SIGKILL or SIGTERM, at a random time, in the middle of a save, while they
evaluate, or while they start. The end of each must be the same bit for bit: the whole state, every loss, every probe.

Everything is a function of --seed. DIR keeps the results: the same command goes on with the rounds that are missing.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STEPS, EVERY, WATCHED = 96, 6, 8
BATCH = 24  # which two, three and four processes share
SETTINGS = {
    'image_size': 16,
    'batch_size': BATCH,
    'encoder.width': 16,
    'encoder.depth': 1,
    'mae.decoder_width': 16,
    'mae.decoder_depth': 1,
    'mae.decoder_heads': 2,
    'steps': STEPS,
    'checkpoint.every_steps': EVERY,
    'probe.every_epochs': WATCHED * BATCH / 1437,
    'probe.ridge': False,
    'probe.train_images': 512,
    'probe.test_images': 256,
    'log.every_steps': 1,
    'log.tensorboard': False,
    'data.threads': 1,
}
SIGNALS, WHOM, MOMENTS = ('SIGKILL', 'SIGTERM'), ('one', 'all'), ('step', 'save', 'evaluation', 'start')
PATIENCE = 600  # seconds for the next process to appear, or the next step to be done
PAUSE = 0.001


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='of the runs and the results')
    parser.add_argument('--kills', type=int, default=50, help='altogether')
    parser.add_argument('--each', type=int, default=6, help='kills of one run')
    parser.add_argument('--processes', type=int, nargs='+', default=[2, 3, 4])
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    results = options.folder / 'kills.jsonl'
    rounds = -(-options.kills // options.each)
    for number in range(rounds):
        done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        if any(one['round'] == number for one in done):
            continue
        processes = options.processes[number % len(options.processes)]
        count = min(options.each, options.kills - number * options.each)
        kinds = deal_kinds(options.seed, number * options.each, count)
        found = run_round(options.folder, processes, kinds, random.Random(f'{options.seed}/{number}'))
        with results.open('a') as file:
            file.write(json.dumps({'round': number, 'processes': processes, **found}) + '\n')
    return print_table([json.loads(line) for line in results.read_text().splitlines()])


def deal_kinds(seed: int, first: int, count: int) -> list[dict[str, str]]:
    """What the kills from number `first` on are: all sixteen kinds come before one comes again, in random order."""
    kinds = []
    for number in range(first, first + count):
        deck = list(itertools.product(SIGNALS, WHOM, MOMENTS))
        random.Random(f'{seed}/deck/{number // len(deck)}').shuffle(deck)
        kinds.append(dict(zip(('signal', 'whom', 'moment'), deck[number % len(deck)], strict=True)))
    return kinds


def run_round(folder: Path, processes: int, kinds: Sequence[dict[str, str]], draw: random.Random) -> dict[str, Any]:
    """Kill one run a few times -> {'kills': what was done, 'differences': how its end differs from an undisturbed one's}."""
    whole = folder / f'whole_{processes}'
    if not is_finished(whole):
        shutil.rmtree(whole, ignore_errors=True)
        subprocess.run(
            command(whole, processes), env=environment(folder), cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
    workdir = folder / 'run'
    shutil.rmtree(workdir, ignore_errors=True)
    supervised = [
        sys.executable,
        'launch/babysit.py',
        '--tries',
        '100',
        '--wait',
        '0',
        '--',
        *command(workdir, processes),
    ]
    start, kills = time.monotonic(), []
    with (folder / 'run.log').open('w') as log:
        family = subprocess.Popen(supervised, env=environment(folder), cwd=ROOT, stdout=log, stderr=log)
        try:
            for turn, kind in enumerate(kinds):
                goal = STEPS * (turn + 1) // (len(kinds) + 2)  # so that all find their turn before the run ends
                kills.append(kill_once(family, workdir, processes, kind, goal, draw))
            status = family.wait(PATIENCE)
        finally:
            end_family(family)
    if status:
        raise SystemExit(f'The run ended with status {status}; see {folder / "run.log"}.')
    differences = compare(workdir, whole)
    print(
        f'{processes} processes, {len(kinds)} kills, {time.monotonic() - start:.0f} s: {differences or "the same end"}',
        flush=True,
    )
    return {'kills': kills, 'differences': differences}


def command(workdir: Path, processes: int) -> list[str]:
    """A tiny run over `processes` processes with one device each."""
    flags = [f'--config.{key}={value}' for key, value in SETTINGS.items()]
    program = [
        sys.executable,
        '-m',
        'mim_jax.train',
        '--config',
        'configs/mae.py:smoke',
        '--workdir',
        str(workdir),
        *flags,
    ]
    return [sys.executable, 'launch/local_pod.py', '--processes', str(processes), '--devices', '1', '--', *program]


def environment(folder: Path) -> dict[str, str]:
    """All processes compile each program once."""
    cache = {
        'JAX_COMPILATION_CACHE_DIR': str(folder / 'compilations'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT), **cache}


# -- one kill ----------------------------------------------------------------------------------------------------------
def kill_once(
    family: subprocess.Popen, workdir: Path, processes: int, kind: dict[str, str], goal: int, draw: random.Random
) -> dict[str, Any]:
    """Wait until `goal` steps are done, then for the moment, then send the signal to one process, any, or to all."""
    delay, victim = draw.random(), draw.randrange(processes)

    def at(moment: Callable[[], Any]) -> Any:
        end = time.monotonic() + PATIENCE
        while not (found := moment()):
            if family.poll() is not None or time.monotonic() > end:
                raise SystemExit(f'{kind}: this moment never came (status of the run: {family.poll()}).')
            time.sleep(PAUSE)
        return found

    def hosts() -> list[int]:
        found = find_hosts(family.pid)
        return found if len(found) == processes else []

    if kind['moment'] != 'start':
        at(lambda: last_step(workdir) >= goal)
    pids = at(hosts)
    if kind['moment'] == 'save':
        at(lambda: is_saving(workdir))
    elif kind['moment'] == 'evaluation':
        at(lambda: last_step(workdir) % WATCHED == 0 and hosts() == pids)
    else:
        time.sleep(8 * delay if kind['moment'] == 'start' else delay)
    victims = pids if kind['whom'] == 'all' else [pids[victim]]
    step = last_step(workdir)
    for pid in victims:
        send(pid, kind['signal'])
    at(lambda: family.poll() is not None or not set(pids) & set(find_hosts(family.pid)))
    print(f'  {kind["signal"]} to {kind["whom"]} at step {step}, aimed at {kind["moment"]}', flush=True)
    return {**kind, 'step': step}


def send(pid: int, name: str) -> None:
    try:
        os.kill(pid, signal.Signals[name])
    except ProcessLookupError:
        print('  (this one had ended by itself)', flush=True)


def find_hosts(ancestor: int) -> list[int]:
    """The training processes below a process, in the order in which they were started."""
    below, found = [ancestor], []
    while below:
        pid = below.pop(0)
        try:
            text = Path(f'/proc/{pid}/task/{pid}/children').read_text()
            line = Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')
        except (FileNotFoundError, ProcessLookupError):
            continue
        if line[1:3] == [b'-m', b'mim_jax.train']:
            found.append(pid)
        else:
            below += map(int, text.split())
    return sorted(found)


def end_family(family: subprocess.Popen) -> None:
    """Nothing is left running, whatever happened."""
    below, all_pids = [family.pid], []
    while below:
        pid = below.pop()
        all_pids.append(pid)
        try:
            below += map(int, Path(f'/proc/{pid}/task/{pid}/children').read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    for pid in all_pids if family.poll() is None else ():
        send(pid, 'SIGKILL')


# -- what can be seen from outside -------------------------------------------------------------------------------------
def last_step(workdir: Path) -> int:
    """The newest step in the journal."""
    journal = workdir / 'metrics.jsonl'
    lines = journal.read_text().splitlines() if journal.exists() else []
    steps = [json.loads(line)['step'] for line in lines if line.endswith('}')]
    return max(steps, default=0)


def is_saving(workdir: Path) -> bool:
    """Whether a checkpoint is there, but not committed."""
    try:
        folders = [path for path in (workdir / 'checkpoints').iterdir() if path.is_dir()]
        return any(not (path / 'commit_success.txt').exists() for path in folders)
    except FileNotFoundError:  # renamed or made while being looked at
        return False


def is_finished(workdir: Path) -> bool:
    """Whether a run has come to its end."""
    summary = workdir / 'summary.json'
    return summary.exists() and json.loads(summary.read_text())['status'] == 'finished'


def compare(workdir: Path, whole: Path) -> list[str]:
    """What is not the same at the end of two runs: names of arrays, and of journalled values."""
    ours, theirs = ({**read_arrays(run), **read_journal(run)} for run in (workdir, whole))
    return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))


def read_arrays(workdir: Path) -> dict[str, Any]:
    """{path: shape, type and fingerprint} of the whole state in the last checkpoint."""
    seal = json.loads((workdir / 'checkpoints' / str(STEPS) / 'seal' / 'metadata').read_text())
    return json.loads(seal['text'])['arrays']


def read_journal(workdir: Path) -> dict[str, Any]:
    """{'loss/total at step 3': [value]}; a value that is there twice is a difference, too."""
    values = collections.defaultdict(list)
    for line in (workdir / 'metrics.jsonl').read_text().splitlines():
        event = json.loads(line)
        for key in event:
            if key.startswith(('loss/', 'probe/', 'untrained/')):
                values[f'{key} at step {event["step"]}'].append(event[key])
    return dict(values)


def print_table(rounds: Sequence[Mapping[str, Any]]) -> int:
    """Kills by kind, and how many of the runs they were in ended alike. The exit status: 0 if all did."""
    counted: dict[tuple, list[bool]] = collections.defaultdict(list)
    for one in rounds:
        for kill in one['kills']:
            counted[kill['signal'], kill['whom'], kill['moment']].append(not one['differences'])
    print('| signal | to | moment | kills | in runs that ended the same, bit for bit |\n|---|---|---|---|---|')
    for kind, same in sorted(counted.items()):
        print(f'| {" | ".join(kind)} | {len(same)} | {sum(same)} |')
    total = [same for group in counted.values() for same in group]
    print(f'| all | | | {len(total)} | {sum(total)} |')
    return 0 if all(total) else 1


if __name__ == '__main__':
    sys.exit(main())
