"""A mail server that keeps what it is sent."""

from __future__ import annotations

import email
import email.policy
import socketserver
import threading
from dataclasses import dataclass
from email.message import EmailMessage


class _Session(socketserver.StreamRequestHandler):
    """Speaks as much SMTP as a client needs to get rid of a mail."""

    server: MailServer

    def handle(self) -> None:
        self.wfile.write(b"220 test\r\n")
        while line := self.rfile.readline():
            command = line[:4].upper()
            if command == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            if command != b"DATA":
                self.wfile.write(b"250 ok\r\n")
                continue
            self.wfile.write(b"354 go ahead\r\n")
            lines = iter(self.rfile.readline, b".\r\n")
            message = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
            assert isinstance(message, EmailMessage)
            body = message.get_body(("html", "plain"))
            self.server.mails.append(Mail(str(message["Subject"]), body.get_content() if body else ""))
            self.wfile.write(b"250 ok\r\n")


@dataclass(frozen=True)
class Mail:
    subject: str
    text: str


class MailServer(socketserver.ThreadingTCPServer):
    """Listens on a free port of this machine until its context ends."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.mails: list[Mail] = []
        self.port = int(self.server_address[1])

    def __enter__(self) -> MailServer:
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def options(self) -> dict[str, str]:
        """Return the options by which Airflow sends its mails here: of 3.1, and of later ones."""
        return {
            "AIRFLOW__SMTP__SMTP_HOST": "127.0.0.1",
            "AIRFLOW__SMTP__SMTP_PORT": str(self.port),
            "AIRFLOW__SMTP__SMTP_STARTTLS": "False",
            "AIRFLOW__SMTP__SMTP_SSL": "False",
            "AIRFLOW_CONN_SMTP_DEFAULT": f"smtp://127.0.0.1:{self.port}/?disable_ssl=true&disable_tls=true",
        }
