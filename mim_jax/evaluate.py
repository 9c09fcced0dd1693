"""Test a run: `python -m mim_jax.evaluate --checkpoint RUN --config configs/eval/linear_probe.py[:variant,...]`.

The encoder, the dataset and its statistics are the run's, everything else the protocol's config file's; any key can be set,
as in training. Writes results.json into RUN/evals/<protocol>, or --workdir. A protocol that trains goes on where it left off.
Protocols of a whole classifier (accuracy, ensemble, robustness, corruptions) test a fine-tuned or probed RUN as it is;
with --predictions, logits and labels of all images stay in predictions/*.npz beside results.json.
With --suite, all protocols of a suite file, and one table (see evals/suite.py); of several runs, a column for each. Exit
status as mim_jax.train's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from mim_jax.command import agree_on_run, describe_machine, explain_shortages, join_and_parse, run_program
from mim_jax.config import bind_method, check_config, load_config, to_json
from mim_jax.errors import ConfigError, Refused
from mim_jax.evals.inherit import inherit_classifier, inherit_run
from mim_jax.evals.ledger import Ledger
from mim_jax.evals.network import Task, read_network
from mim_jax.evals.protocols import DIRECT, OF_CLASSIFIER, OF_ENCODER
from mim_jax.evals.subject import Subject
from mim_jax.evals.suite import RESULTS, Row, compare_runs, read_suite, run_suite
from mim_jax.interop.origin import Origin, begin_from, read_origin
from mim_jax.interop.runs import read_run_config
from mim_jax.methods import METHODS, PROTOCOLS, build
from mim_jax.parallel.agreement import barrier, exchange
from mim_jax.parallel.mesh import make_mesh
from mim_jax.paths import open_path, replace_file
from mim_jax.train import read_summary, report, train
from mim_jax.training.entry import open_workdir
from mim_jax.training.workdir import Workdir


def main(arguments: Sequence[str]) -> int:
    """Read, check, test. Returns the exit status; raises UserError for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.evaluate',
        description='Test the encoder, or the classifier, of a run.',
        epilog='Any key of the config can be set: --config.optim.base_lr=1e-3 --config.data.dir=/data',
    )
    several = 'with --suite there may be several, which are compared in --workdir'
    parser.add_argument(
        '--checkpoint',
        required=True,
        type=open_path,
        nargs='+',
        metavar='RUN',
        help=f"a run's folder: the --workdir of mim_jax.train; {several}",
    )
    parser.add_argument('--step', type=int, help='of the checkpoint; the newest without it')
    parser.add_argument('--teacher', help='test this momentum teacher in place of the student')
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument('--config', help='configs/eval/knn.py, or configs/eval/finetune.py:cifar10')
    wanted.add_argument('--suite', help='configs/eval/suite.py: several protocols, and one table')
    parser.add_argument('--from-scratch', action='store_true', help='fine-tune random weights: the control')
    parser.add_argument('--workdir', type=open_path, help='folder of the results; without it one in RUN/evals')
    parser.add_argument('--predictions', action='store_true', help='keep what a classifier says of every image, too')
    options, overrides = join_and_parse(arguments, parser)
    with explain_shortages():
        if len(options.checkpoint) > 1 and not (options.suite and options.workdir):
            raise ConfigError('Several runs are compared by a --suite, in the folder that --workdir names.')
        origins = [read_origin(run, options.step, options.teacher) for run in options.checkpoint]
        which = [f'step_{options.step}'] if options.step is not None else []
        which += [options.teacher] if options.teacher else []
        if options.suite:
            return evaluate_suite(origins, options.suite, overrides, options.workdir, which, options.predictions)
        which += ['from_scratch'] if options.from_scratch else []
        workdir = options.workdir or origins[0].folder / name_of(options.config, overrides, which)
        return evaluate(origins[0], options.config, overrides, workdir, options.from_scratch, options.predictions)[0]


