"""Buckets without Google: a server of objects in memory, of the part of Cloud Storage's JSON interface in use here.

Objects are written whole or not at all, are never appended to, and folders are only what the names look like.
"""

import contextlib
import http.server
import importlib.util
import json
import re
import sys
import threading
import types
import urllib.parse

from etils.epath import backend
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

OBJECT = re.compile(r"^(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)$")
LIST = re.compile(r"^/(?:upload/)?storage/v1/b/([^/]+)/o/?$")


class Objects(dict):
    """``{"bucket/name": (content, generation)}``."""

    generations = 0

    def put(self, name, content):
        self.generations += 1
        self[name] = bytes(content), self.generations
        return self.about(name)

    def about(self, name):
        content, generation = self[name]
        bucket, _, rest = name.partition("/")
        return {
            "kind": "storage#object", "bucket": bucket, "name": rest, "size": str(len(content)),
            "generation": str(generation), "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):  # a reader that has enough
            super().handle()

    @property
    def objects(self):
        return self.server.objects

    def _asked(self):
        url = urllib.parse.urlsplit(self.path)
        return url.path, {key: values[0] for key, values in urllib.parse.parse_qs(url.query).items()}

    def _reply(self, status, content=b"", headers=()):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers = [*headers, ("Content-Type", "application/json")]
        self.send_response(status)
        for name, value in [*headers, ("Content-Length", str(len(content)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _missing(self):
        self._reply(404, {"error": {"code": 404, "message": "Not Found"}})

    def do_GET(self):
        path, query = self._asked()
        if found := LIST.match(path):
            return self._list(found[1], query)
        found = OBJECT.match(path)
        if not found:
            return self._reply(200, {"kind": "storage#bucket", "name": path.rpartition("/")[2]})
        name = f"{found[1]}/{urllib.parse.unquote(found[2])}"
        if name not in self.objects:
            return self._missing()
        if query.get("alt") != "media":
            return self._reply(200, self.objects.about(name))
        content, generation = self.objects[name]
        headers = [("x-goog-generation", str(generation)), ("x-goog-stored-content-encoding", "identity")]
        if asked := re.match(r"bytes=(\d*)-(\d*)$", self.headers.get("Range", "")):
            first = int(asked[1]) if asked[1] else max(len(content) - int(asked[2]), 0)
            last = min(int(asked[2]) if asked[1] and asked[2] else len(content) - 1, len(content) - 1)
            if first >= len(content):
                return self._reply(416)
            span = ("Content-Range", f"bytes {first}-{last}/{len(content)}")
            return self._reply(206, content[first : last + 1], [*headers, span])
        return self._reply(200, content, headers)

    def _list(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, folders = [], set()
        for name in sorted(self.objects):
            inside, _, rest = name.partition("/")
            if inside != bucket or not rest.startswith(prefix) or rest < query.get("startOffset", ""):
                continue
            head, found, _ = rest[len(prefix) :].partition(delimiter) if delimiter else (rest, "", "")
            if found:
                folders.add(prefix + head + delimiter)
            else:
                items.append(self.objects.about(name))
        return self._reply(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})

    def do_POST(self):
        path, query = self._asked()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        bucket = LIST.match(path)[1]
        if query["uploadType"] == "multipart":
            mark = b"--" + self.headers["Content-Type"].partition("boundary=")[2].strip("'\"").encode()
            about, content = (part.split(b"\n\n", 1)[1] for part in body.replace(b"\r\n", b"\n", 4).split(mark)[1:3])
            return self._reply(200, self.objects.put(f"{bucket}/{json.loads(about)['name']}", content.rstrip(b"\n")))
        if query["uploadType"] == "resumable":
            if "upload_id" not in query:  # a large file comes in pieces
                name = query.get("name") or json.loads(body)["name"]
                ticket = urllib.parse.urlencode({"uploadType": "resumable", "upload_id": f"{bucket}/{name}"})
                self.server.uploads[f"{bucket}/{name}"] = b""
                return self._reply(200, headers=[("Location", f"http://{self.headers['Host']}{path}?{ticket}")])
            name = query["upload_id"]
            self.server.uploads[name] += body
            if self.headers["Content-Range"].endswith("/*"):
                return self._reply(308, headers=[("Range", f"bytes=0-{len(self.server.uploads[name]) - 1}")])
            return self._reply(200, self.objects.put(name, self.server.uploads.pop(name)))
        name = f"{bucket}/{query['name']}"
        old = self.objects.get(name, (b"", 0))[1]
        if int(query.get("ifGenerationMatch", old)) != old:
            return self._reply(412)
        return self._reply(200, self.objects.put(name, body))

    def do_DELETE(self):
        found = OBJECT.match(self._asked()[0])
        if self.objects.pop(f"{found[1]}/{urllib.parse.unquote(found[2])}", None) is None:
            return self._missing()
        return self._reply(204)


class _File(AbstractBufferedFile):
    """A file in memory, an object when closed."""

    def _fetch_range(self, start, end):
        return self.fs.objects[self.path][0][start:end]

    def _initiate_upload(self):
        pass

    def _upload_chunk(self, final=False):
        if final:
            self.fs.objects.put(self.path, self.buffer.getvalue())
        return final


class _FileSystem(AbstractFileSystem):
    """What gcsfs is to epath, of `Objects`."""

    protocol = ("gcs", "gs")
    objects = Objects()
    cachable = False

    def __init__(self, **options):
        super().__init__(**{k: v for k, v in options.items() if k != "finalize_on_close"})

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path).rstrip("/")
        if path in self.objects:
            found = {path: len(self.objects[path][0])}
        else:
            found = {}
            for name, (content, _) in list(self.objects.items()):
                if name.startswith(path + "/"):
                    head, below, _ = name[len(path) + 1 :].partition("/")
                    found[f"{path}/{head}"] = None if below else len(content)
            if not found:
                raise FileNotFoundError(path)
        rows = [
            {"name": name, "size": size or 0, "type": "directory" if size is None else "file"}
            for name, size in sorted(found.items())
        ]
        return rows if detail else [row["name"] for row in rows]

    def _open(self, path, mode="rb", **options):
        if mode not in ("rb", "wb"):
            raise NotImplementedError(f"objects cannot be opened with mode {mode!r}")
        size = {} if mode == "wb" else {"size": self.info(path)["size"]}
        return _File(self, path, mode, block_size=2**40, cache_type="none", **size)

    def rm(self, path, recursive=False, maxdepth=None):
        path = self._strip_protocol(path).rstrip("/")
        gone = [name for name in self.objects if name == path or (recursive and name.startswith(path + "/"))]
        if not gone:
            raise FileNotFoundError(path)
        for name in gone:
            del self.objects[name]

    def mkdir(self, path, create_parents=True, **_):
        pass

    def makedirs(self, path, exist_ok=False):
        pass

    def rename(self, *_, **__):
        raise NotImplementedError("objects have no other names")

    mv = rename


@contextlib.contextmanager
def serving(monkeypatch):
    """`Objects` that gs:// paths name: for tensorstore over HTTP, for epath by gcsfs where it is installed."""
    objects = Objects()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.objects, server.uploads, server.daemon_threads = objects, {}, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "TENSORSTORE_GCS_HTTP_URL": url,
        "STORAGE_EMULATOR_HOST": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "-",
    }.items():
        monkeypatch.setenv(name, value)
    if importlib.util.find_spec("gcsfs") is None:
        monkeypatch.setattr(_FileSystem, "objects", objects)
        monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gcs", _FileSystem)
        # orbax asks for the kind of bucket before it deletes
        storage = types.ModuleType("google.cloud.storage")
        storage.Client = lambda: types.SimpleNamespace(get_bucket=lambda name: None)
        cloud = types.ModuleType("google.cloud")
        cloud.storage = storage
        for module in (cloud, storage):
            monkeypatch.setitem(sys.modules, module.__name__, module)
    backend.fsspec_backend._get_filesystem.cache_clear()
    try:
        yield objects
    finally:
        backend.fsspec_backend._get_filesystem.cache_clear()
        server.shutdown()
        server.server_close()
