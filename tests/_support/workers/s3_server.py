"""moto's S3 server on loopback, with failures on demand. Prints its port, and runs until its standard input ends.

POST /plsc-faults with {"kind": "busy" | "reset" | "stall", "count": k, "methods": [...], "match": ...} makes the next k
requests of these methods whose path has `match` in it fail: answered with 503, reset, or left without an answer for a
minute. With {} it changes nothing. The reply is the number of requests that have failed so.
"""

import json
import os
import socket
import struct
import sys
import threading
import time

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Faults:
    def __init__(self, app):
        self.app, self.lock = app, threading.Lock()
        self.fault, self.failed = {"count": 0}, 0

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/plsc-faults":
            fault = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            with self.lock:
                if fault:
                    self.failed, self.fault = 0, fault
                failed = self.failed
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(failed).encode()]
        with self.lock:
            fault = self.fault
            hits = fault["count"] > 0 and fault["match"] in path and environ["REQUEST_METHOD"] in fault["methods"]
            if hits:
                fault["count"] -= 1
                self.failed += 1
        return self.fail(fault["kind"], environ, start_response) if hits else self.app(environ, start_response)

    def fail(self, kind, environ, start_response):
        if kind == "busy":
            start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Connection", "close")])
            return [BUSY]
        if kind == "stall":
            time.sleep(60)
        connection = environ["werkzeug.socket"]
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
        os.dup2(os.open(os.devnull, os.O_RDWR), connection.fileno())  # closes it, with a reset
        raise ConnectionError("reset on purpose")


class Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, Faults(app), threaded=True, request_handler=Quiet)
print(server.port, flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
os._exit(0)
