"""A suite: several protocols of one encoder, several seeds each, one table. Runs that are done are not done again."""

from __future__ import annotations

import json
import re
import shlex
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mim_jax.errors import ConfigError, DataError, HostLost, UserError
from mim_jax.parallel.agreement import barrier, together
from mim_jax.paths import replace_file

RESULTS, TABLE = 'results.json', 'results.md'


@dataclass(frozen=True)
class Row:
    """One line of the table, and how to get it.

    config: 'configs/eval/finetune.py:cifar10'; overrides: '--config.key=value' each; metric: which of its results; grid:
    {key: values}, of which all combinations are run, and the best, and mean and spread of all, are reported; seeds: each is
    a run; of: the row above whose runs are tested, seed by seed, in place of the encoder; from_scratch: fine-tuning begins
    with random weights; paper: the published figure.
    """

    name: str
    config: str
    metric: str
    overrides: tuple[str, ...] = ()
    grid: Mapping[str, tuple] | None = None
    seeds: tuple[int, ...] = (0,)
    of: str = ''
    from_scratch: bool = False
    paper: str = ''

    def runs(self) -> list[tuple[str, tuple[str, ...], int]]:
        """(folder, overrides, seed) of every run; the seeds of one point of the grid stand together."""
        points: list[tuple[str, ...]] = [()]
        for key, values in (self.grid or {}).items():
            points = [(*point, f'{key}={value}') for point in points for value in values]
        return [
            (
                self.folder(seed, *point),
                (*self.overrides, *(f'--config.{part}' for part in point), f'--config.seed={seed}'),
                seed,
            )
            for point in points
            for seed in self.seeds
        ]

    def folder(self, seed: int, *point: str) -> str:
        """'10_of_labels-seed_0'."""
        name = re.sub(r'[^A-Za-z0-9.+-]+', '_', self.name).strip('_')
        return '-'.join([name, *point, f'seed_{seed}'])


def read_suite(path: str) -> tuple[Row, ...]:
    """SUITE of a Python file: a sequence of rows. Raises ConfigError."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"There is no suite file '{path}'; configs/eval/suite.py is one.")
    module = types.ModuleType(file.stem)
    try:
        exec(compile(file.read_text(), path, 'exec'), module.__dict__)
    except Exception as error:
        raise ConfigError(f'{path} cannot be read: {type(error).__name__}: {error}') from error
    rows = getattr(module, 'SUITE', None)
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, Row) and row.seeds for row in rows):
        raise ConfigError(
            f'{path} must define SUITE, a sequence of mim_jax.evals.suite.Row, each with a seed: SUITE = (Row(...),)'
        )
    if len({row.folder(0) for row in rows}) < len(rows):
        raise ConfigError(f'{path} has two rows of one name; rename one: {", ".join(row.name for row in rows)}.')
    above: dict[str, Row] = {}
    for row in rows:
        tested = above.get(row.of)
        if row.of and (tested is None or tested.grid or not {*row.seeds} <= {*tested.seeds}):
            raise ConfigError(
                f"{path}: '{row.name}' tests '{row.of}', which must stand above it, with its seeds and without a grid."
            )
        above[row.name] = row
    return tuple(rows)


def run_suite(
    rows: Sequence[Row],
    folder: Path,
    run: Callable[[Row, Sequence[str], Path, Path | None], tuple[int, dict[str, Any]]],
    report: Callable[[str], None],
) -> tuple[int, list[dict[str, Any]]]:
    """Every row by run(row, overrides, workdir, run to test or None), then a table. Returns an exit status and its lines.

    results.json and results.md in `folder` grow row by row. A row that cannot be run, with this dataset or this encoder or
    because its training diverged, stands in the table with its reason (UserError). An interrupted run ends the suite with
    its status, and the same command goes on there; `run` gives back what was done before.
    """
    lines: list[dict[str, Any]] = []
    table = ''
    named = {row.name: row for row in rows}
    for row in rows:
        found, reason, checkpoint = [], '', {}
        for name, overrides, seed in row.runs():
            tested = folder / named[row.of].folder(seed) if row.of else None
            report(f'{row.name}: {shlex.join([row.config, *overrides])}')
            try:
                if tested and not (tested / RESULTS).exists():
                    raise DataError(f'there is no run of {row.of}')
                status, results = together('a row', lambda one=(row, overrides, folder / name, tested): run(*one))
            except HostLost:
                raise
            except UserError as error:
                reason = str(error)
                report(f'{row.name} is left out: {reason}')
                break
            if status:
                return status, lines
            if row.metric not in results['metrics']:
                raise ConfigError(
                    f"'{row.name}': {row.config} has no {row.metric}, but {', '.join(results['metrics'])}."
                )
            found.append(results['metrics'][row.metric])
            checkpoint = results['checkpoint']
        lines.append(summarise(row, found, reason) | {'checkpoint': checkpoint})
        table = write_table(folder, lines)
    report(table)
    report(f'Wrote {folder / RESULTS} and {folder / TABLE}.')
    return 0, lines


def summarise(row: Row, found: Sequence[float], reason: str) -> dict[str, Any]:
    """One line of results.json: mean and sample deviation over all runs; of a grid, also its best point's mean."""
    line: dict[str, Any] = {'name': row.name, 'config': row.config, 'metric': row.metric, 'paper': row.paper}
    if reason:
        return {**line, 'left_out': reason}
    line |= {'values': list(found), 'mean': mean(found), 'deviation': stdev(found) if len(found) > 1 else None}
    if row.grid:
        count = len(row.seeds)
        line['best'] = max(mean(found[i : i + count]) for i in range(0, len(found), count))
    return line


