"""Run a study, or report what is there of it: `python -m mim_jax.study configs/study/cifar10.py --workdir DIR [--report]`.

A study file says which recipes are pre-trained, how each is tested, and which claims were fixed before. Every arm and seed is
a row of --results once all its tests are done; a row that is there is never run again, and one that was interrupted goes on
where it was. --config.key=value is given to every command. Exit status: 0 when all rows are done, 1 when one failed, 75 when
some are left (--minutes, a signal): the same command goes on.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

from mim_jax.command import parse_arguments, run_program
from mim_jax.errors import ConfigError, UserError
from mim_jax.study.plan import Study, read_study
from mim_jax.study.report import save_report
from mim_jax.study.rows import read_rows
from mim_jax.study.run import Runner, split_cores, write_commands

RESULTS = 'benchmarks/results/study.jsonl'


def main(arguments: Sequence[str]) -> int:
    """Read, run, report. Returns the exit status; raises UserError for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.study', description='Recipes x seeds, and claims about them.'
    )
    parser.add_argument('studies', nargs='+', metavar='STUDY.py', help='configs/study/*.py')
    parser.add_argument('--workdir', type=Path, default=Path('runs/study'), help='of the runs; may be thrown away')
    parser.add_argument('--results', type=Path, default=Path(RESULTS), help=f'a line for each row; default {RESULTS}')
    parser.add_argument('--arms', nargs='+', default=[], help='only these')
    parser.add_argument('--seeds', nargs='+', type=int, default=[], help="in place of the study's")
    parser.add_argument('--jobs', type=int, default=1, help='rows at a time, each on its share of the cores')
    parser.add_argument('--minutes', type=float, default=math.inf, help='after which no further row is begun')
    parser.add_argument('--dry-run', action='store_true', help='print what would be run')
    parser.add_argument('--report', action='store_true', help='run nothing; write the tables and pictures')
    parser.add_argument('--out', type=Path, default=Path('benchmarks/results'), help='folder of the report')
    options, extra = parse_arguments(arguments, parser)
    wrong = [word for word in extra if not word.startswith('--config.')]
    if wrong:
        raise ConfigError(f'{wrong[0]} is no option; --help lists them.')
    split_cores(options.jobs)
    studies = [read_study(path) for path in options.studies]
    if options.report:
        for study in studies:
            report(study, options.results, options.out)
        return 0
    deadline, statuses = time.monotonic() + 60 * options.minutes, []
    for study in studies:
        runner = Runner(study, options.workdir.absolute(), options.results, extra, deadline)
        rows = runner.remaining(options.arms, options.seeds)
        print(f'{study.name}: {len(rows)} rows to run', flush=True)
        if options.dry_run:
            print(write_commands(study, rows))
            continue
        statuses.append(runner.run(rows, options.jobs, lambda line: print(time.strftime('%H:%M:%S'), line, flush=True)))
    return 1 if 1 in statuses else max(statuses, default=0)


def report(study: Study, results: Path, out: Path) -> None:
    """The page and the picture of one study. Raises UserError where there is nothing to report."""
    rows = [row for row in read_rows(results, study.name) if row['arm'] in {arm.name for arm in study.arms}]
    if not rows:
        raise UserError(f'{results} has no row of {study.name}; run it first, without --report.')
    print(save_report(study, rows, out / f'study_{study.name}.md'))


if __name__ == '__main__':
    run_program(main)
