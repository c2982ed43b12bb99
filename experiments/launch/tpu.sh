#!/bin/bash
# One run on all hosts of a Cloud TPU slice: experiments/launch/tpu.sh NAME ZONE mnist/edm gs-or-nfs-folder
# JAX finds the hosts of a slice by itself. The work directory is a folder that all hosts have mounted (Filestore, or a bucket by
# gcsfuse). The same command goes on with a run that was stopped.
set -euo pipefail

name=${1:?expected the name of the TPU}
zone=${2:?expected its zone}
config=${3:?expected the name of a config}
workdir=${4:?expected a folder that all hosts have mounted}
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all \
  --command "scorelab run '$config' --workdir '$workdir' --resume --distributed"