def write_table(folder: Path, lines: Sequence[Mapping[str, Any]]) -> str:
    """results.json and results.md, whole or not at all. Returns the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / RESULTS, json.dumps(list(lines), indent=2) + '\n')
    tested = next((line['checkpoint'] for line in lines if 'run' in line['checkpoint']), {})
    about = ', '.join(
        f'{key} {tested[key]}' for key in ('recipe', 'run', 'step', 'teacher') if tested.get(key) is not None
    )
    table = [f'Tested: {about}.', '', '| protocol | metric | result | runs | paper |', '|---|---|---|---|---|']
    for line in lines:
        result, runs = describe_result(line), len(line.get('values', ()))
        table.append(f'| {line["name"]} | {line["metric"]} | {result} | {runs} | {line["paper"]} |')
    text = '\n'.join(table) + '\n'
    replace_file(folder / TABLE, text)
    return text
    barrier('table')


def describe_result(line: Mapping[str, Any]) -> str:
    """'83.60 ± 0.08', or why there is none."""
    if 'left_out' in line:
        return f'not run: {" ".join(line["left_out"].split())}'  # a table's cell is one line
    result = f'{line["mean"]:.2f}'
    result += '' if line['deviation'] is None else f' ± {line["deviation"]:.2f}'
    return result + (f', best on test {line["best"]:.2f}' if 'best' in line else '')


def compare_runs(folder: Path, columns: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """{run: the lines of its suite} -> one table with a column for each run, also written to results.md of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    about = [
        next((line['checkpoint'] for line in lines if 'run' in line['checkpoint']), {}) for lines in columns.values()
    ]
    heads = [f'{run}: {c.get("recipe", "")}, step {c.get("step", "")}' for run, c in zip(columns, about, strict=True)]
    table = [f'| protocol | metric | runs | {" | ".join(heads)} | paper |', '|---' * (4 + len(heads)) + '|']
    for lines in zip(*columns.values(), strict=True):  # of the same suite
        first, runs = lines[0], max(len(line.get('values', ())) for line in lines)
        results = ' | '.join(describe_result(line) for line in lines)
        table.append(f'| {first["name"]} | {first["metric"]} | {runs} | {results} | {first["paper"]} |')
    text = '\n'.join(table) + '\n'
    replace_file(folder / RESULTS, json.dumps(columns, indent=2) + '\n')
    replace_file(folder / TABLE, text)
    return text
