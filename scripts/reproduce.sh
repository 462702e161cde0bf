#!/bin/sh
# The numbers under results/: collects the data, trains, evaluates the last checkpoint, keeps the small files.
#
#   sh scripts/reproduce.sh                                            everything, one run after another
#   sh scripts/reproduce.sh main antmaze-medium-navigate-v0 10         one experiment, dataset and seed
#   DATA=/data RUNS=/runs PYTHON=.venv/bin/python sh scripts/reproduce.sh main
#
# Data goes to $DATA (default: datasets/collected), runs to $RUNS (default: reproduced). What is there is not made again;
# a run that was interrupted goes on. `python scripts/make_tables.py` then rewrites the tables of the READMEs.
# Each run keeps to one process and, with OMP_NUM_THREADS=1, to one core: start as many side by side as there are cores.
#
# Experiments of former versions need the code of their time: results/before/README.md says which.
set -eu
cd "$(dirname "$0")/.."
DATA=${DATA:-datasets/collected}
RUNS=${RUNS:-reproduced}
PYTHON=${PYTHON:-python}
only_experiment=${1:-} only_dataset=${2:-} only_seed=${3:-}

collect() { # dataset, episodes, validation episodes, more flags; without these, as many as the official one has
    [ -f "$DATA/$1.npz" ] || "$PYTHON" scripts/data/collect_dataset.py --dataset "$1" ${2:+--num_episodes "$2"} \
        ${3:+--num_val_episodes "$3"} --output_dir "$DATA" --seed 1 ${4:-} ${collect_flags:-}
}

data() { # a dataset of our own expert, at least 500 trajectories
    case $1 in
    humanoidmaze-*-navigate-v0) collect "$1" 250 12 --physics ;;
    humanoidmaze-*-stitch-v0) collect "$1" 1250 60 --physics ;;
    pointmaze-*) collect "$1" ;;
    *-play-v0) collect "$1" 250 20 ;;
    *-navigate-v0) collect "$1" 500 50 ;;
    *-stitch-v0) collect "$1" 2500 100 ;;
    *-explore-v0) collect "$1" 1000 50 ;;
    esac
}

resume() { [ -f "$1/config.json" ] && echo --resume || true; }

wanted() { # experiment, dataset, seed
    [ "${only_experiment:-$1}" = "$1" ] && [ "${only_dataset:-$2}" = "$2" ] && [ "${only_seed:-$3}" = "$3" ]
}

# experiment, dataset, seed, environment steps, flags of the offline half, of the online; `main FLAGS`: the offline half of
# `main`, and so for another experiment
run() {
    folder=$RUNS/$1/$2/seed$3 result=results/$1/$2/seed$3
    wanted "$1" "$2" "$3" && [ ! -f "$result/evaluation.json" ] || return 0
    data "$2"
    case $1 in
    true-actions) (DATA=$DATA/with_actions collect_flags=--no-state_only; data "$2") ;; # the same episodes
    esac
    case $5 in
    main*|lost-*) offline=$RUNS/${5%% *}/$2/seed$3/offline flags=${5#"${5%% *}"} ;;
    *) offline=$folder/offline flags=$5 ;;
    esac
    # shellcheck disable=SC2086
    "$PYTHON" offline_trainer.py --dataset "$2" --data_dir "$DATA" --seed "$3" --num_updates 500 $flags \
        --save_dir "$offline" $(resume "$offline")
    rehearsed=
    case $1,$2 in
    main,humanoidmaze-*)
        rehearsal=$folder/rehearsal rehearsed="--actions_path $folder/rehearsal/actions.npz"
        [ -f "$rehearsal/actions.npz" ] || "$PYTHON" scripts/label_with_simulator.py --dataset "$2" --data_dir "$DATA" --seed "$3" \
            --save_dir "$rehearsal" $(resume "$rehearsal")
        ;;
    esac
    # shellcheck disable=SC2086
    "$PYTHON" online_trainer.py --dataset "$2" --data_dir "$DATA" --seed "$3" --max_steps "$4" --eval_interval 0 \
        --final_eval_episodes 1 $6 $rehearsed --offline_checkpoint "$offline/last.pth" --save_dir "$folder/online" \
        $(resume "$folder/online")
    case $1,$2 in
    lost-*,*-stitch-* | few-*,*) evaluation='--episodes_per_task 20' ;;
    *,humanoidmaze-*) evaluation='--episodes_per_task 20 --stuck_noise 1' ;; # it stirs where it would lie still
    parts-*) evaluation="--compare $folder/online/last.pth --no-compare_plan --episodes_per_task 20" ;;
    *) evaluation='--episodes_per_task 50' ;;
    esac
    # shellcheck disable=SC2086
    "$PYTHON" evaluate.py --checkpoint "$folder/online/last.pth" --seed 12345 $evaluation
    mkdir -p "$result"
    cp "$offline/train.csv" "$result/offline.csv"
    cp "$folder/online/online.csv" "$result/online.csv"
    cp "$offline/config.json" "$result/config_offline.json"
    cp "$folder/online/config.json" "$result/config_online.json"
    if [ "$rehearsed" ]; then
        cp "$rehearsal/rehearsal.csv" "$result/rehearsal.csv"
        cp "$rehearsal/config.json" "$result/config_rehearsal.json"
    fi
    cp "$folder/online/evaluation.json" "$result/evaluation.json"
}

