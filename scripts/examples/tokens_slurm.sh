#!/bin/bash
# Encodes a corpus that is too large for one machine: every task of the array writes its share of one folder of shards.
#
#   tinylm tokenizer train sample.txt --vocab-size 32768 --out tok.json
#   sbatch scripts/examples/tokens_slurm.sh 'web/*.jsonl.zst' tok.json /shared/web-tokens
#
# Every task needs the fingerprints of all files. The cache remembers them: let it be one that all machines see, and
# start with a single task, --array=0 --export=ALL,TASKS=32, if the files are large.
#
# A task that failed or was preempted is submitted again as it is: sbatch --array=7 --export=ALL,TASKS=32 ... The folder
# is complete once all have run, in whatever order. Then: tinylm fit -c gpt2_small --data.corpus /shared/web-tokens

#SBATCH --job-name=tokens
#SBATCH --array=0-31
#SBATCH --cpus-per-task=8
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --requeue

set -euo pipefail
export TINYLM_CACHE="${TINYLM_CACHE:-$(dirname "$3")/tinylm-cache}"
tasks=${TASKS:-$SLURM_ARRAY_TASK_COUNT}
exec tinylm prepare tokens "$1" --tokenizer "$2" --out "$3" --shard "$SLURM_ARRAY_TASK_ID/$tasks" \
    --processes "${SLURM_CPUS_PER_TASK:-1}" "${@:4}"
