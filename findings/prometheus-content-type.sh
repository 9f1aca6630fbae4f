#!/usr/bin/env bash
# prometheus-client 0.26.0: `CONTENT_TYPE_LATEST` announces text format 1.0.0, while a scraper without wishes is served
# 0.0.4. In OpenMetrics, a metric with a colon has its samples renamed but not its HELP and TYPE lines.
source "$(dirname "$0")/common.sh"
install prometheus-client==0.26.0
program <<'PYTHON'
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.exposition import generate_latest

print("constant:", CONTENT_TYPE_LATEST)
print("served:  ", choose_encoder("*/*")[1])
registry = CollectorRegistry()
Gauge("queue:length", "Jobs.", registry=registry).set(1)
print(generate_latest(registry).decode(), end="")
PYTHON
expect <<'OUTPUT'
constant: text/plain; version=1.0.0; charset=utf-8
served:   text/plain; version=0.0.4; charset=utf-8
# HELP queue:length Jobs.
# TYPE queue:length gauge
queue_length 1.0
# EOF
OUTPUT
