"""A gcloud for tests: one queued resource whose states follow a plan, and workers that are folders on this machine.

The folder FAKE_CLOUD holds `calls` (one JSON list of arguments a line), `plan.json` (states after each `create`, and verbs
that fail), `resource.json` while the queued resource exists, and `workers/<node>/<number>`, each the home of one worker.
`ssh` really runs its command there.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ['FAKE_CLOUD'])
RESOURCE = CLOUD / 'resource.json'
TAKEN = ('SUSPENDING', 'SUSPENDED', 'FAILED')


def kill_runs() -> None:
    """What a preemption does to the processes of every worker."""
    for pid in CLOUD.glob('workers/*/*/mim_jax_run/pid'):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.killpg(os.getpgid(int(pid.read_text())), signal.SIGKILL)


def list_resources(options: dict[str, str]) -> int:
    """One line for the resource, which then moves on to its next state."""
    print('another\tACTIVE\tv4-8')
    if RESOURCE.exists():
        resource = json.loads(RESOURCE.read_text())
        state = resource['states'].pop(0) if len(resource['states']) > 1 else resource['states'][0]
        if state in TAKEN:
            kill_runs()
            shutil.rmtree(CLOUD / 'workers', ignore_errors=True)
        if state == 'GONE':
            RESOURCE.unlink()
            return 0
        RESOURCE.write_text(json.dumps(resource))
        if state == 'UNREACHABLE':
            print('ERROR: gcloud crashed (ConnectionError)', file=sys.stderr)
            return 1
        print(f'{resource["name"]}\t{state}\t{resource["type"]}')
    return 0


def create(options: dict[str, str], name: str) -> int:
    plan = json.loads((CLOUD / 'plan.json').read_text())
    states = plan['states'].pop(0)
    (CLOUD / 'plan.json').write_text(json.dumps(plan))
    if states == ['REFUSED']:
        print('ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED', file=sys.stderr)
        return 1
    RESOURCE.write_text(json.dumps({'name': name, 'type': options['accelerator-type'], 'states': states}))
    slices = int(options.get('node-count', 1))
    for node in [name] if slices == 1 else [f'{name}-{number}' for number in range(slices)]:
        for worker in range(2):
            (CLOUD / 'workers' / node / str(worker)).mkdir(parents=True)
    return 0


def delete(options: dict[str, str], name: str) -> int:
    kill_runs()
    shutil.rmtree(CLOUD / 'workers', ignore_errors=True)
    RESOURCE.unlink()
    return 0


def find_homes(options: dict[str, str], node: str) -> list[Path]:
    homes = sorted((CLOUD / 'workers' / node).iterdir())
    return homes if options['worker'] == 'all' else [homes[int(options['worker'])]]


def ssh(options: dict[str, str], node: str) -> int:
    """The status of the first worker that fails, as gcloud does."""
    failed = 0
    for home in find_homes(options, node):
        host = f'{node}-w-{home.name}'
        environment = {
            **os.environ,
            'HOME': str(home),
            'FAKE_HOST': host,
            'PATH': f'{CLOUD}/worker_bin:{os.environ["PATH"]}',
        }
        status = subprocess.run(['bash', '-c', options['command']], cwd=home, env=environment, timeout=30).returncode
        failed = failed or status
    return failed


def scp(options: dict[str, str], source: str, target: str) -> int:
    node, name = target.split(':')
    for home in find_homes(options, node):
        shutil.copy(source, home / name)
    return 0


def main(arguments: list[str]) -> int:
    with (CLOUD / 'calls').open('a') as calls:
        calls.write(json.dumps(arguments) + '\n')
    group, verb, *rest = arguments[2:]
    words = [word for word in rest if not word.startswith('--')]
    options = dict(word[2:].split('=', 1) for word in rest if word.startswith('--') and '=' in word)
    if verb in json.loads((CLOUD / 'plan.json').read_text()).get('failing', []):
        print(f'ERROR: (gcloud.compute.tpus.{group}.{verb}) PERMISSION_DENIED', file=sys.stderr)
        return 1
    if verb == 'list':
        return list_resources(options)
    return {'create': create, 'delete': delete, 'ssh': ssh, 'scp': scp}[verb](options, *words)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
