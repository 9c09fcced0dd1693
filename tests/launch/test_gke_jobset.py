"""launch/gke_jobset.yaml: its fields by the API's definition, its numbers, and what it makes of exit statuses."""

import copy
import json
import math
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

HERE = Path(__file__).parent
FILE = HERE.parents[1] / 'launch' / 'gke_jobset.yaml'
SCHEMA = json.loads((HERE / 'jobset_schema.json').read_text())
JOBSET = yaml.safe_load(FILE.read_text())
PATH = ('spec', 'replicatedJobs', 0, 'template', 'spec')  # of the Job
JOB = JOBSET['spec']['replicatedJobs'][0]['template']['spec']
POD = JOB['template']['spec']
CONTAINER = POD['containers'][0]


def find_errors(jobset: dict) -> list[str]:
    validator = jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker())
    return [error.message for error in validator.iter_errors(jobset)]


def test_every_field_is_the_apis():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert find_errors(JOBSET) == []


@pytest.mark.parametrize(
    ('path', 'value'),
    [
        (('apiVersion',), 'jobset.x-k8s.io/v1'),
        (('spec', 'failurePolicy', 'maxRestart'), 3),
        (('spec', 'failurePolicy', 'rules', 0, 'action'), 'Fail'),
        (('spec', 'failurePolicy', 'rules', 0, 'onJobFailureMessagePatterns'), ['(']),
        ((*PATH, 'template', 'spec', 'restartPolicy'), 'OnFailure'),
        ((*PATH, 'podFailurePolicy', 'rules', 0, 'onExitCodes', 'values'), [0]),
        ((*PATH, 'template', 'spec', 'containers', 0, 'port'), 1),
    ],
)
def test_the_schema_finds_mistakes(path, value):
    jobset = copy.deepcopy(JOBSET)
    *parents, last = path
    place = jobset
    for key in parents:
        place = place[key]
    place[last] = value
    assert find_errors(jobset)


def test_hosts_chips_and_topology_agree():
    chips = math.prod(int(side) for side in POD['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x'))
    assert JOB['completions'] == JOB['parallelism'] == chips / CONTAINER['resources']['limits']['google.com/tpu']
    [(annotation, topology)] = JOBSET['metadata']['annotations'].items()
    assert annotation == 'alpha.jobset.sigs.k8s.io/exclusive-topology'
    assert topology == 'cloud.google.com/gke-nodepool'
    assert {port['containerPort'] for port in CONTAINER['ports']} >= {8471, 8080, 8482}
    assert {mount['name'] for mount in CONTAINER['volumeMounts']} == {volume['name'] for volume in POD['volumes']}


def find_action(status: int, evicted: bool = False) -> str:
    """What the Job and the JobSet controllers do when a pod ends so: their rules, in their order, and their messages."""
    message, reason = 'Job has reached the specified backoff limit', 'BackoffLimitExceeded'
    for index, rule in enumerate(JOB['podFailurePolicy']['rules']):
        codes = rule.get('onExitCodes', {'values': []})['values']
        conditions = [pattern['type'] for pattern in rule.get('onPodConditions', [])]
        if status in codes:
            assert rule['onExitCodes']['containerName'] == CONTAINER['name']
            message = f'Container mim-jax for pod ns/pod failed with exit code {status} matching FailJob rule at index {index}'
        elif evicted and 'DisruptionTarget' in conditions:
            message = f'Pod ns/pod has condition DisruptionTarget matching FailJob rule at index {index}'
        else:
            continue
        assert rule['action'] == 'FailJob'
        reason = 'PodFailurePolicy'
        break
    for rule in JOBSET['spec']['failurePolicy']['rules']:
        patterns = rule['onJobFailureMessagePatterns']
        if reason in rule['onJobFailureReasons'] and any(re.search(pattern, message) for pattern in patterns):
            return rule['action']
    return 'RestartJobSet'


@pytest.mark.parametrize(
    ('status', 'evicted', 'action'),
    [
        (2, False, 'FailJobSet'),
        (3, False, 'FailJobSet'),
        (75, False, 'RestartJobSet'),
        (137, True, 'RestartJobSetAndIgnoreMaxRestarts'),
        (75, True, 'RestartJobSetAndIgnoreMaxRestarts'),
        (1, False, 'RestartJobSet'),
        (137, False, 'RestartJobSet'),
        (139, False, 'RestartJobSet'),
    ],
)
def test_what_becomes_of_exit_statuses(status, evicted, action):
    assert JOB['backoffLimit'] == 0  # or a failed pod would come back alone, among hosts that have lost it
    assert find_action(status, evicted) == action


def test_the_command_names_a_config_of_this_clone():
    command = CONTAINER['command']
    assert command[:3] == ['python', '-m', 'mim_jax.train']
    config = next(word.split('=')[1] for word in command if word.startswith('--config=')).split(':')[0]
    assert (FILE.parents[1] / config).exists()
    assert any(word.startswith('--workdir=gs://') for word in command)
