#!/bin/sh
# What the others need before they start, once: certificates and passwords, each in the volume of
# those who use it. Run again it keeps what is there, and makes certificates anew that are about to
# end or are for other names.
set -eu
umask 077

certificates() {
    out=$1
    shift
    kvtier certificates make /setup/authority --out="/setup/$out" "$@"
}

# random BYTES FILE: written beside and renamed, so that it is there whole or not at all.
random() {
    if [ ! -s "$2" ]; then
        head -c "$1" /dev/urandom | od -An -v -tx1 | tr -d ' \n' > "$2.new"
        mv "$2.new" "$2"
    fi
}

certificates gateway "--server=server=$KVTIER_GATEWAY_HOSTS" --client=client=kvtier://gateway
certificates worker --server=server=worker-1,worker-2 --client=client=kvtier://engine
certificates cache --server=server=cache-1,cache-2 --client=client=kvtier://cache
certificates billing --server=server=billing

# Workers name blocks under it: with the same one they hit each other's.
random 32 /setup/worker/scope_secret

# Cache services seal under it what they give to the pool they share, whose engine asks nobody who he is.
if [ ! -s /setup/cache/pool_key ]; then
    head -c 32 /dev/urandom > /setup/cache/pool_key.new
    mv /setup/cache/pool_key.new /setup/cache/pool_key
fi

# Their servers run as users of their own, so the file is for all who have the volume.
random 24 /setup/postgres/password
random 24 /setup/grafana/password
chmod 0444 /setup/postgres/password /setup/grafana/password

printf 'postgres:5432:kvtier:kvtier:%s\n' "$(cat /setup/postgres/password)" > /setup/billing/pgpass.new
mv /setup/billing/pgpass.new /setup/billing/pgpass
