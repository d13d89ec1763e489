#!/bin/sh
# A provider of workers in its smallest form: processes of this machine, known by files in FOLDER.
#
#   jetfleet provider command --memory-mib 4096 --join ws://127.0.0.1:8443 -- \
#       docs/examples/capacity/local.sh FOLDER
#
# Needs: python3, setsid, and jetfleet on the PATH.
set -eu
umask 077
[ "$#" -eq 2 ] || { echo "usage: $0 FOLDER start|stop|list < request.json" >&2; exit 64; }
folder=$1 verb=$2
request=$(cat)
mkdir -p "$folder"
cd "$folder"

field() {
    printf '%s' "$request" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

lives() { # the process of this file, and not another that got its number
    [ -f "$1" ] && pid=$(cat "$1") && [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null
}

case $verb in
start)
    worker=$(field worker)
    if ! lives "$worker.pid"; then
        field script >"$worker.sh"
        setsid sh "./$worker.sh" >"$worker.log" 2>&1 </dev/null &
        echo "$!" >"$worker.pid"
    fi
    printf '{"handle": "%s"}\n' "$(cat "$worker.pid")"
    ;;
stop)
    worker=$(field worker)
    if lives "$worker.pid"; then
        kill -TERM "$pid"
        tries=0
        while kill -0 "$pid" 2>/dev/null && [ "$tries" -lt 400 ]; do
            sleep 0.1
            tries=$((tries + 1))
        done
        kill -KILL "-$pid" 2>/dev/null || true # what is left of its group
    fi
    rm -f "$worker.pid" "$worker.sh"
    echo '{}'
    ;;
list)
    names=''
    for file in *.pid; do
        if lives "$file"; then
            names="$names${names:+, }\"${file%.pid}\""
        fi
    done
    printf '{"workers": [%s]}\n' "$names"
    ;;
*)
    echo "no such verb: $verb" >&2
    exit 64
    ;;
esac
