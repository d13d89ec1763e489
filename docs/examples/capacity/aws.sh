#!/bin/sh
# Workers as EC2 instances, by the AWS CLI; tags say whose they are.
#
#   jetfleet provider command --name ec2 --memory-mib 15000 --gpus 1 --gpu-memory-mib 23000 \
#       --price-per-hour 1.0 --max-workers 4 --join wss://fleet.example.org -- \
#       docs/examples/capacity/aws.sh ami-0123456789abcdef0 g5.xlarge
#
# Needs: python3, aws (configured; region and subnet by its own settings), and an AMI with
# jetfleet[agent] installed. The instance ends itself when the agent does.
set -eu
umask 077
[ "$#" -eq 3 ] || { echo "usage: $0 AMI TYPE start|stop|list < request.json" >&2; exit 64; }
ami=$1 type=$2 verb=$3
request=$(cat)

field() {
    printf '%s' "$request" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

# instances QUERY FILTER...: those of this provider that are there or coming
instances() {
    query=$1
    shift
    aws ec2 describe-instances --output text --query "$query" --filters \
        "Name=tag:jetfleet-fleet,Values=$(field fleet)" \
        "Name=tag:jetfleet-provider,Values=$(field provider)" \
        "Name=instance-state-name,Values=pending,running,stopping,stopped" "$@"
}

case $verb in
start)
    worker=$(field worker)
    id=$(instances 'Reservations[].Instances[].InstanceId' "Name=tag:jetfleet-worker,Values=$worker")
    if [ -z "$id" ]; then
        data=$(mktemp)
        trap 'rm -f "$data"' EXIT
        {
            echo '#!/bin/sh'
            echo '('
            field script
            echo ') >/var/log/jetfleet.log 2>&1'
            echo 'poweroff'
        } >"$data"
        # The client token makes a repeated start answer with the same instance.
        id=$(aws ec2 run-instances --image-id "$ami" --instance-type "$type" --count 1 \
            --client-token "$worker" --user-data "file://$data" \
            --instance-initiated-shutdown-behavior terminate \
            --tag-specifications "ResourceType=instance,Tags=[{Key=jetfleet-worker,Value=$worker},{Key=jetfleet-provider,Value=$(field provider)},{Key=jetfleet-fleet,Value=$(field fleet)}]" \
            --output text --query 'Instances[0].InstanceId')
    fi
    printf '{"handle": "%s"}\n' "$id"
    ;;
stop)
    worker=$(field worker)
    ids=$(instances 'Reservations[].Instances[].InstanceId' "Name=tag:jetfleet-worker,Values=$worker")
    if [ -n "$ids" ]; then
        # shellcheck disable=SC2086 # one word for each instance
        aws ec2 terminate-instances --instance-ids $ids >&2
    fi
    echo '{}'
    ;;
list)
    instances "Reservations[].Instances[].Tags[?Key=='jetfleet-worker'].Value[]" | python3 -c '
import json, sys
print(json.dumps({"workers": sys.stdin.read().split()}))'
    ;;
*)
    exit 64
    ;;
esac
