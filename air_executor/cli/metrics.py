"""The command for monitoring: metrics."""

from __future__ import annotations

import argparse
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from air_executor.cli import where
from air_executor.cli.table import EXIT_OK, JSON, Argument, Command, print_json
from air_executor.errors import AirExecutorError
from air_executor.observe import metrics


def _metrics(args: argparse.Namespace) -> int:
    runs = where.all_runs()
    if args.listen is None:
        if args.json:
            print_json(
                [{"name": each.name, "labels": each.labels, "value": each.value} for each in metrics.samples(runs)]
            )
        else:
            sys.stdout.write(metrics.text(runs))
        return EXIT_OK
    host, port = args.listen
    try:
        server = ThreadingHTTPServer((host, port), _Handler)
    except OSError as error:
        raise AirExecutorError(f"cannot listen at {host}:{port}: {error.strerror or error}") from None
    with server:
        print(f"metrics: http://{host}:{server.server_address[1]}/metrics", flush=True)
        server.serve_forever()
    return EXIT_OK


class _Handler(BaseHTTPRequestHandler):
    """Answers /metrics with the metrics of the state directory."""

    server_version = "air-executor"

    def do_GET(self) -> None:
        """Answer a request."""
        if self.path.partition("?")[0] != "/metrics":
            self._answer(404, "text/plain; charset=utf-8", "the metrics are at /metrics\n")
            return
        try:
            self._answer(200, metrics.CONTENT_TYPE, metrics.text(where.all_runs()))
        except AirExecutorError as error:
            self._answer(500, "text/plain; charset=utf-8", f"{error}\n")

    def _answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not [ADDRESS:]PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


COMMANDS: tuple[Command, ...] = (
    Command(
        "metrics",
        "print metrics of runs, launchers and jobs for Prometheus, or serve them",
        _metrics,
        (
            Argument(
                ("--listen",),
                {
                    "type": _address,
                    "metavar": "[ADDRESS:]PORT",
                    "help": "serve them at http://ADDRESS:PORT/metrics until Ctrl-C (default address: 127.0.0.1)",
                },
            ),
            JSON,
        ),
    ),
)
