"""A bucket on this machine: what gcsfs, TensorStore and google-cloud-storage ask of GCS's JSON API, over loopback HTTP.

Not gcp-storage-emulator, because that knows no preconditions (ifGenerationMatch), on which the lease of a run rests.
"""

import contextlib
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit


class Stored(NamedTuple):
    """One version of an object."""

    data: bytes
    generation: int


class Reply(Exception):
    """Ends a request."""

    def __init__(self, status: int, body: bytes | Mapping[str, Any] = b'', headers: Mapping[str, str] = {}):
        self.status, self.headers = status, {'Content-Type': 'application/json', **headers}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


@dataclass
class Bucket:
    """Its objects by name, and what may be wrong with it.

    denied: {method: status} of requests that are refused, as {'POST': 403, 'DELETE': 403} for a bucket that is read only;
    latency: seconds before every answer; asked: (method, path) of every request.
    """

    name: str
    objects: dict[str, Stored] = field(default_factory=dict)
    uploads: dict[str, tuple[str, bytearray, dict]] = field(default_factory=dict)
    denied: dict[str, int] = field(default_factory=dict)
    latency: float = 0.0
    asked: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    written: int = 0

    def reset(self) -> None:
        """Empty, and nothing wrong with it."""
        with self.lock:
            self.objects.clear()
        self.denied, self.latency = {}, 0.0
        self.asked.clear()

    def put(self, name: str, data: bytes, query: Mapping[str, str] = {}) -> dict[str, str]:
        """Write an object if the generation that is there is the one asked for."""
        with self.lock:
            self.check(name, query)
            self.written += 1
            self.objects[name] = Stored(bytes(data), 1000 + self.written)
            return self.describe(name)

    def delete(self, name: str, query: Mapping[str, str]) -> None:
        with self.lock:
            self.find(name)
            self.check(name, query)
            del self.objects[name]

    def refuse(self, method: str) -> None:
        """Raise the answer to a request that is denied."""
        if status := self.denied.get(method):
            raise Reply(status, failure(status, 'The caller does not have storage.objects access.'))

    def check(self, name: str, query: Mapping[str, str]) -> None:
        there = self.objects[name].generation if name in self.objects else 0
        if int(query.get('ifGenerationMatch', there)) != there:
            raise Reply(412, failure(412, 'At least one of the pre-conditions you specified did not hold.'))

    def find(self, name: str) -> Stored:
        if name not in self.objects:
            raise Reply(404, failure(404, f'No such object: {self.name}/{name}'))
        return self.objects[name]

    def describe(self, name: str) -> dict[str, str]:
        stored = self.find(name)
        sizes = {'size': str(len(stored.data)), 'generation': str(stored.generation), 'metageneration': '1'}
        moment = {'updated': '2020-01-01T00:00:00.000Z', 'timeCreated': '2020-01-01T00:00:00.000Z'}
        return {'kind': 'storage#object', 'bucket': self.name, 'name': name, **sizes, **moment}

    def text(self, name: str) -> str:
        return self.objects[name].data.decode()


