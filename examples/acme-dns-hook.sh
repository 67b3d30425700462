#!/bin/sh
# Sets and removes the TXT records of dns-01: acme-dns-hook.sh present|cleanup NAME VALUE. It ends with 0 when it is done;
# what it prints is shown when it does not. Replace the two curl calls by those of your DNS provider.
set -eu
action=$1 name=$2 value=$3
api=${DNS_API:?set DNS_API to the address of your DNS provider}
case $action in
present) curl -fsS -X POST "$api/txt" -d "name=$name" --data-urlencode "value=$value" ;;
cleanup) curl -fsS -X DELETE "$api/txt?name=$name&value=$value" ;;
*) echo "unknown action $action" >&2 && exit 2 ;;
esac
