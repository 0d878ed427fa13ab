"""Spans of a real server at a collector that keeps what it is sent."""

import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from served import make_bundle, serving

from leafembed.serve.tracing import traced

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def collector():
    found = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", found
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_span_a_request_in_its_trace_without_text(tmp_path, collector):
    endpoint, found = collector
    with serving({"leaf": make_bundle(tmp_path)}) as served:
        config = served.server.config
        config.loaded_app, close = traced(config.loaded_app, endpoint)
        body = json.dumps({"model": "leaf", "input": "a very secret text"}).encode()
        headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "User-Agent": "a secret program"}
        url = f"{served.url}/api/embed?q=a%20secret%20question"
        with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as response:
            assert len(json.load(response)["embeddings"]) == 1
        assert served.ask("/health/live")[0] == 200
        close()
    ((path, sent),) = found
    (span,) = sent.resource_spans[0].scope_spans[0].spans
    assert path == "/v1/traces"
    assert span.name == "POST /api/embed"
    assert span.trace_id.hex() == TRACE
    values = {pair.key: pair.value for pair in span.attributes}
    assert values["http.status_code"].int_value == 200
    assert values["http.method"].string_value == "POST"
    assert values["http.target"].string_value == "/api/embed"
    assert values["http.url"].string_value == f"{served.url}/api/embed"
    assert not [key for key in values if "peer" in key or "client" in key or "user_agent" in key or "query" in key]
    assert "secret" not in str(sent)


def test_a_collector_that_is_not_there_costs_nothing(tmp_path):
    with serving({"leaf": make_bundle(tmp_path)}) as served:
        config = served.server.config
        config.loaded_app, close = traced(config.loaded_app, "http://127.0.0.1:9")
        assert served.ask("/api/embed", {"model": "leaf", "input": "red"})[0] == 200
        close()
        assert served.ask("/api/embed", {"model": "leaf", "input": "red"})[0] == 200
