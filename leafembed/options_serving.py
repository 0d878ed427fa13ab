"""What the commands take that hand bundles on: to a hub, or to clients over HTTP."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from leafembed.options_numbers import amount, port, positive, seconds

__all__ = ["add_hub", "add_serving"]


def add_hub(add: Callable[..., argparse.ArgumentParser]) -> None:
    """``leaf push`` and ``leaf pull``."""
    asks = "The hub is that of HF_ENDPOINT, the token that of HF_TOKEN or of hf auth login."
    push = add("push", "upload a bundle to a model repository of the Hugging Face hub",
               "It is verified first, and one that the gate refused is not uploaded. The repository is created where "
               f"there\nis none. {asks}\n\n"
               "  leaf push runs/quick/bundle me/my-student")  # fmt: skip
    push.add_argument("bundle", type=Path, help="bundle folder")
    push.add_argument("repo", help="repository, org/name")
    push.add_argument("--branch", help="branch to write to, created where there is none (default: main)")
    push.add_argument("--private", action="store_true", help="create it as a private one; refuse one that is public")
    push.add_argument("--message", help="commit message (default: the bundle's name)")
    push.add_argument("--allow-failed", action="store_true", help="upload a bundle that the gate refused")
    pull = add("pull", "download a bundle from a model repository of the Hugging Face hub",
               f"It is put in place once every hash and the verdict are verified. {asks}\n\n"
               "  leaf pull me/my-student\n"
               "  leaf pull me/my-student --revision v1 -o bundles/v1")  # fmt: skip
    pull.add_argument("repo", help="repository, org/name")
    pull.add_argument("--revision", help="branch, tag or commit (default: main)")
    pull.add_argument("-o", "--out", type=Path, help="folder to create (default: the repository's name, here)")


def add_serving(add: Callable[..., argparse.ArgumentParser]) -> None:
    """``leaf serve``."""
    serve = add("serve", "serve bundles to clients of Ollama, OpenAI and text-embeddings-inference",
                "The bundle is called leaf; --model gives other names, and any number of bundles. The prompts of a "
                "bundle have\nnames of their own: leaf-query, leaf-document. Keys: --api-key-file, or LEAF_API_KEY in "
                "the environment.\nSIGTERM ends the server when running requests are done; SIGHUP, or a new bundle at "
                "the same path, swaps it.\nA page to try it: http://HOST:PORT/ui. All of it: docs/serving.md.\n\n"
                "  leaf serve runs/quick/bundle\n"
                "  leaf serve --model leaf=runs/quick/bundle --model small=runs/quick/bundle@dim=128\n"
                "  leaf serve runs/quick/bundle --host 0.0.0.0 --api-key-file keys.txt",
                json_flag=False)  # fmt: skip
    serve.add_argument("bundle", type=Path, nargs="?",
                       help="bundle folder, served as leaf (default: the model of this project)")  # fmt: skip
    serve.add_argument("--model", action="append", default=[], metavar="NAME=PATH[@exit=N][@dim=N][@prompt=NAME]",
                       help="a bundle, its name, and what clients get that ask for neither; repeatable")  # fmt: skip
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    serve.add_argument("--port", type=port, default=11435, help="0: any that is free (default: 11435)")
    serve.add_argument("--api-key-file", type=Path, help="file with API keys, one a line")
    serve.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                       help="further host name that requests may use without a key; *: any; repeatable")  # fmt: skip
    serve.add_argument("--workers", type=positive, default=1, help="server processes on the port (default: 1)")
    serve.add_argument("--threads", type=positive, help="CPU threads of a process (default: all, divided)")
    serve.add_argument("--streams", type=positive, help="forward passes side by side (default: one a thread)")
    serve.add_argument("--batch-tokens", type=positive, default=192, help="tokens of one forward pass (default: 192)")
    serve.add_argument("--queue-tokens", type=positive, default=600_000,
                       help="tokens at work; over it requests are told to come back (default: 600000)")  # fmt: skip
    serve.add_argument("--max-body-mb", type=amount, default=8.0, help="largest request (default: 8)")
    serve.add_argument("--max-bodies-mb", type=amount, default=64.0,
                       help="all requests at once; over it they are told to come back (default: 64)")  # fmt: skip
    serve.add_argument("--max-items", type=positive, default=2_048, help="most texts of a request (default: 2048)")
    serve.add_argument("--max-requests", type=positive, default=1_024, help="requests at once (default: 1024)")
    serve.add_argument("--timeout", type=amount, default=120.0, help="seconds for an answer (default: 120)")
    serve.add_argument("--drain", type=amount, default=30.0, help="seconds to end in after SIGTERM (default: 30)")
    serve.add_argument("--watch", type=seconds, default=2.0, metavar="SECONDS",
                       help="how often to look for a new bundle; 0: never (default: 2)")  # fmt: skip
    serve.add_argument("--otlp", metavar="URL", help="collector that gets a span a request, by OTLP over HTTP")
    serve.add_argument("--quiet", action="store_true", help="no log line for each request")
    serve.add_argument("--allow-failed", action="store_true", help="serve a bundle that the gate refused")
