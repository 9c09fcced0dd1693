"""Which host this process is: told, numbered by a launcher, found by JAX, or the only one."""

import pytest

from mim_jax.errors import ConfigError
from mim_jax.parallel import startup
from mim_jax.parallel.startup import Place, find_cluster, find_place, is_alone, join_hosts, leave_hosts, prefix_host

ADDRESS = '10.0.0.1:8476'
TOLD = {'MIM_JAX_COORDINATOR': ADDRESS, 'MIM_JAX_HOSTS': '4', 'MIM_JAX_HOST': '2'}
SLURM = {
    'SLURM_JOB_ID': '4242',
    'SLURM_STEP_NODELIST': 'node[007-010]',
    'SLURM_NTASKS': '4',
    'SLURM_PROCID': '3',
    'SLURM_LOCALID': '1',
}
OPEN_MPI = {
    'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911',
    'OMPI_COMM_WORLD_SIZE': '2',
    'OMPI_COMM_WORLD_RANK': '0',
    'OMPI_COMM_WORLD_LOCAL_RANK': '0',
}


@pytest.fixture
def found(monkeypatch):
    """found(variables) -> what JAX's detection makes of them, and of nothing else."""

    def run(variables):
        for name in {**TOLD, **SLURM, **OPEN_MPI}:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return find_cluster(timeout=1)

    return run


@pytest.mark.parametrize(
    ('told', 'variables', 'place'),
    [
        (('', 0, -1), {}, None),
        ((ADDRESS, 4, 2), {}, Place(ADDRESS, 4, 2, 'as told')),
        (('', 0, -1), TOLD, Place(ADDRESS, 4, 2, 'as told')),
        (('vm:1', 0, 0), TOLD, Place('vm:1', 4, 0, 'as told')),  # arguments before variables, one by one
        ((ADDRESS, 0, -1), SLURM, Place(ADDRESS, 4, 3, 'numbers by SLURM')),
        ((ADDRESS, 0, -1), {'PMI_SIZE': '2', 'PMI_RANK': '1'}, Place(ADDRESS, 2, 1, 'numbers by MPI')),
        (('', 1, -1), SLURM, Place('', 1, 0, 'as told')),  # alone, whatever the cluster says
    ],
)
def test_places(told, variables, place):
    assert find_place(*told, variables) == place


@pytest.mark.parametrize(
    ('told', 'variables', 'words'),
    [
        ((ADDRESS, 0, -1), {}, '--hosts and --host missing'),
        (('', 4, 2), {}, '--coordinator missing'),
        ((ADDRESS, 4, 4), {}, '--host 4 is not one of 4: number the hosts from 0 to 3'),
        ((ADDRESS, 1, 1), {}, '--host 1 is not one of 1'),
        (('10.0.0.1', 4, 2), {}, "'10.0.0.1' is not HOST:PORT"),
        (('', 0, -1), TOLD | {'MIM_JAX_HOST': 'two'}, 'MIM_JAX_HOST=two is not a number'),
    ],
)
def test_contradictions(told, variables, words):
    with pytest.raises(ConfigError, match=words):
        find_place(*told, variables)


def test_slurm_and_open_mpi_are_found(found):
    place = found(SLURM)
    assert (place.hosts, place.host, place.how, place.devices) == (4, 3, 'SLURM', [1])
    assert place.coordinator.startswith('node007:')
    place = found(OPEN_MPI)
    assert (place.hosts, place.host, place.how, place.devices) == (2, 0, 'Open MPI', [0])
    assert place.coordinator.startswith('10.96.0.1:')


def test_the_only_process_of_a_machine_has_all_its_devices(found):
    assert found(SLURM | {'SLURM_STEP_TASKS_PER_NODE': '1(x4)'}).devices is None
    assert not is_alone({'SLURM_STEP_TASKS_PER_NODE': '11'})
    assert not is_alone({'SLURM_STEP_TASKS_PER_NODE': '2,1(x3)'})
    assert is_alone({'OMPI_COMM_WORLD_LOCAL_SIZE': '1'})


def test_one_task_or_no_cluster_is_a_single_host(found):
    assert found(SLURM | {'SLURM_NTASKS': '1'}) is None
    assert found({'SLURM_JOB_ID': '4242', 'SLURM_NTASKS': '4', 'SLURM_PROCID': '0'}) is None  # in sbatch, without srun
    assert found({}) is None


def test_mpi_without_an_address_is_told(found):
    with pytest.raises(ConfigError, match=r'Open MPI has started 2 processes.*--coordinator'):
        found({name: value for name, value in OPEN_MPI.items() if 'uri' not in name})


def test_a_cluster_that_does_not_say_enough_is_told(found):
    with pytest.raises(ConfigError, match=r'SLURM.*invalid literal.*--hosts 1 runs on this host alone'):
        found(SLURM | {'SLURM_PROCID': ''})


def test_a_single_host_joins_nobody(found, monkeypatch):
    found({})
    monkeypatch.setattr(startup, 'call_roll', None)
    join_hosts()
    join_hosts(hosts=1)
    leave_hosts()
    assert prefix_host() == ''
