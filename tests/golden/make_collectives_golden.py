"""Writes collectives.json from the cells of benchmarks/compile_table.jsonl that are ViT-B on v4 and v5e, as they first fit.

python tests/golden/make_collectives_golden.py. To measure a cell again, take its line out of the .jsonl and run
benchmarks/compile_table.py --cells mae:b:v5e (libtpu needed); look at the difference before you commit it.
"""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name('collectives.json')


def count_collectives(fit: dict) -> dict[str, int]:
    """{'all-reduce among 256': how often} of one program."""
    counts: dict[str, int] = {}
    for row in fit['collectives']:
        name = f'{row["kind"]} among {row["group"]}{" between slices" if row["crosses"] else ""}'
        counts[name] = counts.get(name, 0) + row['count']
    return dict(sorted(counts.items()))


def main() -> None:
    records = map(json.loads, (ROOT / 'benchmarks' / 'compile_table.jsonl').read_text().splitlines())
    golden = {}
    for record in records:
        _, size, chip = record['cell'].split(':')
        fit = next((one for one in record.get('tried', ()) if one['fits']), None)
        if size == 'b' and chip in ('v4', 'v5e') and fit:
            versions = {name: record[name] for name in ('jax', 'libtpu')}
            golden[record['cell']] = {**versions, 'changes': fit['changes'], 'counts': count_collectives(fit)}
    GOLDEN.write_text(json.dumps(dict(sorted(golden.items())), indent=1) + '\n')


if __name__ == '__main__':
    main()