def evaluate_suite(
    origins: Sequence[Origin],
    path: str,
    overrides: Sequence[str],
    target: Path | None,
    which: Sequence[str],
    predictions: bool,
) -> int:
    """The suite of `path` for every run, each in its own folder (of a single run: `target`). Returns an exit status.

    Of several runs a comparison is written to `target`. A from-scratch control that two of them share is run once.
    predictions: keep those of the rows that test a classifier.
    """
    rows = read_suite(path)
    kept = set()  # rows whose predictions are
    for row in rows:  # a misspelt key is told before the first of them runs
        for _, own, _ in row.runs():
            config, _ = load_config(row.config, [*own, *overrides], {**METHODS, **DIRECT})
            kept |= {row.name} if predictions and OF_CLASSIFIER.keys() & {*config.papers} else set()
    several = len(origins) > 1
    folders = [origin.folder / '-'.join([Path(path).stem, *which]) for origin in origins]
    folders = folders if several or target is None else [target]
    columns = {}
    for origin, folder in zip(origins, folders, strict=True):

        def run(
            row: Row, own: Sequence[str], workdir: Path, tested: Path | None, origin: Origin = origin
        ) -> tuple[int, dict[str, Any]]:
            of = read_origin(tested) if tested else origin
            same, keep = [other / workdir.name for other in folders], row.name in kept
            return evaluate(of, row.config, [*own, *overrides], workdir, row.from_scratch, keep, done_in=same)

        status, columns[str(origin.run)] = run_suite(rows, folder, run, report)
        if status:
            return status
    if several:
        report(compare_runs(target, columns))
    return 0


def name_of(spec: str, overrides: Sequence[str], which: Sequence[str] = ()) -> str:
    """The folder of a protocol's results: its config file, variants and overrides, and what of the run was asked for."""
    path, _, variants = spec.partition(':')
    changed = [override.removeprefix('--config.') for override in overrides if not is_place(override)]
    parts = [Path(path).stem, *filter(None, variants.split(',')), *changed, *which]
    return '-'.join(part.replace('/', '_') for part in parts)


def is_place(override: str) -> bool:
    """Whether it says where things are or how they are computed, and so changes no result."""
    free = ('data.dir', 'data.threads', 'data.workers', 'data.cache', 'mesh.', 'log.', 'checkpoint.', 'probe.')
    free = (*free, 'robustness.dir')
    return override.removeprefix('--config.').startswith(free)


def read_protocol(origin: Origin, spec: str, overrides: Sequence[str]) -> tuple[Any, Any, str]:
    """(config, the file's own, the protocol's name), checked as far as it can be without devices or data."""
    known = {**METHODS, **DIRECT}
    config, reference = load_config(spec, overrides, known)
    name = config.papers[-1] if config.papers else ''
    if len(config.papers) != 1 or name not in {**PROTOCOLS, **DIRECT}:
        raise ConfigError(
            f'{spec} tests nothing: its papers are {config.papers}, where one of {", ".join({**PROTOCOLS, **DIRECT})} should '
            'stand. The files in configs/eval do.'
        )
    config = inherit_run(config.unlock(), origin.config, spec, overrides)
    if name not in OF_CLASSIFIER and origin.config.get('finetune', {}).get('pool') == 'mean':
        raise Refused(
            f'{origin.run} was fine-tuned with finetune.pool=mean, so its encoder has no final norm and no CLS to read: '
            f'{name} tests the pre-training run.'
        )
    if name in OF_CLASSIFIER:
        config = inherit_classifier(config, origin.config, overrides)
        if origin.teacher:
            instead = f', and set {name}.head={origin.teacher}' if 'head' in config[name] else ''
            raise Refused(f'{name} tests a classifier, not an encoder: leave out --teacher{instead}.')
    if name == 'linear_probe':
        config.linear_probe.weights = str(origin.weights)
    check_config(config, known)
    return config.lock(), reference, name


