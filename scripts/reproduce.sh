#!/bin/sh
# Every number under results/: collects the data, trains, evaluates the last checkpoint, keeps the small files.
#
#   sh scripts/reproduce.sh                                              everything, one run after another
#   sh scripts/reproduce.sh no-plan antmaze-medium-navigate-v0 0            one experiment, dataset and seed
#   DATA=/data RUNS=/runs PYTHON=.venv/bin/python sh scripts/reproduce.sh no-plan
#
# Data goes to $DATA (default: datasets/collected), runs to $RUNS (default: reproduced). What is there is not made again;
# a run that was interrupted goes on. `python scripts/make_tables.py` then rewrites the tables of the READMEs.
# Each run keeps to one process and, with OMP_NUM_THREADS=1, to one core: start as many side by side as there are cores.
set -eu
cd "$(dirname "$0")/.."
DATA=${DATA:-datasets/collected}
RUNS=${RUNS:-reproduced}
PYTHON=${PYTHON:-python}
only_experiment=${1:-} only_dataset=${2:-} only_seed=${3:-}

collect() { # dataset, episodes, validation episodes
    [ -f "$DATA/$1.npz" ] || "$PYTHON" scripts/collect_dataset.py --dataset "$1" --num_episodes "$2" \
        --num_val_episodes "$3" --output_dir "$DATA" --seed 1
}

data() { # a dataset of our own expert, at least 500 trajectories
    case $1 in
    *-navigate-v0) collect "$1" 500 50 ;;
    *-stitch-v0) collect "$1" 2500 100 ;;
    *-explore-v0) collect "$1" 1000 50 ;;
    esac
}

resume() { [ -f "$1/config.json" ] && echo --resume || true; }

# experiment, dataset, seed, environment steps, flags of the offline half, of the online; `same FLAGS`: the offline half of
# $same
same=no-plan
# defaults of the time before the map, which all experiments but those at the end keep
offline_defaults='--sequence_windows 16'
online_defaults='--no-plan --progress_steps 0 --progress_temperature 1.5 --proposal_share 0.5'
evaluation_seed=12345 # no start, goal or noise of the training episodes
run() {
    [ -z "$only_experiment" ] || [ "$only_experiment" = "$1" ] || return 0
    [ -z "$only_dataset" ] || [ "$only_dataset" = "$2" ] || return 0
    [ -z "$only_seed" ] || [ "$only_seed" = "$3" ] || return 0
    folder=$RUNS/$1/$2/seed$3 result=results/$1/$2/seed$3
    [ ! -f "$result/evaluation.json" ] || return 0
    data "$2"
    case $5 in
    same*) offline=$RUNS/$same/$2/seed$3/offline flags=${5#same} ;;
    *) offline=$folder/offline flags=$5 ;;
    esac
    # shellcheck disable=SC2086
    "$PYTHON" offline_trainer.py --dataset "$2" --data_dir "$DATA" --seed "$3" --num_updates 3000 \
        $offline_defaults $flags \
        --save_dir "$offline" $(resume "$offline")
    # shellcheck disable=SC2086
    "$PYTHON" online_trainer.py --dataset "$2" --data_dir "$DATA" --seed "$3" --max_steps "$4" \
        $online_defaults $6 \
        --offline_checkpoint "$offline/last.pth" --save_dir "$folder/online" $(resume "$folder/online")
    "$PYTHON" evaluate.py --checkpoint "$folder/online/last.pth" --episodes_per_task 20 --seed $evaluation_seed
    mkdir -p "$result"
    cp "$offline/train.csv" "$result/offline.csv"
    cp "$folder/online/online.csv" "$result/online.csv"
    cp "$offline/config.json" "$result/config_offline.json"
    cp "$folder/online/config.json" "$result/config_online.json"
    cp "$folder/online/evaluation.json" "$result/evaluation.json"
}

for dataset in antmaze-medium-navigate-v0 antmaze-large-navigate-v0; do # what is imitated, once for each maze
    for noise in 0 0.2; do
        experiment=expert-noise-$noise output=results/expert-noise-$noise/$dataset/seed0/evaluation.json
        [ -z "$only_experiment" ] || [ "$only_experiment" = "$experiment" ] || continue
        [ -z "$only_dataset" ] || [ "$only_dataset" = "$dataset" ] || continue
        [ -f "$output" ] || "$PYTHON" scripts/evaluate_expert.py --dataset "$dataset" --noise "$noise" --seed 12345 \
            --episodes_per_task 60 --output "$output"
    done
