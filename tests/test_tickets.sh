#!/bin/sh
# test_tickets.sh: the built-in model on all of its held-back tickets, on tickets in phrases that no
# training text held, and on policy questions. run_demo judges, by the limits in tools/run_demo.c.
set -eu
cd "$(dirname "$0")/.."
for task in dispatch unseen policy; do
    "${BUILD:-build}/run_demo" examples/models/tiny-gov --all "$task"
done
