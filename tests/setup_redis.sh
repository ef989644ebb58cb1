#!/bin/sh
# The Redis tests need a redis-server. In an empty Debian container: install one. Anywhere else: say what is missing.
set -eu
if command -v redis-server >/dev/null || command -v valkey-server >/dev/null; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends redis-server >/dev/null
    exit 0
fi
echo "redis-server is missing: install it to run the Redis tests" >&2
exit 1
