#!/bin/sh
# Run a command beside an avahi-daemon that's nobody else's, in mount and process namespaces of its own, until EOF.
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/dbus /run/avahi-daemon
printf '[server]\nhost-name=foreign\nuse-ipv4=yes\nuse-ipv6=yes\n[wide-area]\nenable-wide-area=no\n' > /run/avahi.conf
dbus-daemon --system --nofork --nopidfile > /run/dbus.log 2>&1 &
until [ -S /run/dbus/system_bus_socket ]; do sleep 0.05; done
avahi-daemon --file /run/avahi.conf --no-drop-root --no-chroot --no-rlimits > /run/avahi.log 2>&1 &
until avahi-browse --all --terminate > /run/probe.log 2>&1; do sleep 0.1; done
"$@" &
# Until the end of what comes in; then the command ends, and the daemon says goodbye for it.
cat > /run/ignored
kill $!
wait $! || true
kill "$(cat /run/avahi-daemon/pid)"
sleep 0.5
