#!/bin/sh
# Tells Spark which GPUs a machine has: {"name": "gpu", "addresses": ["0", "1"]}. See spark-gpu.conf.
command -v nvidia-smi >/dev/null || { echo "discover.sh: nvidia-smi is not on the PATH of $(hostname)" >&2; exit 1; }
addresses=$(nvidia-smi --query-gpu=index --format=csv,noheader | sed 's/.*/"&"/' | paste -sd, -)
echo "{\"name\": \"gpu\", \"addresses\": [$addresses]}"