def failure(status: int, message: str) -> dict[str, Any]:
    return {'error': {'code': status, 'message': message, 'errors': [{'message': message}]}}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm, wbufsize = True, 1 << 16  # or every answer waits 40 ms for an acknowledgement
    bucket: Bucket

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def answer(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        self.bucket.asked.append((self.command, self.path))
        time.sleep(self.bucket.latency)
        try:
            self.bucket.refuse(self.command)
            self.route(re.sub(r'^/(download/|upload/)?storage/v1/', r'/\1', url.path), query, body)
            raise Reply(404, failure(404, f'Nothing answers {self.command} {self.path}'))
        except Reply as reply:
            with contextlib.suppress(ConnectionError):  # the caller was killed
                self.send_response(reply.status)
                for key, value in {**reply.headers, 'Content-Length': str(len(reply.body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(reply.body)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def route(self, path: str, query: dict[str, str], body: bytes) -> None:
        """Raise the Reply; return where nothing answers."""
        kind, _, rest = path.lstrip('/').partition('b/')
        name, _, rest = rest.partition('/o')
        if unquote(name) != self.bucket.name:
            raise Reply(404, failure(404, 'The specified bucket does not exist.'))
        parts = [unquote(part) for part in rest.lstrip('/').split('/')] if rest.strip('/') else []
        if kind == 'upload/':
            self.upload(query, body)
        elif self.command == 'GET' and '/o' not in path:
            raise Reply(200, {'kind': 'storage#bucket', 'name': name, 'id': name})
        elif self.command == 'GET' and not parts:
            raise Reply(200, self.list(query))
        elif self.command == 'GET':
            self.read(parts[0], query)
        elif self.command == 'DELETE':
            self.bucket.delete(parts[0], query)
            raise Reply(204)
        elif self.command == 'POST' and parts[1:2] == ['rewriteTo']:
            copied = self.bucket.put(parts[-1], self.bucket.find(parts[0]).data, query)
            raise Reply(200, {'kind': 'storage#rewriteResponse', 'done': True, 'resource': copied})

    def list(self, query: Mapping[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get('prefix', ''), query.get('delimiter')
        first, end = query.get('startOffset', ''), query.get('endOffset')
        limit, after = int(query.get('maxResults', 1000)), query.get('pageToken', '')
        found: dict[str, Any] = {}
        with self.bucket.lock:
            for name in sorted(self.bucket.objects):
                if not name.startswith(prefix) or name < first or (end and name >= end):
                    continue
                inner, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, '', '')
                entry = prefix + inner + delimiter if cut else name
                if entry > after and entry not in found:
                    found[entry] = None if cut else self.bucket.describe(name)
        page = list(found)[:limit]
        more = {'nextPageToken': page[-1]} if len(found) > limit else {}
        items = [found[entry] for entry in page if found[entry]]
        return {'kind': 'storage#objects', 'items': items, 'prefixes': [p for p in page if not found[p]], **more}

    def read(self, name: str, query: Mapping[str, str]) -> None:
        with self.bucket.lock:
            stored, about = self.bucket.find(name), self.bucket.describe(name)
        headers = {'x-goog-generation': about['generation'], 'Content-Type': 'application/octet-stream'}
        self.bucket.check(name, query)
        if query.get('ifGenerationNotMatch') == about['generation']:
            raise Reply(304, b'', headers)
        if query.get('alt') != 'media':
            raise Reply(200, about)
        asked = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
        if asked is None:
            raise Reply(200, stored.data, headers)
        start, last = int(asked[1]), min(int(asked[2] or len(stored.data)), len(stored.data) - 1)
        if start > last:
            raise Reply(416, failure(416, 'The requested range cannot be satisfied.'))
        headers['Content-Range'] = f'bytes {start}-{last}/{len(stored.data)}'
        raise Reply(206, stored.data[start : last + 1], headers)

    def upload(self, query: Mapping[str, str], body: bytes) -> None:
        kind = query['uploadType']
        if kind == 'media':
            raise Reply(200, self.bucket.put(query['name'], body, query))
        if kind == 'multipart':
            boundary = re.search('boundary="?([^";]+)', self.headers['Content-Type'])[1].encode()
            about, data = (re.split(rb'\r?\n\r?\n', part, maxsplit=1)[1] for part in body.split(b'--' + boundary)[1:3])
            raise Reply(200, self.bucket.put(json.loads(about)['name'], re.sub(rb'\r?\n\Z', b'', data), query))
        if 'upload_id' not in query:
            token, name = uuid.uuid4().hex, query.get('name') or json.loads(body)['name']
            self.bucket.uploads[token] = (name, bytearray(), dict(query))
            place = f'http://{self.headers["Host"]}/upload/storage/v1/b/{self.bucket.name}/o'
            raise Reply(200, {}, {'Location': f'{place}?uploadType=resumable&upload_id={token}'})
        name, data, wanted = self.bucket.uploads[query['upload_id']]
        data += body
        if self.headers.get('Content-Range', '').endswith('/*'):
            raise Reply(308, b'', {'Range': f'bytes=0-{len(data) - 1}'})
        raise Reply(200, self.bucket.put(name, bytes(data), wanted))


class Server(ThreadingHTTPServer):
    """A thread per connection; a client that was killed is no news."""

    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Says nothing."""


@contextlib.contextmanager
def serve(name: str = 'fake') -> Iterator[tuple[Bucket, dict[str, str]]]:
    """A bucket, and the environment that leads all three clients, here and in children, to it and to nothing else."""
    bucket = Bucket(name)
    server = Server(('127.0.0.1', 0), type('BoundHandler', (Handler,), {'bucket': bucket}))
    address = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True)
    thread.start()
    try:
        yield (
            bucket,
            {
                'STORAGE_EMULATOR_HOST': address,
                'TENSORSTORE_GCS_HTTP_URL': address,
                'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'nobody',
                'NO_GCE_CHECK': 'true',  # no look for the metadata server of a virtual machine
                'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # asks over gRPC, which this server does not speak
            },
        )
    finally:
        server.shutdown()
        server.server_close()
