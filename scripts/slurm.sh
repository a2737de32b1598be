#!/usr/bin/env bash
# Trains on a SLURM cluster: one task per device; saves 90 s before the time limit, requeues itself and resumes.
#   sbatch scripts/slurm.sh --config large.yaml --run.name my-run
# Arguments are passed to `tinylm fit`; --run.name is required, so that the requeued job finds its run.
# Set nodes, devices and time below or as options of sbatch (`sbatch --nodes 4 scripts/slurm.sh ...`): docs/clusters.md
#SBATCH --job-name=tinylm
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=SIGUSR1@90
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-.}" || exit 66

name="" runs="runs" previous=""
for word in "$@"; do
    case "$previous" in --run.name) name=$word ;; --run.dir) runs=$word ;; esac
    case "$word" in --run.name=*) name=${word#*=} ;; --run.dir=*) runs=${word#*=} ;; esac
    previous=$word
done
if [ -z "$name" ]; then
    echo "tinylm: error: --run.name: missing; give the run a name, so that the requeued job finds it" >&2
    exit 2
fi

resume=()
if compgen -G "$runs/$name/checkpoints/*.ckpt" > /dev/null; then
    resume=(--resume)
fi

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m tinylm fit "$@" --trainer.strategy ddp \
    --trainer.num_nodes "$SLURM_JOB_NUM_NODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" "${resume[@]}"
code=$?

if [ "$code" -eq 75 ]; then # saved and ready to resume
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
