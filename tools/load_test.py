"""Measures a server of ours under load, beside the encoder without it, in one run.

    python tools/load_test.py BUNDLE --out docs/results/serve

Starts ``leaf serve`` as a process, then from this one: a short query, in turn with the same one in the encoder; closed
loops of 1, 8, 64 and 512 clients with texts of mixed lengths against the encoder's rate on the same texts; a short
query beside a client that sends requests of 2,000 texts; far more tokens than the queue takes, and how soon a request
works again; and the server's memory before, after and at its most. Clients and server share the machine's cores, so
rates are lower bounds. Writes results.json and README.md.
"""

import argparse
import asyncio
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import leafembed
from leafembed.progress import say
from leafembed.ship.machine import machine_facts
from leafembed.ship.markdown import fixed, table
from leafembed.text import read_texts

WORDS = (3, 60)
"""Fewest and most words of a text; drawn with the short ones more often, as requests are."""

QUEUE = "--queue-tokens=100000"
"""A queue that 256 clients overfill at once; by default it is six times as long."""


@dataclass
class Loop:
    """What a number of clients saw."""

    clients: int
    seconds: float
    texts: int = 0
    times: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        """Rate, percentiles in milliseconds, and statuses."""
        return {
            "clients": self.clients,
            "seconds": self.seconds,
            "texts_per_second": self.texts / self.seconds,
            **percentiles(self.times),
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
        }


class Client:
    """One connection that is kept open; opened again when the server closes it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, body: bytes) -> int:
        """Send a request and return the status of its answer; 0 if the connection broke."""
        try:
            if self.writer is None or self.writer.is_closing():
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.writer.write(b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
            self.writer.write(body)
            return await self._answer()
        except OSError:
            self.close()
            return 0
        except asyncio.IncompleteReadError:
            self.close()
            return 0

    async def _answer(self) -> int:
        assert self.reader is not None
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head.split(b" ", 2)[1])
        if b"transfer-encoding: chunked" in head:
            while size := int((await self.reader.readline()).strip(), 16):
                await self.reader.readexactly(size + 2)
            await self.reader.readline()
        else:
            await self.reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        if b"connection: close" in head:
            self.close()
        return status

    def close(self) -> None:
        """Close the connection."""
        if self.writer is not None:
            self.writer.close()
        self.writer = None


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and README.md")
    parser.add_argument("--texts", type=Path, default=Path("data/eval/retrieval/xquad_en/corpus.jsonl.gz"))
    parser.add_argument("--seconds", type=float, default=10.0, help="of each closed loop (default: 10)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--serve", nargs="*", default=[], metavar="OPTION", help="options of leaf serve, without --")
    args = parser.parse_args()
    texts = mixed(read_texts(args.texts), 4_000)
    encoder = leafembed.load(args.bundle)
    options = [QUEUE, *(f"--{option}" for option in args.serve)]
    results: dict[str, Any] = {
        "machine": machine_facts(),
        "bundle": args.bundle.resolve().name,
        "options": options,
        "offline": offline(encoder, texts),
    }
    process, port = start(args.bundle, *options)
    try:
        results["memory_mb"] = {"before": memory(process.pid, "VmRSS")}
        results |= asyncio.run(measure(port, encoder, texts, args.clients, args.seconds))
        results["memory_mb"] |= {"after": memory(process.pid, "VmRSS"), "most": memory(process.pid, "VmHWM")}
    finally:
        process.send_signal(signal.SIGTERM)
        results["exit_status"] = process.wait(60)
        assert process.stderr is not None
        process.stderr.close()
    write(args.out, results)
    say(f"written: {args.out / 'README.md'}")


def memory(pid: int, name: str) -> float:
    """A figure of a process in MB, as Linux calls it."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(f"{name}:"))


def mixed(paragraphs: list[str], n: int) -> list[str]:
    """Texts of mixed lengths, cut from paragraphs, the same at every call."""
    rng = random.Random(0)
    found = []
    for _ in range(n):
        words = rng.choice(paragraphs).split()
        length = min(rng.randint(*WORDS), rng.randint(*WORDS))
        first = rng.randrange(max(1, len(words) - length))
        found.append(" ".join(words[first : first + length]))
    return found


