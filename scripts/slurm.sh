#!/usr/bin/env bash
# Trains on a SLURM cluster: one task per device; saves 90 s before the time limit, requeues itself and resumes.
#   sbatch scripts/slurm.sh --config large.yaml --run.name my-run
#   sbatch --array 1-3 scripts/slurm.sh --config small.yaml --run.name seeds     # runs seeds-1, -2, -3 with these seeds
# Arguments are passed to `tinylm fit`; --run.name is required, so that the requeued job finds its run.
# Set nodes, devices and time below or as options of sbatch (`sbatch --nodes 4 scripts/slurm.sh ...`): docs/clusters.md
#SBATCH --job-name=tinylm
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@90
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
set -uo pipefail

# USR1 announces the time limit: this script receives it, at any moment, and passes it on to the tasks.
# TERM comes with scancel, requeue and preemption: the tasks receive it too, and SLURM decides what becomes of the job.
step="" time_is_up="" ended_by_slurm=""
trap 'time_is_up=1; [ -z "$step" ] || kill -USR1 "$step" 2> /dev/null' USR1
trap 'ended_by_slurm=1' TERM

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

job=$SLURM_JOB_ID seed=()
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then # each task of a job array is a run of its own
    name="$name-$SLURM_ARRAY_TASK_ID"
    job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" # the SLURM_JOB_ID of one task means the whole array
    seed=(--run.name "$name" --seed_everything "$SLURM_ARRAY_TASK_ID")
fi

resume=()
if compgen -G "$runs/$name/checkpoints/*.ckpt" > /dev/null; then
    resume=(--resume)
fi

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
code=75 # as long as nothing has started
if [ -z "$time_is_up$ended_by_slurm" ]; then
    # the tasks end together by themselves; killing the others at the first exit would hide its code
    srun --kill-on-bad-exit=0 --wait=0 --cpus-per-task="$OMP_NUM_THREADS" "${PYTHON:-python}" -m tinylm fit \
        --trainer.strategy ddp "$@" --trainer.num_nodes "$SLURM_JOB_NUM_NODES" \
        --trainer.devices "$SLURM_NTASKS_PER_NODE" "${seed[@]}" "${resume[@]}" &
    step=$!
    while kill -0 "$step" 2> /dev/null; do wait "$step"; done # a trapped signal ends `wait` early
    wait "$step"
    code=$?
fi

# 75: saved and ready to resume; 138, 143: killed by the announcement before the program could heed it
case "$code" in 75) again=1 ;; 138 | 143) again=$time_is_up ;; *) again="" ;; esac
if [ -n "$again" ] && [ -z "$ended_by_slurm" ]; then
    scontrol requeue "$job"
fi
exit "$code"
