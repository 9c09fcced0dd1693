"""The scripts that get a slice, fill it and give it back, against a pretended gcloud: what they ask for, and a second time."""

import shutil
import subprocess

import pytest
from tpu_world import World

V4 = ('--type', 'v4-16')


@pytest.fixture
def world(tmp_path):
    with World(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize(
    ('script', 'arguments', 'sentence'),
    [
        ('tpu_create.sh', (), 'needs --type'),
        ('tpu_create.sh', ('--type',), '--type needs a value'),
        ('tpu_create.sh', ('--type', '--spot'), '--type needs a value'),
        ('tpu_create.sh', ('--type=v5e-256',), 'give --type v5litepod-256'),
        ('tpu_create.sh', ('--type=tpu7x-8',), 'gke_jobset.yaml'),
        ('tpu_create.sh', ('--type=v9-8',), 'v9 is not known here'),
        ('tpu_create.sh', ('--type=v4',), 'not a family and a size'),
        ('tpu_create.sh', ('--type=v4-12',), 'a multiple of 8'),
        ('tpu_create.sh', ('--type=v6e-12',), '1, 4, 8, 16'),
        ('tpu_create.sh', (*V4, '--spot', '--reserved'), 'exclude each other'),
        ('tpu_create.sh', (*V4, '--slices=0'), '--slices 0'),
        ('tpu_create.sh', (*V4, '--preemptible'), '--preemptible is not an option of tpu_create.sh'),
        ('tpu_create.sh', (*V4, '--name=Pod_1'), 'Pod_1 cannot be a resource'),
        ('tpu_create.sh', (*V4, '--zone=us-central2'), 'us-central2 is not a zone'),
        ('tpu_create.sh', (*V4, '--project=my lab'), 'my lab is not a project'),
        ('tpu_setup.sh', ('--commit=main', '--repo=https://example.org/x'), 'main is not a commit'),
        ('tpu_setup.sh', ('--commit=0123abc',), 'has no origin'),
        ('tpu_run.sh', (), 'What shall run?'),
        ('tpu_run.sh', ('--tries=many', '--', 'true'), '--tries many'),
        ('tpu_run.sh', ('--keep-alive', '--', 'true'), 'needs --type'),
    ],
)
def test_a_bad_option_is_a_sentence_before_gcloud_is_called(world, script, arguments, sentence):
    done = world.run(script, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith('error: ')
    assert sentence in done.stderr
    assert done.stderr.count('\n') == 1
    assert not world.calls()


@pytest.mark.parametrize('script', ['create', 'setup', 'run', 'status', 'stop', 'delete'])
def test_each_script_names_the_options_it_lacks_and_explains_itself(world, script):
    done = world.run(f'tpu_{script}.sh', '--name', 'pod', machine=())
    assert done.returncode == 2
    assert '--zone --project' in done.stderr
    shown = world.run(f'tpu_{script}.sh', '--help', machine=())
    assert shown.returncode == 0
    assert '--type TYPE' in shown.stdout
    assert 'shellcheck' not in shown.stdout
    assert not world.calls()


def test_without_gcloud_a_sentence_says_so(world, tmp_path):
    tools = tmp_path / 'tools'  # this machine may have a gcloud: only what the script itself needs
    tools.mkdir()
    for tool in ('bash', 'dirname', 'basename'):
        (tools / tool).symlink_to(shutil.which(tool))
    world.environment['PATH'] = str(tools)
    done = world.run('tpu_status.sh')
    assert done.returncode == 2
    assert 'gcloud is not on the PATH' in done.stderr


@pytest.mark.parametrize(
    ('options', 'flags'),
    [
        (('--type', 'v4-32'), ['--node-id=pod', '--accelerator-type=v4-32', '--runtime-version=tpu-ubuntu2204-base']),
        (('--type', 'v5litepod-256', '--spot'), ['--runtime-version=v2-alpha-tpuv5-lite', '--spot']),
        (('--type', 'v5p-64', '--reserved'), ['--runtime-version=v2-alpha-tpuv5', '--reserved']),
        (
            ('--type=v6e-256', '--slices=2'),
            ['--node-count=2', '--node-prefix=pod', '--runtime-version=v2-alpha-tpuv6e'],
        ),
        (('--type', 'v6e-8', '--version', 'v2-mine'), ['--runtime-version=v2-mine']),
    ],
)
def test_what_create_asks_for(world, options, flags):
    assert world.run('tpu_create.sh', *options).returncode == 0
    [call] = world.calls('create')
    assert call[:5] == ['compute', 'tpus', 'queued-resources', 'create', 'pod']
    assert {*flags, '--zone=us-central2-b', '--project=lab', '--quiet'} <= {*call}
    assert ('--spot' in call, '--reserved' in call) == ('--spot' in options, '--reserved' in options)


def test_further_flags_reach_gcloud(world):
    world.environment |= {
        'GCLOUD_CREATE_FLAGS': '--network=mine --internal-ips',
        'GCLOUD_SSH_FLAGS': '--tunnel-through-iap',
    }
    assert world.run('tpu_create.sh', *V4).returncode == 0
    assert {'--network=mine', '--internal-ips'} <= {*world.calls('create')[0]}
    assert world.run('tpu_status.sh').returncode == 0
    assert all('--tunnel-through-iap' in call for call in world.calls('ssh'))


def test_create_waits_until_active_and_a_second_one_changes_nothing(world):
    world.plan([['WAITING_FOR_RESOURCES', 'UNREACHABLE', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']])
    done = world.run('tpu_create.sh', *V4)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        'pod is WAITING_FOR_RESOURCES.', 'pod is PROVISIONING.', 'pod is ACTIVE. Next: launch/tpu_setup.sh'
    ]  # fmt: skip
    again = world.run('tpu_create.sh', *V4)
    assert again.returncode == 0
    assert 'nothing to create' in again.stdout
    assert len(world.calls('create')) == 1
    assert not world.calls('delete')


def test_create_joins_a_request_that_waits_already(world):
    world.exists('WAITING_FOR_RESOURCES', 'ACTIVE')
    assert world.run('tpu_create.sh', *V4).returncode == 0
    assert not world.calls('create')


@pytest.mark.parametrize('state', ['SUSPENDED', 'FAILED'])
def test_a_request_that_is_over_is_made_anew(world, state):
    world.exists(state)
    assert world.run('tpu_create.sh', *V4, '--spot').returncode == 0
    verbs = [call[3] for call in world.calls() if call[3] != 'list']
    assert verbs == ['delete', 'create']
    assert '--force' in world.calls('delete')[0]


def test_create_does_not_ask_for_ever(world):
    world.plan([['PROVISIONING', 'FAILED']])
    done = world.run('tpu_create.sh', *V4)
    assert done.returncode == 1
    assert 'ended as FAILED' in done.stderr
    assert len(world.calls('create')) == 1
    world.plan([['PROVISIONING', 'GONE']])
    gone = world.run('tpu_create.sh', *V4)
    assert gone.returncode == 2
    assert 'somebody has deleted it' in gone.stderr


def test_another_slice_under_that_name_is_left_alone(world):
    world.exists('ACTIVE', type='v4-8')
    done = world.run('tpu_create.sh', *V4)
    assert done.returncode == 2
    assert 'exists as v4-8, not v4-16' in done.stderr
    assert {call[3] for call in world.calls()} == {'list'}


@pytest.mark.parametrize('verb', ['list', 'create'])
def test_gclouds_refusal_ends_create(world, verb):
    world.plan([['ACTIVE']], failing=(verb,))
    done = world.run('tpu_create.sh', *V4)
    assert done.returncode == 1
    assert 'PERMISSION_DENIED' in done.stderr
    assert len(world.calls()) == (1 if verb == 'list' else 2)


def test_setup_brings_the_tree_and_the_packages_to_every_worker_of_every_slice(world):
    (world.clone / '.gitignore').write_text('secret\n')
    (world.clone / 'secret').write_text('')
    (world.clone / 'new file.py').write_text('')
    world.run('tpu_create.sh', *V4, '--slices', '2')
    assert world.run('tpu_setup.sh', '--slices', '2').returncode == 0
    assert world.run('tpu_setup.sh', '--slices', '2').returncode == 0
    for node, worker in [('pod-0', 0), ('pod-0', 1), ('pod-1', 0), ('pod-1', 1)]:
        home = world.home(worker, node)
        assert (home / 'mim_jax' / 'new file.py').exists()
        assert not (home / 'mim_jax' / 'secret').exists()
        packages = [line for line in (home / 'uv_calls').read_text().splitlines() if 'requirements.txt' in line]
        assert len(packages) == 2
        assert packages[0].endswith('--constraint launch/constraints.txt -r requirements.txt jax[tpu]')


def test_setup_clones_a_commit(world):
    git = ['git', '-C', world.clone, '-c', 'user.name=t', '-c', 'user.email=t@example.org']
    subprocess.run([*git, 'add', '.'], check=True)
    subprocess.run([*git, 'commit', '--quiet', '-m', 'one'], check=True)
    commit = subprocess.run([*git, 'rev-parse', 'HEAD'], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run([*git, 'rm', '--quiet', 'requirements.txt'], check=True)
    subprocess.run([*git, 'commit', '--quiet', '-m', 'two'], check=True)
    world.run('tpu_create.sh', *V4)
    for _ in range(2):
        done = world.run('tpu_setup.sh', '--commit', commit, '--repo', str(world.clone))
        assert done.returncode == 0, done.stderr
    head = subprocess.run(['git', '-C', world.home(1) / 'mim_jax', 'rev-parse', 'HEAD'], capture_output=True, text=True)
    assert head.stdout.strip() == commit
    assert not world.calls('scp')
    missing = world.run('tpu_setup.sh', '--commit', 'f' * 40, '--repo', str(world.clone))
    assert missing.returncode == 1
    assert 'could not be set up' in missing.stderr


def test_setup_needs_a_slice_that_is_active(world):
    world.exists('PROVISIONING')
    done = world.run('tpu_setup.sh')
    assert done.returncode == 2
    assert 'pod is PROVISIONING, not ACTIVE' in done.stderr


def test_delete_gives_everything_back_and_a_second_one_says_so(world):
    world.run('tpu_create.sh', *V4)
    assert world.run('tpu_delete.sh').returncode == 0
    assert '--force' in world.calls('delete')[0]
    again = world.run('tpu_delete.sh')
    assert again.returncode == 0
    assert 'nothing to delete' in again.stdout
    assert len(world.calls('delete')) == 1


def test_a_dry_run_prints_every_command_and_runs_none(world):
    told = {
        'create': world.run('tpu_create.sh', *V4, '--dry-run'),
        'scp': world.run('tpu_setup.sh', '--dry-run'),
        'start 20 python -m x': world.run('tpu_run.sh', '--dry-run', '--', 'python', '-m', 'x'),
        'status': world.run('tpu_status.sh', '--dry-run'),
        'stop': world.run('tpu_stop.sh', '--dry-run'),
        'delete': world.run('tpu_delete.sh', '--dry-run'),
    }
    world.environment['DRY_RUN'] = '1'
    told['node-id=pod'] = world.run('tpu_run.sh', *V4, '--keep-alive', '--', 'true')
    for command, done in told.items():
        assert done.returncode == 0
        assert any(line.startswith('+ gcloud') and command in line for line in done.stderr.splitlines()), command
        assert 'is set up' not in done.stdout
    assert not world.calls()
