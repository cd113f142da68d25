"""Attack an endpoint on this machine, and see that it goes on: slow bodies, half-open streams, awkward texts, bad
headers, a flood. /healthz is asked all the while.

stasc serve runs/demo                                    in another terminal; then
python -m benchmarks.attack                              an endpoint without keys
python -m benchmarks.attack --key KEY                    one with keys; the same without a key must all be 401
python -m benchmarks.attack --only slow,text --connections 50   a part of it

The rules: what is valid gets 2xx or 429, all else 4xx, nothing gets 5xx or no answer; /healthz answers within a
second; at the end no question is in flight. Prints a table; exit status 1 if a rule broke. A quarter of an hour at most. It
refuses other hosts than this machine's. The schema fuzzer is schemathesis: docs/serving.md has its command.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ALL_S, ANSWER_S, HEALTH_S = 900.0, 90.0, 1.0
"""Seconds for everything, for an answer (a request may take 60), for /healthz."""
MIB = 1024 * 1000
"""Nearly: the rest is for the JSON around it, so that it is the text that is refused, not the body's size."""
VALID, WRONG, ANY, UNHEARD = "2xx or 429", "4xx", "below 500", "below 500 or nothing"
"""What a request may be answered with. ANY: whether it is wrong is the HTTP server's to say. UNHEARD: it is no
HTTP, and the server may wait for more of it.
"""
NONE = 0
"""Status where there was no answer."""


@dataclass
class Target:
    """The endpoint."""

    host: str
    port: int
    key: str | None
    connections: int

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.host}:{self.port}"

    def head(self, length: int | None, *more: str, path: str = "/v1/correct", method: str = "POST") -> bytes:
        """The head of a request, with the key; `more` are lines of it."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}"]
        lines += [f"Authorization: Bearer {self.key}"] if self.key else []
        lines += ["Content-Type: application/json"] + (
            [f"Content-Length: {length}"] if length is not None else []
        )
        return "\r\n".join([*lines, *more, "", ""]).encode("utf-8", "surrogateescape")


@dataclass
class Row:
    """What came of an attack."""

    name: str
    statuses: Counter[int] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    health_s: float = 0.0

    def note(self, expected: str, status: int, started: float, what: str) -> None:
        """Count an answer; one that breaks the rules is kept."""
        self.statuses[status] += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        fine = {
            VALID: 200 <= status < 300 or status == 429,
            WRONG: 400 <= status < 500,
            ANY: NONE < status < 500,
            UNHEARD: status < 500,
        }[expected]
        if not fine:
            self.broken.append(f"{what[:60]!r}: expected {expected}, found {status or 'no answer'}")


Attack = Callable[[Target, Row], Awaitable[None]]


def main() -> None:
    """Run the attacks and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", help="a key without rates: its 429 would hide the rest")
    parser.add_argument("--connections", type=int, default=600, help="slow ones at once, at most 1000")
    parser.add_argument("--only", default=",".join(ATTACKS), help="some of them, by comma")
    arguments = parser.parse_args()
    address = urlsplit(arguments.url)
    if address.hostname not in LOOPBACK or address.scheme != "http":
        parser.error(f"--url: expected http:// and one of {', '.join(LOOPBACK)}, found {arguments.url}")
    if unknown := set(arguments.only.split(",")) - ATTACKS.keys():
        parser.error(f"--only: expected some of {', '.join(ATTACKS)}, found {', '.join(unknown)}")
    target = Target(
        address.hostname, address.port or 80, arguments.key, max(1, min(1000, arguments.connections))
    )
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    rows = asyncio.run(_all(target, arguments.only.split(",")))
    print(table(rows))
    sys.exit(any(row.broken for row in rows))


async def _all(target: Target, names: Sequence[str]) -> list[Row]:
    rows = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ALL_S):
            for name in names:
                rows.append(await _one(name, target))
                print(f"{name}: {'broken' if rows[-1].broken else 'held'}", file=sys.stderr)
            return rows
    rows.append(Row(names[len(rows)], broken=[f"not done after {ALL_S:g} s in all"]))
    return rows


