"""Several processes on one port: signals, deaths, and metrics that are those of all."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from functools import partial
from multiprocessing import Pipe
from pathlib import Path

import pytest
from served import make_bundle

from leafembed.serve.merged import EVERY_S, Shared, bury, merge
from leafembed.serve.workers import _Crew, _ready

PAGE = """\
# HELP leaf_texts_total Texts
# TYPE leaf_texts_total counter
leaf_texts_total{model="leaf"} %d
# HELP leaf_queue_tokens Tokens
# TYPE leaf_queue_tokens gauge
leaf_queue_tokens 5.0
# HELP leaf_start_time_seconds Start
# TYPE leaf_start_time_seconds gauge
leaf_start_time_seconds %d
"""


def value(page, name):
    text = page.decode() if isinstance(page, bytes) else page
    return sum(float(number) for number in re.findall(rf"^{re.escape(name)} (\S+)$", text, flags=re.MULTILINE))


def test_counts_are_added_moments_are_not_and_the_dead_have_no_gauges():
    page = merge([PAGE % (3, 200), PAGE % (4, 100)], [PAGE % (10, 150)])
    assert value(page, 'leaf_texts_total{model="leaf"}') == 17
    assert value(page, "leaf_queue_tokens") == 10
    assert value(page, "leaf_start_time_seconds") == 100


def test_what_a_process_counted_stays_when_it_ends(tmp_path):
    shared = Shared(tmp_path)
    (tmp_path / "1.prom").write_text(PAGE % (2, 9), encoding="utf-8")
    assert value(shared.page((PAGE % (3, 7)).encode()), "leaf_queue_tokens") == 10
    bury(tmp_path, 1)
    bury(tmp_path, 2)  # of which nothing is known
    page = shared.page((PAGE % (3, 7)).encode())
    assert value(page, 'leaf_texts_total{model="leaf"}') == 5
    assert value(page, "leaf_queue_tokens") == 5


def test_a_full_disk_leaves_what_was_written(tmp_path, monkeypatch):
    shared = Shared(tmp_path)
    shared.write(b"first")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    shared.write(b"second")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]
    for name in ("unlink", "replace"):
        monkeypatch.setattr(Path, name, full)
    shared.write(b"third")
    bury(tmp_path, os.getpid())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]


def test_a_folder_that_somebody_cleared_away_leaves_what_a_process_knows_itself(tmp_path):
    shared = Shared(tmp_path / "gone")
    shared.write(b"first")
    bury(shared.folder, 1)
    page = shared.page((PAGE % (3, 7)).encode())
    assert value(page, 'leaf_texts_total{model="leaf"}') == 3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("workers"))


def children(process):
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
    return [int(pid) for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def ask(port, path="/api/embed", body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data=data, timeout=20) as response:
        return response.read().decode()


def embed(port):
    return len(json.loads(ask(port, body={"model": "leaf", "input": "red"}))["embeddings"])


def eventually(condition, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return True
        except OSError:
            pass
        time.sleep(0.05)
    return False


@contextmanager
def two_processes(bundle, log):
    """A server of two processes, and its port."""
    options = ["--port", "0", "--workers", "2", "--threads", "1", "--quiet", "--watch", "0"]
    with log.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "leafembed", "serve", str(bundle), *options], stderr=stderr)
    try:
        assert eventually(lambda: "http://" in log.read_text(encoding="utf-8"), 60), log.read_text(encoding="utf-8")
        yield process, int(re.search(r"127\.0\.0\.1:(\d+)", log.read_text(encoding="utf-8"))[1])
    finally:
        process.kill()
        process.wait()


def test_processes_share_a_port_are_replaced_and_end_together(bundle, tmp_path):
    log = tmp_path / "log"
    with two_processes(bundle, log) as (process, port):
        first = children(process)
        assert len(first) == 2
        assert sum(embed(port) for _ in range(12)) == 12
        texts = 'leaf_texts_total{model="leaf"}'
        assert eventually(lambda: value(ask(port, "/metrics"), texts) == 12)
        time.sleep(3 * EVERY_S)  # a process that is killed may take with it what it counted since it last wrote
        process.send_signal(signal.SIGHUP)
        assert eventually(lambda: log.read_text(encoding="utf-8").count("serves the new bundle") == 2)
        os.kill(first[0], signal.SIGKILL)
        assert eventually(lambda: len(set(children(process)) - set(first)) == 1)
        assert embed(port) == 1
        assert "ended with status -9 and is replaced" in log.read_text(encoding="utf-8")
        assert eventually(lambda: value(ask(port, "/metrics"), texts) == 13)  # what the dead one counted is still there
        with under_way(port) as (link, rest):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(ConnectionRefusedError):  # none of them listens, and nobody waits for an answer
                socket.create_connection(("127.0.0.1", port), timeout=5)
            link.sendall(rest)
            assert link.recv(65_536).startswith(b"HTTP/1.1 200 ")
        assert process.wait(30) == 0
        assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in first))


@contextmanager
def under_way(port):
    """A request that is half sent, and the rest of it."""
    body = b'{"model":"leaf","input":"red"}'
    with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
        link.sendall(
            b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:5]
        )
        time.sleep(0.3)
        yield link, body[5:]


def holders(port, link, processes):
    """Which of some processes has the other end of a connection."""
    pair = f":{port:04X} 0100007F:{link.getsockname()[1]:04X} "
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()
    sockets = {f"socket:[{line.split()[9]}]" for line in lines if pair in line}
    return [pid for pid in processes if sockets & {str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()}]


def test_a_request_in_a_process_that_is_killed_ends_without_an_answer_and_the_next_one_works(bundle, tmp_path):
    with two_processes(bundle, tmp_path / "log") as (process, port):
        first = children(process)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
            link.sendall(b'POST /api/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"model":')
            assert eventually(lambda: holders(port, link, first))
            (holder,) = holders(port, link, first)
            os.kill(holder, signal.SIGKILL)
            try:
                assert link.recv(1) == b""
            except ConnectionResetError:  # there was something left to read at the other end
                pass
        assert embed(port) == 1
        assert eventually(lambda: len(children(process)) == 2 and holder not in children(process))
        assert sum(embed(port) for _ in range(8)) == 8


def test_a_server_whose_processes_cannot_start_ends(bundle, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("sesame\n", encoding="utf-8")
    script = (
        "import sys; from pathlib import Path; from leafembed.serve import command\n"
        "if __name__ == '__main__':\n"
        "    from leafembed.cli import main\n"
        "    supervise = command.supervise\n"
        "    def later(*args):\n"
        f"        Path({str(keys)!r}).unlink()\n"
        "        return supervise(*args)\n"
        "    command.supervise = later\n"
        "    sys.exit(main(sys.argv[1:]))\n"
    )
    (tmp_path / "run.py").write_text(script, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "run.py"), "serve", str(bundle), "--port", "0", "--workers", "2"]
    done = subprocess.run(
        [*command, "--api-key-file", str(keys)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "the server processes end before they take requests" in done.stderr
    assert str(keys) in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_bundle_that_does_not_open_ends_the_server_with_a_line(tmp_path, workers):
    """Its manifest is whole, so that only the processes notice."""
    bundle = make_bundle(tmp_path)
    (bundle / "model.bin").write_bytes(b"garbage")
    command = [sys.executable, "-m", "leafembed", "serve", str(bundle), "--port", "0", "--workers", workers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("leaf")
    assert "model.bin was altered" in lines[0]
    assert "Traceback" not in done.stderr
    if workers == "1":
        assert len(lines) == 1
    else:
        assert done.stderr.count("was altered") <= 4  # it gives up after three in a row
        assert "the server processes end before they take requests" in lines[-1]


def test_a_process_that_died_has_not_said_that_it_is_ready():
    told, tells = Pipe(duplex=False)
    assert not _ready(told)
    tells.close()
    assert told.poll()  # its end can be read
    assert not _ready(told)
    told.close()
    told, tells = Pipe(duplex=False)
    tells.send(True)
    tells.close()
    assert _ready(told)
    told.close()


def patient(folder, tells):
    """Takes requests when it may, and notes SIGHUP from then on."""
    while not (folder / "go").exists():
        time.sleep(0.02)
    signal.signal(signal.SIGHUP, lambda *_: (folder / "reloaded").touch())
    tells.send(True)
    while True:
        signal.pause()


def test_a_process_on_its_way_is_told_to_end_and_not_forgotten(tmp_path):
    """SIGTERM that comes while a dead process is replaced: the new one was told nothing, and ran for ever."""
    crew = _Crew(partial(patient, tmp_path), tmp_path, lambda: None, socket.socket())
    crew.stopping = True
    crew.hire()
    (member,) = crew.members
    member.join(60)
    assert member.exitcode == -signal.SIGTERM
    crew.look()
    assert not crew.members
    assert crew.listener.fileno() < 0
    crew.hire()  # the signal came before it began
    assert not crew.members


def test_a_process_that_is_not_ready_is_told_to_reload_when_it_is(tmp_path):
    crew = _Crew(partial(patient, tmp_path), tmp_path, lambda: None, socket.socket())
    crew.hire()
    (member,) = crew.members
    try:
        crew.signal(signal.SIGHUP)
        crew.look()
        assert member.is_alive()
        (tmp_path / "go").touch()
        assert eventually(lambda: crew.look() or (tmp_path / "reloaded").exists())
        assert list(crew.members) == [member]
    finally:
        crew.signal(signal.SIGTERM)
        member.join(60)
    assert not crew.owed
