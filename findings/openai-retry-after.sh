#!/usr/bin/env bash
# openai 3.57.0: the client obeys `Retry-After` up to 120 seconds; above that it does not retry at all, although
# `max_retries` says otherwise. 0 falls back to the client's own pause instead of an immediate retry.
source "$(dirname "$0")/common.sh"
install openai==3.57.0
program <<'PYTHON'
import http.server
import threading
import time

import openai


class Busy(http.server.BaseHTTPRequestHandler):
    retry_after = ""
    requests = 0

    def do_POST(self):
        type(self).requests += 1
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(429)
        self.send_header("retry-after", self.retry_after)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", max_retries=1)
pauses = []
time.sleep = pauses.append  # nobody has two minutes
for Busy.retry_after in ("60", "120", "121", "0"):
    Busy.requests = 0
    pauses.clear()
    try:
        client.completions.create(model="any", prompt="any")
    except openai.RateLimitError:
        waited = ["own pause" if pause < 2 else round(pause) for pause in pauses]
        print(f"Retry-After: {Busy.retry_after}: {Busy.requests} requests, waited {waited}")
PYTHON
expect <<'OUTPUT'
Retry-After: 60: 2 requests, waited [60]
Retry-After: 120: 2 requests, waited [120]
Retry-After: 121: 1 requests, waited []
Retry-After: 0: 2 requests, waited ['own pause']
OUTPUT