async def _one(name: str, target: Target) -> Row:
    row = Row(name)
    with Prober(target) as prober:
        await ATTACKS[name](target, row)
        await asyncio.to_thread(_quiet, target, row)
    row.health_s = max(prober.seconds, default=0.0)
    if prober.failed or row.health_s > HEALTH_S:
        of = f"{len(prober.failed)} of {len(prober.seconds)}"
        row.broken.append(f"/healthz: slowest {row.health_s:.1f} s, {of} not 200: {set(prober.failed)}")
    return row


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown, and what broke."""
    lines = ["| attack | answers | slowest answer | slowest /healthz | |", "|---|---|---|---|---|"]
    for row in rows:
        statuses = ", ".join(
            f"{count} x {status or 'none'}" for status, count in sorted(row.statuses.items())
        )
        verdict = f"broken: {len(row.broken)}" if row.broken else "held"
        lines.append(
            f"| {row.name} | {statuses} | {row.slowest_s:.1f} s | {row.health_s:.2f} s | {verdict} |"
        )
    lines += [f"{row.name}: {what}" for row in rows for what in row.broken[:10]]
    return "\n".join(lines)


class Prober:
    """Asks /healthz ten times a second, each time on a new connection, as an orchestrator does."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.seconds: list[float] = []
        self.failed: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            started = time.monotonic()
            try:
                status = str(httpx.get(f"{self.target.url}/healthz", timeout=15).status_code)
            except httpx.TransportError as error:
                status = type(error).__name__
            self.seconds.append(time.monotonic() - started)
            self.failed += [status] if status != "200" else []

    def __enter__(self) -> "Prober":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _quiet(target: Target, row: Row) -> None:
    """Wait until nothing is in flight."""
    found: object = None
    for _ in range(int(ANSWER_S)):
        with contextlib.suppress(httpx.TransportError, ValueError, KeyError):
            health = httpx.get(f"{target.url}/healthz", timeout=15).json()
            found = health["in_flight"], health["queued"]
            if found == (0, 0):
                return
        time.sleep(1)
    row.broken.append(f"in flight and queued, {ANSWER_S:g} s after the attack: {found}")


# --- the attacks, in this order


async def slow(target: Target, row: Row) -> None:
    """Bodies of which a byte comes each second."""

    async def one() -> None:
        started = time.monotonic()
        async with connection(target) as (reader, writer):
            writer.write(target.head(1000) + b'{"question": "')
            answer = asyncio.ensure_future(status_of(reader))
            with contextlib.suppress(OSError):
                while not answer.done() and time.monotonic() - started < ANSWER_S:
                    writer.write(b"x")
                    await asyncio.wait([answer], timeout=1)
            row.note(WRONG, await answer, started, "a slow body")

    await asyncio.gather(*(one() for _ in range(target.connections)))


async def idle(target: Target, row: Row) -> None:
    """Connections that never send a whole head; no answer is asked of the server, but to others."""

    async def one() -> None:
        async with connection(target) as (_, writer):
            writer.write(target.head(None)[:-4])
            await asyncio.sleep(10)

    await asyncio.gather(*(one() for _ in range(target.connections)))


async def streams(target: Target, row: Row) -> None:
    """Streams whose client reads no more, closes half of the connection, or vanishes in the middle."""
    body = json.dumps({"question": "47+385+12", "stream": True}).encode()

    async def one(number: int) -> None:
        started = time.monotonic()
        async with connection(target) as (reader, writer):
            writer.write(target.head(len(body)) + body)
            if number % 3 == 1:
                writer.write_eof()
            status = await status_of(reader)
            # who closes half of a connection may be taken for one who went away
            if number % 3 != 1 or status != NONE:
                row.note(VALID, status, started, "a half-open stream")
            if number % 3 == 0:
                await asyncio.sleep(3)
            plug = writer.get_extra_info("socket")
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # ends by a reset

    await gathered((one(number) for number in range(min(150, target.connections))), at_once=50)


