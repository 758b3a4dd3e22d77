"""The example that asks an LLM, with an endpoint that answers as such do: well, busy, broken, or with a no."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.conftest import ONE_AIRFLOW
from tests.support import airflow_env
from tests.support.airflow_env import Airflow

pytestmark = ONE_AIRFLOW


@pytest.fixture(scope="module")
def components() -> Sequence[str]:
    return airflow_env.READING


KEY = "a-key"
TEXT = "<p>I like  this.</p> Nobody likes that. It works!"
SENTENCES = ["I like this.", "Nobody likes that.", "It works!"]


class Endpoint(ThreadingHTTPServer):
    """Speaks OpenAI's interface. Of each kind of question, the first request is answered as ``first`` says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.lock = threading.Lock()
        #: (kind of question, text) of each request.
        self.asked: list[tuple[str, str]] = []
        self.models: set[str] = set()
        #: Statuses for the first request about the whole text, by the kind of question; 0: no answer at all.
        self.first: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question, text = (message["content"] for message in request["messages"])
        kind = question.split()[0]
        with self.server.lock:
            is_first = (kind, text) not in self.server.asked
            self.server.asked.append((kind, text))
            self.server.models.add(request["model"])
        is_known = self.headers["Authorization"] == f"Bearer {KEY}" and self.path == "/v1/chat/completions"
        status = self.server.first.get(kind, 200) if is_first and text == " ".join(SENTENCES) else 200
        if not status:
            self.close_connection = True
        elif not is_known:
            self.answer(401, {"error": {"message": "who are you?"}})
        elif status != 200:
            self.answer(status, {"error": {"message": "not now"}})
        else:
            said = {
                "How": "0.5" if "like " in text else "-0.25",
                "Name": "- liking\n- work",
                "Sum": "A matter of taste.",
            }
            self.answer(200, {"choices": [{"message": {"role": "assistant", "content": said[kind]}}]})

    def answer(self, status: int, document: Any) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.serve_forever)
    thread.start()
    yield endpoint
    endpoint.shutdown()
    thread.join()
    endpoint.server_close()


@pytest.fixture
def connect(airflow: Airflow, endpoint: Endpoint) -> Iterator[Any]:
    """Make the connection that the DAG looks for, with a key."""

    def make(key: str) -> None:
        airflow.api.call(
            "POST",
            "/connections",
            {
                "connection_id": "text_llm",
                "conn_type": "http",
                "host": endpoint.url,
                "password": key,
                "extra": json.dumps({"model": "small"}),
            },
        )

    yield make
    airflow.api.call("DELETE", "/connections/text_llm")


def test_an_endpoint_that_is_busy_or_breaks_is_asked_again(airflow: Airflow, endpoint: Endpoint, connect: Any) -> None:
    connect(KEY)
    endpoint.first = {"How": 429, "Name": 0, "Sum": 503}
    run = airflow.api.trigger("llm_text_orchestration", run_id="endpoint", conf={"text": TEXT})
    assert run.wait() == "success"
    assert run.xcom("report").splitlines() == [
        "In short: A matter of taste.",
        "Sentiment: +0.50",
        "Key phrases: liking, work",
        "",
        "  1. +0.50  I like this.  [liking, work]",
        "  2. -0.25  Nobody likes that.  [liking, work]",
        "  3. -0.25  It works!  [liking, work]",
    ]
    whole = " ".join(SENTENCES)
    assert Counter(endpoint.asked) == {
        **{(kind, whole): 2 for kind in ("How", "Name", "Sum")},
        **{(kind, sentence): 1 for kind in ("How", "Name") for sentence in SENTENCES},
    }
    assert endpoint.models == {"small"}
    assert {run.instance(each)["try_number"] for each in ("sentiment", "key_phrases", "summary")} == {2}


def test_an_endpoint_that_does_not_want_us_is_not_asked_again(
    airflow: Airflow, endpoint: Endpoint, connect: Any
) -> None:
    connect("another-key")
    run = airflow.api.trigger("llm_text_orchestration", run_id="refused", conf={"text": TEXT})
    assert run.wait() == "failed"
    assert run.instance("summary")["try_number"] == 1
    assert "the endpoint says 401" in run.log("summary")
    assert max(Counter(endpoint.asked).values()) == 1
    assert run.states()["report"] == "upstream_failed"