# robot, file of weights, decisions of its teacher, flags of it, steps of each of two distillations; needs
# requirements-expert.txt and, for the humanoid, hours
make_expert() {
    weights=datasets/$2 folder=$RUNS/experts/$1
    wanted make-expert "$1" 0 && [ ! -f "$weights" ] || return 0
    # shellcheck disable=SC2086
    "$PYTHON" scripts/experts/train_expert.py --robot "$1" --num_decisions "$3" $4 --output_dir "$folder" \
        $([ ! -f "$folder/teacher.npz" ] || echo --resume)
    for resume in '' --resume; do
        "$PYTHON" scripts/experts/distil_expert.py --robot "$1" --teacher "$folder/teacher.npz" \
            --output "$folder/expert.npz" --num_steps "$5" --warm_steps "$(($5 / 5))" $resume
    done
    cp "$folder/expert.npz" "$weights"
}

expert() { # dataset, noise, episodes per task, which ant if not the one of our data: what is imitated, for each maze
    experiment=expert-noise-$2${4:+-$4}
    output=results/$experiment/$1/seed0/evaluation.json
    wanted "$experiment" "$1" 0 && [ ! -f "$output" ] || return 0
    "$PYTHON" scripts/experts/evaluate_expert.py --dataset "$1" --noise "$2" --seed 12345 --episodes_per_task "$3" \
        ${4:+--expert_path "datasets/$4_ant_expert.npz"} --output "$output"
}

# the experts; their weights are bundled, and so not made anew
make_expert humanoid humanoid_expert.npz 2700000 '--lr 1e-3 --entropy -0.8' 1000000
make_expert ant steady_ant_expert.npz 400000 '--lr 1e-3' 250000

for dataset in antmaze-medium-navigate-v0 antmaze-large-navigate-v0; do
    for noise in 0 0.2; do
        expert $dataset $noise 60
    done
    expert $dataset 0.2 60 steady
done
for dataset in humanoidmaze-medium-navigate-v0 humanoidmaze-large-navigate-v0; do
    expert $dataset 0.2 20
done

# the front page: random environment steps only
mazes='medium-navigate large-navigate medium-stitch large-stitch medium-explore large-explore'
for seed in 16 17 18; do
    for maze in $mazes; do
        run main antmaze-$maze-v0 $seed 2000 '' ''
    done
done

# success against environment steps, all of them random
for seed in 16 17 18; do
    for maze in medium-navigate large-navigate medium-stitch large-explore; do
        for steps in 200 500 1000 5000; do
            run steps-$steps antmaze-$maze-v0 $seed $steps main "--random_steps $steps"
        done
    done
done

# buttons: a quarter of the official trajectories. Half of the steps are the agent's own, since labels of random ones alone
# do not lead its hand exactly enough
own_steps='--random_steps 5000 --initial_updates 8000 --update_ratio 1
    --epsilon_start 0 --epsilon_end 0 --action_noise_start 0.1 --action_noise_end 0.1'
for seed in 10 11 12; do
    run main puzzle-3x3-play-v0 $seed 10000 '' "$own_steps"
done
run main puzzle-4x4-play-v0 10 10000 '' "$own_steps"

