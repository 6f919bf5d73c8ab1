#!/usr/bin/env bash
# Train on two machines without a scheduler. On the first: ./two_machines.sh 0 10.0.0.1; on the second:
# ./two_machines.sh 1 10.0.0.1, with the address of the first machine both times. Further words are the command of each
# rank. The current folder must be shared. PORT, RANKS (of this machine) and RESTARTS may be set in the environment.
set -u
if [ $# -lt 2 ]; then
    echo "usage: $0 NUMBER ADDRESS_OF_THE_FIRST_MACHINE [COMMAND...]" >&2
    exit 2
fi
number=$1
master=$2
shift 2
if [ $# -eq 0 ]; then
    set -- plsc train --config run.yaml --auto-resume
fi
# Machines whose /etc/hosts gives their own name a loopback address cannot meet.
case $(getent ahostsv4 "$(hostname)" | awk 'NR == 1 { print $1 }') in
127.*) echo "$0: $(hostname) has the address 127.*: correct /etc/hosts of this machine" >&2 && exit 1 ;;
esac
exec plsc launch --restarts "${RESTARTS:-3}" --master "$master:${PORT:-29500}" --nnodes 2 --rank "$number" \
    --nproc_per_node "${RANKS:-1}" "$@"
