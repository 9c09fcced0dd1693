"""launch/slurm.sbatch against a pretended SLURM: what it starts, what it makes of the tasks' statuses, when it queues again."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'launch' / 'slurm.sbatch'
PROGRAMS = {
    # Two tasks at once, as srun runs them, and their highest status.
    'srun': """printf '%s\\n' "$@" >"$WORLD/srun"
while [ "$1" != bash ]; do shift; done
for n in 0 1; do SLURM_PROCID=$n SLURM_LOCALID=$n "$@" & echo $! >>"$WORLD/pids"; done
highest=0
for pid in $(cat "$WORLD/pids"); do wait "$pid"; status=$?; [ "$status" -le "$highest" ] || highest=$status; done
exit "$highest\"""",
    'scontrol': 'echo "$*" >>"$WORLD/scontrol"; exit "${SCONTROL_STATUS:-0}"',
    'apptainer': 'while [ "$1" != image.sif ]; do echo "$1" >>"$WORLD/apptainer"; shift; done; shift; exec "$@"',
}


class Cluster:
    """A clone with an environment, and a job in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name, body in PROGRAMS.items():
            path = folder / 'bin' / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f'#!/bin/bash\n{body}\n')
            path.chmod(0o755)
        self.clone = folder / 'clone'
        (self.clone / 'mim_jax').mkdir(parents=True)
        (self.clone / 'mim_jax' / 'train.py').touch()
        (self.clone / '.venv' / 'bin').mkdir(parents=True)
        (self.clone / '.venv' / 'bin' / 'python').symlink_to(sys.executable)
        shutil.copy(SCRIPT, folder / 'spooled')  # sbatch runs a copy of its own
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(('SLURM_', 'MIM_JAX_'))},
            'PATH': f'{folder / "bin"}:{os.environ["PATH"]}',
            'WORLD': str(folder),
            'SLURM_JOB_ID': '41',
            'SLURM_CPUS_PER_TASK': '8',
            'SLURM_NTASKS_PER_NODE': '2',
            'SLURM_GPUS_ON_NODE': '2',
        }

    def start(self, *command: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            ['bash', self.folder / 'spooled', *command], cwd=self.clone, env={**self.environment, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, *command: str, **environment: str) -> tuple[int, str]:
        process = self.start(*command, **environment)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def read(self, name: str) -> str:
        return (self.folder / name).read_text() if (self.folder / name).exists() else ''


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def test_one_task_for_each_gpu_with_its_share_of_the_processors(cluster):
    status, output = cluster.run('python', '-c', 'import os; print("task", os.environ["SLURM_LOCALID"])')
    assert status == 0
    assert sorted(line for line in output.splitlines() if line.startswith('task')) == ['task 0', 'task 1']
    assert {'--kill-on-bad-exit=0', '--wait=180', '--cpus-per-task=8'} <= {*cluster.read('srun').splitlines()}
    assert not cluster.read('scontrol')
    directives = [line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith('#SBATCH')]
    assert {'--signal=TERM@120', '--requeue', '--open-mode=append'} <= {*directives}
    asked = dict(directive.split('=', 1) for directive in directives if '=' in directive)
    assert asked['--ntasks-per-node'] == asked['--gpus-per-node']


@pytest.mark.parametrize(
    ('statuses', 'status', 'queued'),
    [
        ((0, 0), 0, False),
        ((75, 75), 0, True),
        ((1, 75), 0, True),
        ((75, 137), 0, True),
        ((2, 75), 2, False),
        ((75, 3), 3, False),
        ((137, 2), 2, False),
    ],
)
def test_what_becomes_of_the_tasks_statuses(cluster, statuses, status, queued):
    done, output = cluster.run('bash', '-c', f's=({statuses[0]} {statuses[1]}); exit ${{s[$SLURM_PROCID]}}')
    assert done == status, output
    assert cluster.read('scontrol') == ('requeue Incomplete 41\n' if queued else '')


def test_sigterm_lets_the_tasks_save_and_queues_the_job_again(cluster):
    saving = 'trap "sleep 0.3; echo saved; exit 75" TERM; echo ready; for i in {1..400}; do sleep 0.05; done'
    job = cluster.start('bash', '-c', saving)
    try:
        ready = 0
        while ready < 2:  # a line of each task
            ready += job.stdout.readline() == 'ready\n'
        for pid in cluster.read('pids').split():  # as --signal does: every process of the step, the wrappers too
            children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
            for process in (pid, *children):
                os.kill(int(process), signal.SIGTERM)
        job.send_signal(signal.SIGTERM)  # a preemption may tell the batch shell as well
        output, _ = job.communicate(timeout=30)
    finally:
        job.kill()
    assert output.splitlines()[:2] == ['saved', 'saved']
    assert job.returncode == 0
    assert cluster.read('scontrol') == 'requeue Incomplete 41\n'


def test_restarts_are_counted_and_a_refused_requeue_is_told(cluster):
    status, output = cluster.run('bash', '-c', 'exit 75', SLURM_RESTART_COUNT='3', MIM_JAX_RESTARTS='3')
    assert status == 75
    assert 'given up' in output
    assert not cluster.read('scontrol')
    (cluster.folder / 'pids').unlink()
    status, output = cluster.run('bash', '-c', 'exit 75', SLURM_RESTART_COUNT='2', SCONTROL_STATUS='1')
    assert status == 75
    assert 'start 3,' in output
    assert 'could not be queued again' in output


def test_in_a_container(cluster):
    (cluster.clone / 'image.sif').touch()
    shutil.rmtree(cluster.clone / '.venv')
    status, output = cluster.run('echo', 'a b', MIM_JAX_IMAGE='image.sif')
    assert status == 0
    assert output.splitlines().count('a b') == 2
    assert cluster.read('apptainer').splitlines()[:2] == ['exec', '--nv']


@pytest.mark.parametrize(
    ('command', 'environment', 'sentence'),
    [
        (('true',), {'SLURM_JOB_ID': ''}, 'this script is for sbatch'),
        ((), {}, 'what shall run?'),
        (('true',), {'SLURM_NTASKS_PER_NODE': '1', 'SLURM_GPUS_ON_NODE': '8'}, 'give --ntasks-per-node=8'),
        (('true',), {'MIM_JAX_VENV': 'elsewhere'}, 'elsewhere has no Python'),
        (('true',), {'MIM_JAX_IMAGE': 'missing.sif'}, 'missing.sif does not exist'),
    ],
)
def test_what_is_wrong_is_a_sentence_before_anything_starts(cluster, command, environment, sentence):
    status, output = cluster.run(*command, **environment)
    assert status == 2
    assert sentence in output
    assert not cluster.read('srun')


def test_only_from_a_clone(cluster):
    (cluster.clone / 'mim_jax' / 'train.py').unlink()
    status, output = cluster.run('true')
    assert status == 2
    assert 'is not the root of a clone' in output


def test_jax_reads_the_variables_that_srun_sets(monkeypatch):
    """Each task is one process with the device of its local number: why there is a task for each GPU."""
    from jax._src.clusters import ClusterEnv

    variables = {'JOB_ID': 41, 'STEP_NODELIST': 'node[3-4]', 'NTASKS': 16, 'PROCID': 9, 'LOCALID': 1}
    for name, value in variables.items():
        monkeypatch.setenv(f'SLURM_{name}', str(value))
    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, 'slurm', 10)
    coordinator, count, number, devices = found
    assert (coordinator.split(':')[0], count, number, list(devices)) == ('node3', 16, 9, [1])
