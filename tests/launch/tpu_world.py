"""A clone with the launch scripts, and a pretended cloud around it (fake_gcloud.py), for the tests of tpu_*.sh; linters."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LAUNCH = HERE.parents[1] / 'launch'
MACHINE = ('--name', 'pod', '--zone', 'us-central2-b', '--project', 'lab')

# Stand-ins for what a worker has: its name, a pip that brings uv, and a uv whose environments have a python.
WORKER_BIN = {
    'hostname': 'echo "$FAKE_HOST"',
    'python3': 'mkdir -p "$HOME/mim_jax_uv/bin" && cp "$FAKE_CLOUD/worker_bin/uv" "$HOME/mim_jax_uv/bin/uv"',
    'uv': """echo "uv $*" >>"$HOME/uv_calls"
[ "$1" != venv ] || { mkdir -p "$HOME/mim_jax_venv/bin" && cp "$FAKE_CLOUD/worker_bin/python" "$HOME/mim_jax_venv/bin"; }""",
    'python': f'[ "$1" != -c ] || {{ echo "jax 1 libtpu 2"; exit; }}\nexec {sys.executable} "$@"',
}


def write_program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/bash\n{body}\n')
    path.chmod(0o755)


class World:
    """`run('tpu_create.sh', ...)` runs a script of the clone; `calls(verb)` are the gcloud calls so far."""

    def __init__(self, folder: Path):
        self.cloud, self.clone = folder / 'cloud', folder / 'clone'
        self.cloud.mkdir()
        self.plan([['ACTIVE']])
        for name, body in WORKER_BIN.items():
            write_program(self.cloud / 'worker_bin' / name, body)
        write_program(folder / 'bin' / 'gcloud', f'exec {sys.executable} {HERE / "fake_gcloud.py"} "$@"')
        shutil.copytree(LAUNCH, self.clone / 'launch', ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(HERE / 'fake_babysit.py', self.clone / 'launch' / 'babysit.py')
        (self.clone / 'requirements.txt').write_text('jax\n')
        subprocess.run(['git', 'init', '--quiet', self.clone], check=True)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != 'DRY_RUN'},
            'PATH': f'{folder / "bin"}:{os.environ["PATH"]}',
            'FAKE_CLOUD': str(self.cloud),
            'POLL_SECONDS': '0.02',
            'WATCH_SECONDS': '0.2',
        }

    def plan(self, states: list[list[str]], failing: tuple[str, ...] = ()) -> None:
        """States that the resource goes through after each create, and verbs that fail.

        'GONE': somebody deletes it; 'UNREACHABLE': this listing fails; ['REFUSED']: this create fails.
        """
        (self.cloud / 'plan.json').write_text(json.dumps({'states': states, 'failing': failing}))

    def exists(self, *states: str, type: str = 'v4-16') -> None:
        (self.cloud / 'resource.json').write_text(json.dumps({'name': 'pod', 'type': type, 'states': states}))

    def run(self, script: str, *arguments: str, machine: tuple[str, ...] = MACHINE) -> subprocess.CompletedProcess:
        return subprocess.run(
            [self.clone / 'launch' / script, *machine, *arguments],
            env=self.environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def calls(self, verb: str = '') -> list[list[str]]:
        path = self.cloud / 'calls'
        made = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in made if verb in ('', call[3])]

    def home(self, worker: int, node: str = 'pod') -> Path:
        return self.cloud / 'workers' / node / str(worker)

    def kill_run(self, worker: int) -> None:
        """What a reboot of one worker does."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pid = int((self.home(worker) / 'mim_jax_run' / 'pid').read_text())
            os.killpg(os.getpgid(pid), signal.SIGKILL)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in range(2):
            self.kill_run(worker)


def find_tool(name: str) -> str:
    """Path of a linter: where pip puts it, or on the PATH."""
    path = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    assert path, f'{name} is not here; pip install -r requirements-dev.txt brings it'
    return path