def rate(encoder: Any, texts: list[str]) -> float:
    """Texts a second of the encoder by itself."""
    start = time.perf_counter()
    encoder.encode(texts)
    return len(texts) / (time.perf_counter() - start)


def offline(encoder: Any, texts: list[str]) -> dict[str, Any]:
    """The encoder by itself: its rate."""
    encoder.encode(texts[:64])
    rates = [rate(encoder, texts) for _ in range(3)]
    tokens = encoder.count_tokens(texts)
    return {
        "texts_per_second": statistics.median(rates),
        "spread": [min(rates), max(rates)],
        "tokens_per_text": statistics.mean(tokens),
        "threads": encoder.threads,
    }


async def in_turn(port: int, encoder: Any, texts: list[str], seconds: float) -> dict[str, Any]:
    """One short query at a time, asked of the server and computed here in turn, so that both meet the same machine."""
    served, computed = Loop(1, seconds), Loop(1, seconds)
    client, end, rng = Client(port), time.perf_counter() + 2 * seconds, random.Random(0)
    while time.perf_counter() < end:
        text = rng.choice(texts)
        start = time.perf_counter()
        status = await client.ask(body([text]))
        middle = time.perf_counter()
        encoder.encode([text])
        computed.times.append(time.perf_counter() - middle)
        served.times.append(middle - start)
        served.statuses[status] += 1
        served.texts += status == 200
    client.close()
    served.seconds = sum(served.times)
    return {"served": served.summary(), "computed": percentiles(computed.times)}


def short(texts: list[str]) -> list[str]:
    """The shorter texts, as queries are."""
    return [text for text in texts if len(text.split()) <= 10]


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    ordered = sorted(seconds) or [0.0]
    return {f"p{p}_ms": 1000 * ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 95, 99)}