done
# explore: its trajectories lead nowhere in particular, and its actions carry noise of standard deviation 1
explore='--num_updates 9000 --proposer_random_goals 0.5'
explore_online='--progress_steps 5 --action_noise_start 1 --action_noise_end 1 --eval_interval 10000'
for seed in 0 1 2; do
    run no-plan antmaze-medium-navigate-v0 $seed 100000 '' '--eval_interval 5000'
    run no-plan antmaze-medium-stitch-v0 $seed 50000 '' '--eval_interval 10000'
    run no-plan antmaze-large-navigate-v0 $seed 50000 '' '--eval_interval 10000'
    run no-plan antmaze-medium-explore-v0 $seed 50000 "$explore" "$explore_online"
    run trajectories-100 antmaze-medium-navigate-v0 $seed 50000 '--max_trajectories 100' '--eval_interval 10000'
done

ablate() { # name, flags of the offline half or `same`, flags of the online half: beside no-plan on the same data
    run "$1" antmaze-medium-stitch-v0 0 50000 "$2" "--eval_interval 0 $3"
}
ablate no-infonce '--infonce_weight 0' ''
ablate no-alignment '--alignment_weight 0' ''
ablate no-next-state '--state_weight 0' ''
ablate no-reward-done '--reward_weight 0' ''
ablate no-slow-goals '--no-slow_goals' ''
ablate expectile-0.7 '--expectile 0.7' ''
ablate k-10 '--transition_steps 10' ''
ablate k-50 '--transition_steps 50' ''
ablate discount-0.99 '--discount 0.99' ''
ablate history '--head_memory history' ''
ablate no-goal-bias same '--epsilon_start 0 --epsilon_end 0'
ablate no-action-noise same '--action_noise_start 0 --action_noise_end 0'
ablate no-proposals same '--proposal_share 0'
ablate no-dropout same '--labeler_dropout 0'
ablate values-online same '--value_interval 4'
ablate own-transitions same '--online_share 0.25'
# what explore's own flags give
run explore-default-flags antmaze-medium-explore-v0 0 50000 '' '--eval_interval 10000'
run explore-no-progress antmaze-medium-explore-v0 0 50000 "same $explore" \
    '--action_noise_start 1 --action_noise_end 1 --eval_interval 10000'
run explore-quiet antmaze-medium-explore-v0 0 50000 "same $explore" '--progress_steps 5 --eval_interval 10000'
run no-plan antmaze-large-stitch-v0 0 50000 '' '--eval_interval 10000'
run no-plan antmaze-large-explore-v0 0 50000 "$explore" "$explore_online"

# with the plan, after random steps only; in development
offline_defaults='--sequence_windows 0' online_defaults='' evaluation_seed=1000
few='--initial_updates 5000 --eval_interval 0 --final_eval_episodes 1'
progress='--progress_steps 5 --proposal_share 0'
run plan-10k antmaze-large-explore-v0 0 10000 '' "$few $progress --progress_temperature 3" # what the data decide
run plan-10k antmaze-medium-stitch-v0 0 10000 '' "$few"
run plan-10k antmaze-large-navigate-v0 0 10000 '' "$few"
same=plan-10k
for dataset in antmaze-large-explore-v0 antmaze-medium-stitch-v0 antmaze-large-navigate-v0; do
    run plan-10k-progress-1.5 $dataset 0 10000 same "$few $progress --progress_temperature 1.5"
    [ $dataset = antmaze-large-explore-v0 ] || run plan-10k-progress $dataset 0 10000 same "$few $progress"
done

# the same with a fresh online seed, the flags that the data decide, and the same agent without its plan beside it
dataset=antmaze-large-explore-v0 result=results/plan-10k-fresh/antmaze-large-explore-v0/seed10
offline=$RUNS/plan-10k/$dataset/seed0/offline online=$RUNS/plan-10k-fresh/$dataset/seed10/online
if [ "${only_experiment:-plan-10k-fresh}" = plan-10k-fresh ] && [ ! -f "$result/evaluation.json" ]; then
    # shellcheck disable=SC2086
    "$PYTHON" online_trainer.py --dataset "$dataset" --data_dir "$DATA" --seed 10 --max_steps 10000 $few \
        --offline_checkpoint "$offline/last.pth" --save_dir "$online" $(resume "$online")
    "$PYTHON" evaluate.py --checkpoint "$online/last.pth" --compare "$online/last.pth" --no-compare_plan \
        --episodes_per_task 20 --seed 12345
    mkdir -p "$result"
    cp "$offline/train.csv" "$result/offline.csv"
    cp "$online/online.csv" "$result/online.csv"
    cp "$offline/config.json" "$result/config_offline.json"
    cp "$online/config.json" "$result/config_online.json"
    cp "$online/evaluation.json" "$result/evaluation.json"
fi