def evaluate(
    origin: Origin,
    spec: str,
    overrides: Sequence[str],
    path: Path,
    from_scratch: bool = False,
    predictions: bool = False,
    done_in: Sequence[Path] = (),
) -> tuple[int, dict[str, Any]]:
    """One protocol -> (exit status, what results.json says; {} when it was interrupted).

    predictions: keep a classifier's, see Ledger; done_in: folders whose results.json is the answer where it has the same
    settings of the same checkpoint.
    """
    config, reference, name = read_protocol(origin, spec, overrides)
    agree_on_run(config, path)
    if from_scratch and name != 'finetune':
        raise ConfigError(f'{name} trains no encoder, so nothing of it begins from scratch; leave out --from-scratch.')
    if predictions and name not in OF_CLASSIFIER:
        raise ConfigError(
            f'--predictions keeps what a classifier says of every image, and {name} tests none that is there: give it with '
            'configs/eval/accuracy.py and --checkpoint FINETUNED_RUN.'
        )
    checkpoint = {'from_scratch': True} if from_scratch else origin.describe(encoder=name not in OF_CLASSIFIER)
    settings = hashlib.sha256(to_json(config).encode()).hexdigest()
    seal = {'checkpoint': checkpoint, 'settings': settings}
    for done in exchange('done before', [*map(read_results, done_in)])[0]:
        if seal.items() <= done.items() and (done.get('predictions') or not predictions):
            report('Done before.')
            return 0, done
    start, notes = time.monotonic(), {}
    workdir, ledger = open_workdir(path, config, bound=name not in DIRECT), None
    try:
        if name in DIRECT:
            ledger = Ledger(workdir.path, seal, origin.step, predictions)
        if name in OF_ENCODER:
            status, metrics = 0, test_encoder(origin, config, name, ledger)
        elif name in OF_CLASSIFIER:
            status, (metrics, notes) = 0, test_classifier(origin, config, name, ledger)
        else:
            if name == 'finetune' and not from_scratch:
                begin_from(origin, config, workdir)
            status = train(config, reference, workdir)
            metrics = exchange('metrics', read_test(workdir))[0]
        if status:
            return status, {}
        results = {
            'protocol': name,
            'config': shlex.join([spec, *overrides]),
            'checkpoint': checkpoint,
            'settings': settings,
            'seed': config.seed,
            'dataset': {
                key: config.data[key] for key in ('source', 'name', 'dir', 'split', 'share', 'list', 'eval_split')
            },
            'metrics': metrics,
            **({'notes': notes} if notes else {}),
            **({'predictions': True} if predictions else {}),
            'seconds': round(time.monotonic() - start, 1),
            **describe_machine(),
        }
        replace_file(workdir.path / RESULTS, json.dumps(results, indent=2) + '\n')
        if ledger:
            ledger.end(metrics)
        barrier('results')  # what comes next may read them on any host
    finally:
        if ledger:
            ledger.close()
        workdir.close()
    report('  '.join(f'{key} {value:.2f}' for key, value in metrics.items()))
    report(f'Wrote {workdir.path / RESULTS}{f" and {ledger.folder}" if predictions else ""}.')
    return 0, results


def read_results(path: Path) -> dict[str, Any]:
    """What results.json of a workdir says; {} where there is none."""
    file = path / RESULTS
    return json.loads(file.read_text()) if file.is_file() else {}


def read_test(workdir: Workdir) -> dict[str, float]:
    """What a run counted at its end; of several classifiers, also the best, chosen on these very images."""
    logged = read_summary(workdir).get('metrics', {})
    found = {key.removeprefix('test/'): value for key, value in logged.items() if key.startswith('test/')}
    several = [value for key, value in found.items() if key.endswith('/top1') and not key.startswith('average/')]
    return found | ({'best_on_test/top1': max(several)} if several else {})


def test_encoder(origin: Origin, config: Any, name: str, ledger: Ledger) -> dict[str, float]:
    """A protocol of a frozen encoder, at once."""
    bare = config.copy_and_resolve_references().unlock()
    bare.papers = ()
    recipe = replace(build(bare.lock(), 1, 1), config=config)
    mesh = make_mesh(**config.mesh)
    report(describe_test(origin, name))
    return bind_method(config, name, OF_ENCODER[name])(Subject(recipe, origin.weights, mesh, ledger, report))


def test_classifier(origin: Origin, config: Any, name: str, ledger: Ledger) -> tuple[dict[str, float], dict[str, Any]]:
    """A protocol of a trained classifier, at once."""

    def read_config(run: Path) -> Any:
        theirs = read_run_config(run)
        theirs.dtype = config.dtype
        return theirs.lock()

    task = Task(config, make_mesh(**config.mesh), ledger, report, read_config)
    network = read_network(origin.run, read_config(origin.run), origin.step, task)
    report(describe_test(origin, name))
    return bind_method(config, name, OF_CLASSIFIER[name])(network)


def describe_test(origin: Origin, name: str) -> str:
    """What is about to be tested, and on what."""
    return f'{name} of {origin.recipe} at step {origin.step}; {jax.device_count()} x {jax.devices()[0].device_kind}.'


if __name__ == '__main__':
    run_program(main)
