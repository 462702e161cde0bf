#!/bin/sh
# Makes the rows of results/runs.csv: collects the data, trains, evaluates the last checkpoint, adds the row.
#
#   sh scripts/reproduce.sh                                            everything, one run after another
#   sh scripts/reproduce.sh main antmaze-medium-navigate-v0 10         one experiment, dataset and seed
#   DATA=/data RUNS=/runs PYTHON=.venv/bin/python sh scripts/reproduce.sh main
#
# Data go to $DATA (default: datasets/collected), runs to $RUNS (default: reproduced). A run that has a row in $CSV
# (default: results/runs.csv) is skipped, so another $CSV makes it again; an interrupted run is resumed.
# `coordinates`, `small` and `robots` make results/any_robot.csv. The last needs packages of its own (requirements-robots.txt):
#   PYTHON=.venv-robots/bin/python sh scripts/reproduce.sh robots
# `python scripts/make_tables.py` then rewrites the tables of the READMEs.
# Each run uses one process and, with OMP_NUM_THREADS=1, one core: start as many side by side as there are cores.
set -eu
cd "$(dirname "$0")/.."
DATA=${DATA:-datasets/collected}
RUNS=${RUNS:-reproduced}
CSV=${CSV:-results/runs.csv}
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

has_row() { # experiment, dataset, seed
    [ -f "$CSV" ] && cut -d , -f 1-3 "$CSV" | grep -qxF "$1,$2,$3"
}

add_row() { # experiment, folders of the run
    "$PYTHON" scripts/add_result.py --csv "$CSV" "$@"
}

# experiment, dataset, seed, environment steps, flags of the offline half, of the online; `main FLAGS`: the offline half of
# `main`, and so for another experiment
run() {
    folder=$RUNS/$1/$2/seed$3
    wanted "$1" "$2" "$3" && ! has_row "$1" "$2" "$3" || return 0
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
    simulator= labels=
    case $1,$2 in
    main,humanoidmaze-*)
        simulator=$folder/simulator_labels labels="--actions_path $folder/simulator_labels/actions.npz"
        [ -f "$simulator/actions.npz" ] || "$PYTHON" scripts/label_with_simulator.py --dataset "$2" \
            --data_dir "$DATA" --seed "$3" --save_dir "$simulator" $(resume "$simulator")
        ;;
    esac
    # shellcheck disable=SC2086
    "$PYTHON" online_trainer.py --dataset "$2" --data_dir "$DATA" --seed "$3" --max_steps "$4" --eval_interval 0 \
        --final_eval_episodes 1 $6 $labels --offline_checkpoint "$offline/last.pth" --save_dir "$folder/online" \
        $(resume "$folder/online")
    case $1,$2 in
    lost-*,*-stitch-* | few-*,*) evaluation='--episodes_per_task 20' ;;
    *,humanoidmaze-*) evaluation='--episodes_per_task 20 --stuck_noise 1' ;; # it gets up when it is stuck
    parts-*) evaluation="--compare $folder/online/last.pth --compare_set plan=False --episodes_per_task 20" ;;
    *) evaluation='--episodes_per_task 50' ;;
    esac
    # shellcheck disable=SC2086
    "$PYTHON" evaluate.py --checkpoint "$folder/online/last.pth" --seed 12345 $evaluation
    # shellcheck disable=SC2086
    add_row "$1" "$offline" $simulator "$folder/online"
}

# robot, file of weights, decisions of its teacher, flags of it, steps of each of two distillations; needs
# requirements-expert.txt and, for the humanoid, hours
make_expert() {
    weights=datasets/$2 folder=$RUNS/experts/$1
    wanted make-expert "$1" 0 && [ ! -f "$weights" ] || return 0
    # shellcheck disable=SC2086
    "$PYTHON" scripts/experts/train_expert.py --robot "$1" --num_decisions "$3" $4 --output_dir "$folder" \
        $([ ! -f "$folder/teacher.npz" ] || echo --resume)
    for resume in "$([ ! -f "$folder/student.pth" ] || echo --resume)" --resume; do
        "$PYTHON" scripts/experts/distil_expert.py --robot "$1" --teacher "$folder/teacher.npz" \
            --output "$folder/expert.npz" --num_steps "$5" --warm_steps "$(($5 / 5))" $resume
    done
    cp "$folder/expert.npz" "$weights"
}

