#!/bin/sh
# A pid file that a killed container has left names a process of that container.
rm -f "$PGDATA/postmaster.pid"
exec "$@" -c listen_addresses='*' -c unix_socket_directories=/run/postgresql
