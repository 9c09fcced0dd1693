"""Pre-train: `python -m mim_jax.train --config configs/mae.py[:variant,...] --workdir DIR [--config.key=value ...]`.

The same command goes on where the workdir left off. Exit status: 0 finished, 2 something to mend (one sentence says
what), 3 a loss that is not finite, 75 interrupted and saved, 1 a crash.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from mim_jax.command import (
    INTERRUPTED,
    describe_machine,
    explain_shortages,
    parse_arguments,
    read_config,
    run_program,
)
from mim_jax.config import difference, peak_lr
from mim_jax.data.cache import cache_source
from mim_jax.data.sources import open_source
from mim_jax.evals.accuracy import check_test
from mim_jax.evals.watchers import check_pool, check_probes, draw_run_curves, make_watchers
from mim_jax.parallel.mesh import make_mesh
from mim_jax.recipe import Frozen
from mim_jax.training.assemble import assemble, make_loader, make_program
from mim_jax.training.loggers import write_summary
from mim_jax.training.loop import Outcome, Session
from mim_jax.training.workdir import Workdir


def report(line: str) -> None:
    """Print at once, from the first host only."""
    if jax.process_index() == 0:
        print(line, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Parse, check, build, run. Returns the exit status; raises UserError for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.train',
        description='Pre-train an encoder; the same command resumes.',
        epilog='Any key of the config can be set: --config.optim.base_lr=1e-3 --config.data.dir=/data',
    )
    parser.add_argument('--config', required=True, help='configs/mae.py, or configs/mae.py:vit_s16,cifar10')
    parser.add_argument('--workdir', required=True, type=Path, help='folder of this run; made if it does not exist')
    options, overrides = parse_arguments(arguments, parser)
    config, reference = read_config(options.config, overrides)
    workdir = Workdir(options.workdir, config)
    try:
        return train(config, reference, workdir)
    finally:
        workdir.close()


def train(config: Any, reference: Any, workdir: Workdir) -> int:
    """Run (or go on with) the run of `workdir`; write summary.json however it ends."""
    facts: dict[str, Any] = {'config': str(workdir.path / 'config.json')}
    session = None
    try:
        with explain_shortages():
            recipe, source = assemble(config)
            check_pool(recipe)
            watching = config.probe.every_epochs or config.pictures.every_epochs or recipe.predict
            test = None
            if watching:
                test = open_source(config.data, config.data.eval_split)
                check_test(recipe, test) if recipe.predict else check_probes(config, source, test)
                test = cache_source(test, config.data.cache, config.data.threads)
            mesh = make_mesh(**config.mesh)
            facts |= {'recipe': recipe.name, 'total_steps': recipe.config.steps, **describe_machine()}
            describe_run(config, reference, recipe, source, facts)
            session = Session(make_program(recipe, mesh), make_loader(recipe, source, mesh), workdir, report)
            with contextlib.closing(session):
                if not session.finished:
                    report(session.describe())
                outcome = session.run(make_watchers(session, source, test))
                if not is_settled(session, workdir):
                    draw_run_curves(session)
                    write_summary(workdir.summary, status=outcome.status, **progress(session, outcome.steps), **facts)
    except BaseException as error:
        if not is_settled(session, workdir):
            record_failure(error, session, workdir, facts)
        raise
    return conclude(outcome, recipe.config.steps, workdir)


def is_settled(session: Session | None, workdir: Workdir) -> bool:
    """A finished run stays finished, and keeps its summary, whatever happens when its command is given again."""
    nothing_done = session is None or session.finished
    return nothing_done and read_summary(workdir).get('status') == 'finished'


def read_summary(workdir: Workdir) -> dict[str, Any]:
    """What summary.json says; nothing where there is none."""
    return json.loads(workdir.summary.read_text()) if workdir.summary.exists() else {}


def record_failure(error: BaseException, session: Session | None, workdir: Workdir, facts: dict[str, Any]) -> None:
    """summary.json of a run that `error` ended."""
    if session is None:  # it failed before it began: what an earlier session did still stands
        done = {**read_summary(workdir), **facts}
    else:
        done = {**facts, **progress(session, session.loggers.journal.last('step') or 0)}
    status = 'interrupted' if isinstance(error, KeyboardInterrupt) else 'failed'
    try:
        write_summary(workdir.summary, **{**done, 'status': status, 'error': f'{type(error).__name__}: {error}'})
    except OSError as second:  # as on a full disk; the first error is the one to tell
        report(f'{workdir.summary} could not be written: {second}.')


def describe_run(config: Any, reference: Any, recipe: Any, source: Any, facts: dict[str, Any]) -> None:
    """What is about to run, before it runs."""
    changes = difference(config, reference)
    report('Settings that differ from the config file: ' + (''.join(f'\n  {line}' for line in changes) or 'none'))
    devices = facts['devices']
    report(
        f'{recipe.name} on {source.description}; {recipe.config.steps} steps of '
        f'{config.batch_size} images, peak lr {peak_lr(config):.3g}; {devices["count"]} x {devices["kind"]}.'
    )
    for name, teacher in recipe.teachers.items():
        if isinstance(teacher, Frozen) and teacher.summary:
            report(f'Teacher {name}: {teacher.summary}.')


def progress(session: Session, steps: int) -> dict[str, Any]:
    """The part of the summary that the session knows."""
    return {
        'steps': steps,
        'images_seen': steps * session.config.batch_size,
        'wall_seconds': session.wall_seconds,
        'bad_images': session.loader.bad_images,
        'frozen': session.digests,  # sha256 of the teachers' files
        'metrics': session.loggers.journal.last_values(),
    }


def conclude(outcome: Outcome, total: int, workdir: Workdir) -> int:
    """The last lines, and the exit status."""
    metrics = outcome.metrics
    for key, value in metrics.items():
        untrained = metrics.get(key.replace('probe/', 'untrained/'))
        if key.startswith('probe/') and untrained is not None:
            report(f'{key}: {value:.1f} % (the same encoder untrained: {untrained:.1f} %)')
    if outcome.status == 'finished':
        report(f'Finished: {workdir.summary}, pictures in {workdir.path / "pictures"}.')
        return 0
    report(f'Interrupted at step {outcome.steps} of {total}, saved. Run the same command to go on.')
    return INTERRUPTED


if __name__ == '__main__':
    run_program(main)
