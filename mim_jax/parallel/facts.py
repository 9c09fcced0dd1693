"""Facts that all hosts of a run must share: which one differs, on which hosts, and what each of them has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

REMEDY = 'Give every host the same, and start the same command again on all of them.'
SHOWN = 10  # differing facts, and hosts of each, that a sentence names


def find_difference(facts: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Every host's facts, and what to call it -> a sentence about each fact that is not equal everywhere; '' if all are.

    The value of most hosts counts as right, host 0's among equals; a fact that a host does not know is None.
    """
    sentences = []
    for fact in sorted({key for mine in facts for key in mine}):
        values = [json.dumps(mine.get(fact), sort_keys=True) for mine in facts]
        usual = Counter(values).most_common(1)[0][0]  # the first met among equals
        odd = {host: value for host, value in enumerate(values) if value != usual}
        if odd:
            listed = ', '.join(f'{value} on {names[host]}' for host, value in list(odd.items())[:SHOWN])
            more = f' and on {len(odd) - SHOWN} more' if len(odd) > SHOWN else ''
            right = values.index(usual)
            sentences.append(f'{fact} is {usual} on {names[right]}, but {listed}{more}')
    more = [f'{len(sentences) - SHOWN} more facts differ'] if len(sentences) > SHOWN else []
    return '; '.join([*sentences[:SHOWN], *more])