def start(bundle: Path, *options: str) -> tuple[subprocess.Popen[str], int]:
    """Start a server; its port is in the line that it says when it is ready."""
    command = [sys.executable, "-m", "leafembed", "serve", str(bundle), "--port", "0", "--quiet", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    return process, int(line.rstrip().rpartition(":")[2])


async def measure(port: int, encoder: Any, texts: list[str], clients: list[int], seconds: float) -> dict[str, Any]:
    """All that is asked of the server; the encoder is timed before and after each loop, since machines have moods."""
    bodies = [body([text]) for text in texts]
    queries = [body([text]) for text in short(texts)]
    found: dict[str, Any] = {"loops": []}
    await closed_loop(port, bodies, 8, 2.0)  # what is slow at first is not counted
    found["query_in_turn"] = await in_turn(port, encoder, short(texts), min(5.0, seconds))
    single = await closed_loop(port, queries, 1, min(5.0, seconds))
    found["query_alone"] = single.summary()
    for n in clients:
        before = rate(encoder, texts[:1_500])
        loop = await closed_loop(port, bodies, n, seconds)
        alone = (before + rate(encoder, texts[:1_500])) / 2
        share = loop.texts / loop.seconds / alone
        found["loops"].append({**loop.summary(), "encoder_texts_per_second": alone, "share": share})
        say(f"{n} clients: {loop.texts / loop.seconds:,.0f} texts/s, {share:.2f} of the encoder's")
    found["query_beside_2000_texts"] = (await beside(port, queries, body(texts[:2_000]), seconds)).summary()
    found["overload"] = await overload(port, texts, seconds)
    return found


def body(texts: list[str]) -> bytes:
    """A request."""
    return json.dumps({"model": "leaf", "input": texts}).encode()


async def closed_loop(
    port: int, bodies: list[bytes], clients: int, seconds: float, stop: asyncio.Event | None = None
) -> Loop:
    """Clients that each send the next request when the last was answered."""
    loop = Loop(clients, seconds)
    end = time.perf_counter() + seconds
    rng = random.Random(clients)

    async def one() -> None:
        client = Client(port)
        while time.perf_counter() < end and not (stop and stop.is_set()):
            request = rng.choice(bodies)
            began = time.perf_counter()
            status = await client.ask(request)
            loop.times.append(time.perf_counter() - began)
            loop.statuses[status] += 1
            loop.texts += status == 200
        client.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    loop.seconds = time.perf_counter() - began
    return loop


async def beside(port: int, queries: list[bytes], big: bytes, seconds: float) -> Loop:
    """A client with short queries while another sends 2,000 texts at a time."""
    stop = asyncio.Event()
    other = asyncio.create_task(closed_loop(port, [big], 1, 10 * seconds, stop))
    await asyncio.sleep(0.5)
    found = await closed_loop(port, queries, 1, seconds)
    stop.set()
    await other
    return found


async def overload(port: int, texts: list[str], seconds: float) -> dict[str, Any]:
    """Far more tokens at once than the queue takes; then how long until a single request works."""
    loop = await closed_loop(port, [body(texts[i : i + 200]) for i in range(0, 2_000, 200)], 256, seconds)
    began = time.perf_counter()
    client = Client(port)
    while await client.ask(body(["a short query"])) != 200:
        await asyncio.sleep(0.02)
    recovery = time.perf_counter() - began
    client.close()
    return {**loop.summary(), "recovery_s": recovery}


def write(folder: Path, results: dict[str, Any]) -> None:
    """Write results.json and README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    base = results["offline"]
    rows = [
        ["encoder without a server, mixed lengths", "-", fixed(base["texts_per_second"], 0), "1.00", *"----"],
        ["encoder without a server, one short query, in turn with the server", "-", "-", "-",
         *(fixed(results["query_in_turn"]["computed"][f"p{p}_ms"], 2) for p in (50, 95, 99)), "-"],
    ]  # fmt: skip
    named = [("one short query, in turn with the encoder", results["query_in_turn"]["served"])]
    named += [("one short query at a time", results["query_alone"])]
    named += [("mixed lengths, a text a request", loop) for loop in results["loops"]]
    named += [("short queries beside a client with 2,000 texts a request", results["query_beside_2000_texts"])]
    named += [("256 clients, 200 texts a request: more than the queue takes", results["overload"])]
    for name, loop in named:
        share = fixed(loop["share"], 2) if "share" in loop else "-"
        statuses = ", ".join(f"{n:,} of {status}" for status, n in loop["statuses"].items())
        rows.append([name, str(loop["clients"]), fixed(loop["texts_per_second"], 0), share,
                     *(fixed(loop[f"p{p}_ms"], 2) for p in (50, 95, 99)), statuses])  # fmt: skip
    heads = ["what", "clients", "texts/s", "of the encoder's rate", "p50 ms", "p95 ms", "p99 ms", "statuses"]
    machine = results["machine"]
    alone, crowded = results["query_alone"], results["query_beside_2000_texts"]
    turn, held = results["query_in_turn"], results["memory_mb"]
    lines = [
        "# The server under load",
        "",
        f"{results['bundle']}; {machine['cpu']} ({', '.join(machine['isa']) or 'no vector sets named'}), "
        f"{base['threads']} threads, {base['tokens_per_text']:.1f} tokens a text; leaf serve "
        f"{' '.join(results['options'])}. Clients run on the "
        "same cores. The rate of the encoder without a server "
        "was taken again before and after each loop for the share. The rate of 256 clients counts requests. Written by "
        "tools/load_test.py in one run.",
        "",
        table(heads, rows, words=1),
        "",
        f"* A short query over loopback takes {turn['served']['p50_ms'] - turn['computed']['p50_ms']:.2f} ms more than "
        "in the encoder (medians; aimed at: 1.5).",
        f"* Beside 2,000 texts a request its p99 is {crowded['p99_ms'] / alone['p50_ms']:.1f} times its p50 alone "
        "(aimed at: below 10).",
        f"* After the overload the first request was answered within {results['overload']['recovery_s']:.2f} s "
        f"(aimed at: 2); the server then ended with status {results['exit_status']}.",
        f"* The server held {held['before']:.0f} MB before, {held['most']:.0f} MB at most and {held['after']:.0f} MB "
        "after.",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