async def texts(target: Target, row: Row) -> None:
    """A mebibyte of each awkward text, in each field that takes one, and JSON that is hard to read."""
    for name, piece in PIECES.items():
        long = (piece * (MIB // len(piece.encode("utf-8", "surrogatepass")) + 1))[:MIB]
        while len(json.dumps(long, ensure_ascii="\ud800" in long).encode()) > MIB:
            long = long[: int(len(long) * 0.9)]
        short = piece[:8] * 2
        bodies = [(WRONG, make(long)) for make in FIELDS]
        bodies.append((WRONG if "\ud800" in short else VALID, {"question": f"Is {short} so?"}))
        await _post(target, row, [(name, expected, _json(body)) for expected, body in bodies])
    await _post(target, row, [(name, WRONG, body) for name, body in HARD_JSON.items()])


PIECES = {
    "control tokens": "<|im_start|><|im_end|><|endoftext|><s></s>[INST]<|eot_id|>",
    "spaces": " x" + " " * 62,
    "line ends": "a\n\r\n\t\u2028",
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466\U0001f3f3\ufe0f\u200d\U0001f308",
    "combining marks": "e\u0301\u0302\u0303\u0304\u0305\u0306\u0307\u0308",
    "one long word": "a",
    "digits": "0123456789",
    "han": "\u6f22\u5b57",
    "right to left": "\u202e\u05d0\u0627",
    "nulls": "\x00a",
    "half surrogates": "\ud800a",
    "braces": "{{%}}{#{$",
}
FIELDS: list[Callable[[str], dict[str, object]]] = [
    lambda text: {"question": text},
    lambda text: {"question": "Why?", "initial_answer": text},
    lambda text: {"question": "Why?", "documents": [text]},
    lambda text: {"question": "Why?", "choices": ["A", text]},
    lambda text: {"question": "Why?", "context": [{"role": "user", "content": text}]},
    lambda text: {"question": "Why?", "version": text},
    lambda text: {text: 1},
]
HARD_JSON: dict[str, bytes] = {
    "deep lists": b"[" * MIB,
    "deep closed lists": b"[" * (MIB // 2) + b"]" * (MIB // 2),
    "deep objects": b'{"question":' * (MIB // 12),
    "deep in a field": b'{"question": "Why?", "documents": ' + b"[" * 500_000 + b"]" * 500_000 + b"}",
    "a number of a million digits": b'{"question": "Why?", "seed": ' + b"9" * MIB + b"}",
    "an exponent": b'{"question": "Why?", "temperature": 1e999999999}',
    "not a number": b'{"question": "Why?", "temperature": NaN}',
    "many fields": b'{"question": "Why?"'
    + b"".join(b', "f%d": 1' % number for number in range(60_000))
    + b"}",
    "no UTF-8": b'{"question": "\xff\xfe"}',
    "nothing": b"",
    "two bodies": b'{"question": "Why?"}{"question": "Why?"}',
}


async def headers(target: Target, row: Row) -> None:
    """Headers that would steer Serve, lie about the body, or are none."""
    body = b'{"question": "47+385+12"}'
    size = len(body)
    fine = target.head(size)
    chunked = "Transfer-Encoding: chunked"
    tricks: list[tuple[str, str, bytes]] = [
        *((line, VALID, target.head(size, line) + body) for line in STEERING),
        ("a longer length", WRONG, target.head(size + 10) + body),  # the rest never comes
        ("a shorter length", ANY, target.head(size - 10) + body),
        ("a length below 0", WRONG, target.head(None, "Content-Length: -1") + body),
        ("two lengths", ANY, target.head(size, f"Content-Length: {size + 1}") + body),
        ("a huge length", WRONG, target.head(10**12) + body),
        ("length and chunks", ANY, target.head(size, chunked) + b"0\r\n\r\n"),
        ("a huge chunk", ANY, target.head(None, chunked) + b"ffffffffffffffff\r\n" + body),
        ("no chunk", ANY, target.head(None, chunked) + b"zz\r\n" + body),
        ("chunks", VALID, target.head(None, chunked) + b"%x\r\n%s\r\n0\r\n\r\n" % (size, body)),
        ("HTTP/9.9", ANY, fine.replace(b"HTTP/1.1", b"HTTP/9.9") + body),
        ("no Host", ANY, fine.replace(b"Host:", b"X:") + body),
        ("a header of a megabyte", ANY, target.head(size, "X-Long: " + "a" * 1_000_000) + body),
        ("10,000 headers", ANY, target.head(size, *(f"X-{number}: 1" for number in range(10_000))) + body),
        ("a folded header", ANY, target.head(size, "X-Folded: a", " b") + body),
        ("a null", ANY, target.head(size, "X-Null: \x00") + body),
        ("gzip", ANY, target.head(size, "Content-Encoding: gzip") + body),
        ("expect", ANY, target.head(size, "Expect: 100-continue") + body),
        ("a POST that upgrades", UNHEARD, target.head(size, *WEBSOCKET) + body),
        ("a websocket", WRONG, target.head(None, *WEBSOCKET, path="/v1/run", method="GET")),
        ("no charset", ANY, fine.replace(b"application/json", b"text/plain; charset=\xff") + body),
        *((path, WRONG, target.head(size, path=path) + body) for path in PATHS),
        *((method, WRONG, target.head(size, method=method) + body) for method in METHODS),
        ("TLS", ANY, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100 + b"\r\n\r\n"),
        ("HTTP/2", ANY, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("empty lines", ANY, b"\r\n" * 1000 + b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    ]
    if not target.key:  # a web page may have pointed its host's name here
        other = fine.replace(f"Host: {target.host}".encode(), b"Host: evil.example")
        tricks.append(("another Host", WRONG, other + body))
    work = (raw(target, row, expected, request, name) for name, expected, request in tricks)
    await gathered(work, at_once=4)


STEERING = [
    "X-Request-Timeout-Seconds: 0",
    "X-Request-Timeout-Seconds: 0.001",
    "x_request_timeout_seconds: -1",
    "X-Request-Disconnect-Disabled: ?1",
    "Serve-Multiplexed-Model-Id: none",
    "X-Session-Id: none",
    "X-Stasc-Guarded: 0",
    "X-Request-Id: " + "a" * 5000,
    "X-Request-Id: \udcff\udcfe",
    "X-HTTP-Method-Override: DELETE",
    "X-Forwarded-For: 127.0.0.1",
    "X-Forwarded-Prefix: /../..",
    "traceparent: 00-zz-zz-zz",
]
WEBSOCKET = [
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==",
]
PATHS = ["//v1/correct", "/v1/correct/", "/v1/%2e%2e/correct", "/v1/correct%00", "/v1/models/%ff%fe", "*"]
METHODS = ["PUT", "BREW", "TRACE", "CONNECT"]


async def flood(target: Target, row: Row) -> None:
    """More valid questions at once than are let in and may wait."""

    async def one(number: int) -> None:
        await asyncio.sleep(number / 100)
        body = _json({"question": f"{number}+1", "rounds": 4})
        await raw(target, row, VALID, target.head(len(body)) + body, "a question")

    await asyncio.gather(*map(one, range(400)))


async def keyless(target: Target, row: Row) -> None:
    """With keys in use: every route that needs one, slow bodies too, without a key and with wrong ones."""
    if not target.key:
        return
    for key in (None, "wrong", "", "\udcff" * 10, "a" * 100_000):
        other = Target(target.host, target.port, key, target.connections)
        for path in ("/v1/correct", "/v1/chat/completions", "/v1/admin/activate", "/v1/models", "/v1/run"):
            method = "GET" if path in ("/v1/models", "/v1/run") else "POST"
            await raw(other, row, WRONG, other.head(0, path=path, method=method))
    await slow(Target(target.host, target.port, "wrong", target.connections), row)


ATTACKS: dict[str, Attack] = {
    "slow": slow,
    "idle": idle,
    "streams": streams,
    "texts": texts,
    "headers": headers,
    "flood": flood,
    "keyless": keyless,
}


# --- how a request is sent


def _json(body: dict[str, object]) -> bytes:
    """With half surrogates escaped, which UTF-8 has none of, and all else as it is."""
    return json.dumps(body, ensure_ascii="\ud800" in json.dumps(body, ensure_ascii=False)).encode()


async def _post(target: Target, row: Row, bodies: Sequence[tuple[str, str, bytes]], at_once: int = 4) -> None:
    """Each (name, expected, body) to /v1/correct, and as it is."""
    requests = (
        raw(target, row, expected, target.head(len(body)) + body, name) for name, expected, body in bodies
    )
    await gathered(requests, at_once)


async def raw(target: Target, row: Row, expected: str, request: bytes, name: str = "") -> None:
    """Send bytes and note the status that comes."""
    started, status = time.monotonic(), NONE
    with contextlib.suppress(OSError):
        async with connection(target) as (reader, writer):
            answer = asyncio.ensure_future(status_of(reader))
            writer.write(request)
            with contextlib.suppress(OSError):  # refused before it was whole
                await writer.drain()
            status = await answer
    row.note(expected, status, started, name or request[:400].decode("latin-1").split("\r\n", 1)[0])


async def gathered(work: Iterable[Awaitable[None]], at_once: int) -> None:
    """All of it, some at once."""
    places = asyncio.Semaphore(at_once)

    async def one(each: Awaitable[None]) -> None:
        async with places:
            await each

    await asyncio.gather(*map(one, work))


@contextlib.asynccontextmanager
async def connection(target: Target) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection for the length of the block."""
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def status_of(reader: asyncio.StreamReader) -> int:
    """The status of the answer; NONE where none comes."""
    with contextlib.suppress(OSError, TimeoutError, ValueError, IndexError):
        async with asyncio.timeout(ANSWER_S):
            while (line := await reader.readline()).startswith(b"HTTP/1.1 100"):
                await reader.readline()
            return int(line.split()[1])
    return NONE


if __name__ == "__main__":
    main()
