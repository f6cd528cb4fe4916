#!/bin/sh
# Installs the Debian packages that some tests need, starting none of their services; does nothing where all are there.
# It says first what it will install. Where it may not or cannot, it says why, and which tests will be skipped; with
# CI=true that is an error, for there nothing is skipped.
set -eu

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
POLICY=/usr/sbin/policy-rc.d

# A wheel puts a redis-server into our virtual environment, which may be active: it is not the one that is meant.
[ -z "${VIRTUAL_ENV:-}" ] || PATH=$(printf %s "$PATH" | sed "s|$VIRTUAL_ENV/bin:*||g")

# Command, package, the tests that need it: one line each.
needed() {
    cat <<'LIST'
redis-server redis-server the tests against Redis as a second kind of server, and those with TLS
haproxy haproxy the check of deploy/haproxy.cfg
promtool prometheus the tests of deploy/prometheus and of /metrics
chromium chromium the tests of the dashboard in a browser
ip iproute2 the chaos worlds with a network of their own
nft nftables the chaos worlds with a network of their own
LIST
}

missing() {
    needed | while read -r command package tests; do
        command -v "$command" >/dev/null 2>&1 || echo "$package $tests"
    done
}

install() {
    export DEBIAN_FRONTEND=noninteractive
    if [ ! -e "$POLICY" ]; then
        # Debian asks this program before it starts a service: 101 means no.
        printf '#!/bin/sh\nexit 101\n' >"$POLICY"
        chmod 755 "$POLICY"
        trap 'rm -f "$POLICY"' EXIT
        trap 'exit 1' HUP INT TERM
    fi
    apt-get update -qq >/dev/null &&
        apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

lacking=$(missing)
[ -n "$lacking" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    reason="there is no apt-get here"
elif [ "$(id -u)" != 0 ]; then
    reason="only root may install it"
else
    packages=$(echo "$lacking" | cut -d ' ' -f 1 | tr '\n' ' ')
    echo "system-packages: apt-get will install on this machine: ${packages% }"
    # shellcheck disable=SC2086  # package names hold no spaces
    install $packages || true
    reason="apt-get failed"
    lacking=$(missing)
    [ -n "$lacking" ] || exit 0
fi

echo "$lacking" | while read -r package tests; do
    echo "system-packages: $package is not installed ($reason); skipped: $tests" >&2
done
[ "${CI:-}" != true ]
