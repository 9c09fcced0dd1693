"""A suite: several protocols of one encoder, several seeds each, one table. Runs that are done are not done again."""

from __future__ import annotations

import json
import shlex
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mim_jax.errors import ConfigError, DataError, Refused
from mim_jax.training.loggers import replace_file

RESULTS, TABLE = 'results.json', 'results.md'


@dataclass(frozen=True)
class Row:
    """One line of the table, and how to get it.

    config: 'configs/eval/finetune.py:cifar10'; overrides: '--config.key=value' each; metric: which of its results; grid: {key:
    values}, of which all combinations are run, and the best, and mean and spread of all, are reported; seeds: each is a run;
    paper: the published figure beside ours, and where from.
    """

    name: str
    config: str
    metric: str
    overrides: tuple[str, ...] = ()
    grid: Mapping[str, tuple] | None = None
    seeds: tuple[int, ...] = (0,)
    paper: str = ''

    def runs(self) -> list[tuple[str, tuple[str, ...]]]:
        """(folder, overrides) of every run."""
        points: list[tuple[str, ...]] = [()]
        for key, values in (self.grid or {}).items():
            points = [(*point, f'--config.{key}={value}') for point in points for value in values]
        folder = self.name.replace(' ', '_').replace('/', '_').replace('%', '')
        return [
            (
                '-'.join([folder, *(part.removeprefix('--config.') for part in point), f'seed_{seed}']),
                (*self.overrides, *point, f'--config.seed={seed}'),
            )
            for point in points
            for seed in self.seeds
        ]


def read_suite(path: str) -> tuple[Row, ...]:
    """SUITE of a Python file: a sequence of rows. Raises ConfigError."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"There is no suite file '{path}'; configs/eval/suite.py is one.")
    module = types.ModuleType(file.stem)
    exec(compile(file.read_text(), path, 'exec'), module.__dict__)
    rows = getattr(module, 'SUITE', None)
    if not rows or not all(isinstance(row, Row) for row in rows):
        raise ConfigError(f'{path} must define SUITE, a sequence of mim_jax.evals.suite.Row.')
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise ConfigError(f'{path} has two rows of one name; rename one: {", ".join(names)}.')
    return tuple(rows)


def run_suite(
    rows: Sequence[Row],
    folder: Path,
    run: Callable[[str, Sequence[str], Path], tuple[int, dict[str, Any]]],
    report: Callable[[str], None],
) -> int:
    """Every row by run(config, overrides, workdir), then results.json and results.md in `folder`. Returns an exit status.

    A row that this dataset or encoder does not allow (DataError, Refused) stands in the table with its reason. An
    interrupted run ends the suite with its status, and the same command goes on there.
    """
    lines = []
    for row in rows:
        values, reason = [], ''
        for name, overrides in row.runs():
            done = folder / name / RESULTS
            report(f'{row.name}: {shlex.join([row.config, *overrides])}{", done before" if done.exists() else ""}')
            try:
                status, results = (
                    (0, json.loads(done.read_text())) if done.exists() else run(row.config, overrides, folder / name)
                )
            except (DataError, Refused) as error:
                reason = str(error)
                report(f'{row.name} is left out: {reason}')
                break
            if status:
                return status
            if row.metric not in results['metrics']:
                raise ConfigError(f'{row.name}: {row.config} has no {row.metric}, but {", ".join(results["metrics"])}.')
            values.append(results['metrics'][row.metric])
        lines.append(summarise(row, values, reason))
        write_table(folder, lines)
    report((folder / TABLE).read_text())
    report(f'Wrote {folder / RESULTS} and {folder / TABLE}.')
    return 0


def summarise(row: Row, values: Sequence[float], reason: str) -> dict[str, Any]:
    """One line of results.json: mean and sample deviation over seeds; of a grid, its best and the spread over all."""
    line: dict[str, Any] = {'name': row.name, 'config': row.config, 'metric': row.metric, 'paper': row.paper}
    if reason:
        return {**line, 'left_out': reason}
    line |= {'values': list(values), 'mean': mean(values), 'deviation': stdev(values) if len(values) > 1 else None}
    if row.grid:  # one value for each point, the mean of its seeds
        count = len(row.seeds)
        line['best'] = max(mean(values[i : i + count]) for i in range(0, len(values), count))
    return line


def write_table(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """results.json and results.md, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / RESULTS, json.dumps(list(lines), indent=2) + '\n')
    table = ['| protocol | metric | result | runs | paper |', '|---|---|---|---|---|']
    for line in lines:
        if 'left_out' in line:
            table.append(f'| {line["name"]} | {line["metric"]} | not run: {line["left_out"]} | 0 | {line["paper"]} |')
            continue
        result = f'{line["mean"]:.2f}'
        result += '' if line['deviation'] is None else f' ± {line["deviation"]:.2f}'
        result += f', best {line["best"]:.2f}' if 'best' in line else ''
        table.append(f'| {line["name"]} | {line["metric"]} | {result} | {len(line["values"])} | {line["paper"]} |')
    replace_file(folder / TABLE, '\n'.join(table) + '\n')
