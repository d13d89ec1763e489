#!/bin/sh
# Workers by SkyPilot (https://docs.skypilot.co): one cluster of one node for each worker.
#
#   jetfleet provider command --name sky --memory-mib 60000 --gpus 1 --gpu-memory-mib 23000 \
#       --price-per-hour 0.6 --max-workers 4 --join wss://fleet.example.org -- \
#       docs/examples/capacity/skypilot.sh L4:1
#
# Needs: python3, sky (configured), and an image or setup that brings jetfleet[agent] to the node.
set -eu
umask 077
[ "$#" -eq 2 ] || { echo "usage: $0 ACCELERATORS start|stop|list < request.json" >&2; exit 64; }
accelerators=$1 verb=$2
request=$(cat)

field() {
    printf '%s' "$request" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

cluster() { # of this installation and provider alone
    printf 'jf-%s-%s' "$(field fleet)" "$(field worker)"
}

case $verb in
start)
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    field script >"$folder/worker.sh"
    cat >"$folder/task.yaml" <<TASK
resources:
  accelerators: $accelerators
  use_spot: true
file_mounts:
  ~/worker.sh: $folder/worker.sh
setup: pip install 'jetfleet[agent]'
run: nohup sh ~/worker.sh >~/worker.log 2>&1 </dev/null &
TASK
    # Launching a cluster that is up runs the task again; an agent of the same name waits its turn.
    sky launch --yes --cluster "$(cluster)" --idle-minutes-to-autostop 30 --down \
        "$folder/task.yaml" >&2
    printf '{"handle": "%s"}\n' "$(cluster)"
    ;;
stop)
    if sky status --no-show-managed-jobs "$(cluster)" 2>/dev/null | grep -q "$(cluster)"; then
        sky down --yes "$(cluster)" >&2
    fi
    echo '{}'
    ;;
list)
    sky status --no-show-managed-jobs --output json | python3 -c '
import json, sys
begin = f"jf-{sys.argv[1]}-"
names = [each["name"] for each in json.load(sys.stdin)]
print(json.dumps({"workers": [n[len(begin):] for n in names if n.startswith(begin + sys.argv[2])]}))
' "$(field fleet)" "$(field provider)-"
    ;;
*)
    exit 64
    ;;
esac