expert() { # dataset, noise, episodes per task, which ant if not the one of our data
    experiment=expert-noise-$2${4:+-$4}
    folder=$RUNS/$experiment/$1/seed0
    wanted "$experiment" "$1" 0 && ! has_row "$experiment" "$1" 0 || return 0
    "$PYTHON" scripts/experts/evaluate_expert.py --dataset "$1" --noise "$2" --seed 12345 --episodes_per_task "$3" \
        ${4:+--expert_path "datasets/$4_ant_expert.npz"} --output "$folder/evaluation.json"
    add_row "$experiment" "$folder"
}

# other coordinates and other robots: results/any_robot.csv, whose figure make_tables.py draws
any_robot() { "$PYTHON" scripts/benchmarks/any_robot.py --group "$1" --data_dir "$DATA" --folder "$RUNS/any_robot"; }
case $only_experiment in
robots | small | coordinates) any_robot "$only_experiment"; exit ;;
'') any_robot coordinates; any_robot small ;;
esac

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

# the front page: mazes
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

# buttons: a quarter of the official trajectories. The agent itself collects half of the steps, since labels of random
# steps alone do not place its hand exactly enough
for seed in 10 11 12; do
    run main puzzle-3x3-play-v0 $seed 10000 '' @configs/puzzle.args
done
run main puzzle-4x4-play-v0 10 10000 '' @configs/puzzle.args

# cubes: the agent itself collects three quarters of the steps, and half of a batch are corrective transitions
for seed in 10 11 12; do
    run main cube-single-play-v0 $seed 20000 '' @configs/cube.args
    run main cube-double-play-v0 $seed 20000 '' @configs/cube.args
    run main scene-play-v0 $seed 20000 '' @configs/cube.args
done
run main cube-triple-play-v0 10 20000 '' @configs/cube.args

# dropped readings: the encoder that replaces them. Only steps with both readings train the labeler: 2,000 of each
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
    run lost-0.5-hold antmaze-medium-navigate-v0 $seed 8000 lost-0.5-mamba '--random_steps 8000 --estimator last_observation'
done

# exploration with few steps: all random, or three fifths by the agent, goal-biased or not; equal numbers of updates
few_own='--random_steps 200 --initial_updates 2000 --update_ratio 20'
for seed in 16 17 18; do
    run few-random antmaze-large-explore-v0 $seed 500 main '--random_steps 500 --initial_updates 8000'
    run few-own antmaze-large-explore-v0 $seed 500 main "$few_own --epsilon_start 0 --epsilon_end 0"
    run few-goal-biased antmaze-large-explore-v0 $seed 500 main "$few_own"
done

# the offline half without each of its parts, and with other encoders; evaluated with the map and without
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

# the cost of inferred labels: true actions instead, from files of the same episodes that keep them
for maze in medium-navigate large-navigate large-explore; do
    run true-actions antmaze-$maze-v0 16 2000 main "--true_actions --data_dir $DATA/with_actions"
done

# point mazes, on data by OGBench's own protocol (the sizes are the collector's defaults)
for seed in 10 11 12; do
    for maze in medium-navigate large-navigate giant-navigate medium-stitch large-stitch; do
        run main pointmaze-$maze-v0 $seed 2000 '' ''
    done
done

# humanoids fall at once, so a simulator at states of the data infers their actions; their policy is larger
for seed in 10 11 12; do
    run main humanoidmaze-medium-navigate-v0 $seed 2000 '' @configs/humanoid.args
    run main humanoidmaze-medium-stitch-v0 $seed 2000 '' @configs/humanoid.args
done
run main humanoidmaze-large-navigate-v0 10 2000 '' @configs/humanoid.args
run main humanoidmaze-large-stitch-v0 10 2000 '' @configs/humanoid.args
run true-actions humanoidmaze-medium-navigate-v0 10 2000 main "--true_actions --data_dir $DATA/with_actions @configs/humanoid.args"

# the rest of OGBench: one seed each
run main pointmaze-teleport-navigate-v0 10 2000 '' ''
for maze in giant-navigate teleport-navigate; do
    run main antmaze-$maze-v0 16 2000 '' ''
done