# cubes: three quarters of the steps are its own, and states beside the data lead back
many_own_steps='--random_steps 5000 --initial_updates 8000 --update_ratio 0.4
    --epsilon_start 0 --epsilon_end 0 --action_noise_start 0.2 --action_noise_end 0.2 --progress_temperature 1
    --corrective_fraction 0.5'
for seed in 10 11 12; do
    run main cube-single-play-v0 $seed 20000 '' "$many_own_steps"
    run main cube-double-play-v0 $seed 20000 '' "$many_own_steps"
    run main scene-play-v0 $seed 20000 '' "$many_own_steps"
done
run main cube-triple-play-v0 10 20000 '' "$many_own_steps"

# lost readings: what fills them in. Only steps with both readings teach: of each of these there are 2,000
lost() { # share, steps, maze, seed
    for encoder in mamba gru mlp; do
        run lost-$1-$encoder antmaze-$3-v0 $4 $2 \
            "--observe dropped:$1 --encoder $encoder --num_updates 2000 --lr 1e-3 --positions_per_window 8" \
            "--random_steps $2"
    done
}
for seed in 13 14 15; do
    lost 0.3 4000 medium-navigate $seed
    lost 0.4 5600 medium-navigate $seed
    lost 0.5 8000 medium-navigate $seed
    lost 0.6 12500 medium-navigate $seed
    lost 0.5 8000 medium-stitch $seed
    lost 0.6 12500 medium-stitch $seed
    run lost-0.5-hold antmaze-medium-navigate-v0 $seed 8000 lost-0.5-mamba '--random_steps 8000 --no-remember_lost'
done

# so few steps that exploring could matter: all of them random, or three fifths the agent's own, goal-biased or not; as
# many updates each
few_own='--random_steps 200 --initial_updates 2000 --update_ratio 20'
for seed in 16 17 18; do
    run few-random antmaze-large-explore-v0 $seed 500 main '--random_steps 500 --initial_updates 8000'
    run few-own antmaze-large-explore-v0 $seed 500 main "$few_own --epsilon_start 0 --epsilon_end 0"
    run few-goal-biased antmaze-large-explore-v0 $seed 500 main "$few_own"
done

# what each part of the offline half is worth, with the map and without, and the Mamba beside other encoders
for seed in 13 14 15; do
    for maze in medium-navigate medium-stitch; do
        for part in all: no-critic:critic no-infonce:infonce no-alignment:alignment no-next-state:state \
            no-reward-done:reward; do
            weight=${part#*:}
            run parts-${part%:*} antmaze-$maze-v0 $seed 2000 "--num_updates 1000 ${weight:+--${weight}_weight 0}" \
                '--initial_updates 3000'
        done
        for encoder in gru mlp; do
            run parts-$encoder antmaze-$maze-v0 $seed 2000 "--num_updates 1000 --encoder $encoder" \
                '--initial_updates 3000'
        done
    done
done

# what labels cost: the collector's own actions in their place, from files of the same episodes that keep them
for maze in medium-navigate large-navigate large-explore; do
    run true-actions antmaze-$maze-v0 16 2000 main "--true_actions --data_dir $DATA/with_actions"
done

# point mazes, on data by OGBench's own protocol (the sizes are the collector's defaults)
for seed in 10 11 12; do
    for maze in medium-navigate large-navigate giant-navigate medium-stitch large-stitch; do
        run main pointmaze-$maze-v0 $seed 2000 '' ''
    done
done

# humanoids fall at once, so their actions are told by trying them out at states of the data; and it takes a better I
humanoid='--idm_hidden_dim 512 --initial_updates 12000 --lr_decay_updates 12000 --progress_steps 25
    --progress_temperature 0 --action_scale 1.15 --direction_products --waypoint_steps 60'
for seed in 10 11 12; do
    run main humanoidmaze-medium-navigate-v0 $seed 2000 '' "$humanoid"
    run main humanoidmaze-medium-stitch-v0 $seed 2000 '' "$humanoid"
done
run main humanoidmaze-large-navigate-v0 10 2000 '' "$humanoid"
run main humanoidmaze-large-stitch-v0 10 2000 '' "$humanoid"
run true-actions humanoidmaze-medium-navigate-v0 10 2000 main "--true_actions --data_dir $DATA/with_actions $humanoid"

# the rest of OGBench: a number each
run main pointmaze-teleport-navigate-v0 10 2000 '' ''
for maze in giant-navigate teleport-navigate; do
    run main antmaze-$maze-v0 16 2000 '' ''
done
