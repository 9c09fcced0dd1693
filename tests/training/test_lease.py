"""The lease of a bucket's folder: one holder, whatever clocks say; a dead one is followed, a follower is respected."""

import json
import threading
import time

import pytest
from fake_gcs import Reply, failure

from mim_jax.errors import BucketError, WorkdirError
from mim_jax.paths import open_path
from mim_jax.training import lock
from mim_jax.training.lock import FolderLock, Lease, take_lock

NAME = 'run/.lease'


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Signs of life five times a second, and no patience with the network."""
    monkeypatch.setattr(lock, 'PERIOD', 0.2)
    monkeypatch.setattr(lock, 'RETRIES', {'max_retries': 1, 'initial_delay': '10ms', 'max_delay': '10ms'})


@pytest.fixture
def take(bucket):
    """take(report) -> a lease of gs://fake/run; all are given back at the end."""
    taken = []

    def take(report=lambda line: None):
        taken.append(Lease(open_path('gs://fake/run'), report))
        return taken[-1]

    yield take
    for lease in taken:
        lease.close()


def leave(bucket, host='elsewhere'):
    """A lease whose owner is gone."""
    bucket.put(NAME, json.dumps({'owner': 'gone', 'host': host, 'pid': 7, 'signs': 3}).encode())


def silence(lease):
    """Its process is stopped: no sign of life any more."""
    lease._closing.set()
    lease._thread.join()
    lease._closing.clear()


def test_a_folder_has_a_lock_and_a_bucket_a_lease(bucket, tmp_path):
    first = take_lock(tmp_path, print)
    assert isinstance(first, FolderLock)
    with pytest.raises(WorkdirError, match='in use by another run'):
        take_lock(tmp_path, print)
    first.close()
    for _ in range(2):  # the second finds nothing of the first
        lease = take_lock(open_path('gs://fake/run'), print)
        assert json.loads(bucket.text(NAME))['host'] == lock.socket.gethostname()
        lease.close()
        assert not bucket.objects


def test_two_runs_in_one_folder(take, bucket):
    first, said = take(), []
    with pytest.raises(WorkdirError, match=f'in use by process {lock.os.getpid()} on host .*another --workdir'):
        take(said.append)
    assert 'watching' in said[0]
    first.check()
    assert json.loads(bucket.text(NAME))['owner'] == first._me['owner']


def test_of_two_that_start_at_once_one_gets_it(bucket):
    """Between reading that there is none and writing, every one of them waits for the others."""
    bucket.latency, held, refused = 0.02, [], []

    def start():
        try:
            held.append(Lease(open_path('gs://fake/run'), lambda line: None))
        except WorkdirError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lease in held:
        lease.close()
    assert (len(held), len(refused)) == (1, 3)


def test_a_stale_lease_is_followed_after_three_silent_periods(take, bucket):
    leave(bucket)
    said, start = [], time.monotonic()
    lease = take(said.append)
    assert time.monotonic() - start >= 3 * lock.PERIOD
    assert json.loads(bucket.text(NAME))['owner'] == lease._me['owner']
    assert said == [
        'gs://fake/run is held by process 7 on host elsewhere; watching for 1 s whether that is alive.',
        'No sign of life from process 7 on host elsewhere: gs://fake/run is taken over.',
    ]


@pytest.mark.parametrize('skew', [-1e6, 1e6])
def test_clocks_that_differ_do_not_matter(take, monkeypatch, skew):
    """The bucket's clock stands still in 2020; the newcomer's is days before or after the holder's."""
    first = take()
    real = time.time
    monkeypatch.setattr(time, 'time', lambda: real() + skew)
    with pytest.raises(WorkdirError, match='in use by'):
        take()
    first.check()


def test_one_that_was_stopped_finds_that_it_was_followed(take, bucket):
    """SIGSTOP, or a network that was gone; it writes nothing any more, and does not take the lease away at its end."""
    first = take()
    silence(first)
    second = take()
    with pytest.raises(WorkdirError, match=r'taken over by process \d+ on host'):
        first.check()
    with pytest.raises(WorkdirError, match='taken over'):
        first.check()
    first.close()
    assert json.loads(bucket.text(NAME))['owner'] == second._me['owner']
    second.check()


def test_one_that_was_stopped_and_not_followed_goes_on(take):
    lease = take()
    silence(lease)
    time.sleep(2 * lock.PERIOD)
    lease.check()


def test_a_lease_that_is_deleted_is_lost(take, bucket):
    lease = take()
    silence(lease)
    bucket.delete(NAME, {})
    time.sleep(2 * lock.PERIOD)
    with pytest.raises(WorkdirError, match='a run that has ended since'):
        lease.check()


def test_a_write_whose_answer_was_lost_is_still_ours(take, bucket, monkeypatch):
    """The first one of all, and one of those after it: the client sends it again, and that time it is too late."""
    put, lost = bucket.put, [NAME]

    def lose(name, *arguments):
        answer = put(name, *arguments)
        if lost and name == lost.pop():
            raise Reply(503, failure(503, 'The answer was lost.'))
        return answer

    monkeypatch.setattr(bucket, 'put', lose)
    lease = take()
    lease.check()
    silence(lease)
    lost.append(NAME)
    time.sleep(2 * lock.PERIOD)
    lease.check()
    assert not lost
    assert json.loads(bucket.text(NAME))['owner'] == lease._me['owner']


def test_an_outage_is_told_and_waited_out(take, bucket):
    said = []
    lease = take(said.append)
    bucket.denied = dict.fromkeys(('GET', 'POST', 'DELETE'), 503)
    time.sleep(3 * lock.PERIOD)
    with pytest.raises(BucketError, match='cannot be reached now'):
        lease.check()
    bucket.denied = {}
    time.sleep(2 * lock.PERIOD)
    lease.check()
    assert 'gs://fake/run/.lease cannot be used: it cannot be reached now' in said[0]


def test_what_cannot_be_given_back_is_told(take, bucket):
    said = []
    lease = take(said.append)
    bucket.denied = {'DELETE': 403}
    lease.close()
    assert 'waits 1 s for this one' in said[-1]
