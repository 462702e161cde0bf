"""Flags that cannot work are an error of one line, before data are loaded or files are written."""

import label_with_simulator
import pytest

import evaluate
import offline_trainer
import online_trainer
from support.flags import run_main

OFFLINE = [
    ('--dataset antmaze-medium-navigat-v0',
     ['antmaze-medium-navigat-v0', 'nearest: antmaze-medium-navigate-v0']),
    ('--dataset humanoidmaze-medium-explore', ['nearest', 'humanoidmaze-medium-navigate-v0']),
    ('--dataset visual-cube-single-play-v0', ['visual-cube-single-play-v0', 'images']),
    ('--dataset scene-play-singletask-task2-v0', ['rewards', 'without "singletask"']),
    ('--env robot:make', ['--env robot:make', '--dataset_path FILE.npz', '`observations`']),
    ('--env robot', ['--env robot', 'module:factory']),
    ('--headdim 48', ['--headdim 48', '256']),
    ('--d_model 20 --expand 1 --headdim 32', ['--headdim 32', '20']),
    ('--context_length -5', ['--context_length -5', 'at least 0']),
    ('--batch_size -1', ['--batch_size -1', 'at least 1']),
    ('--d_state 0', ['--d_state 0', 'at least 1']),
    ('--num_updates -3', ['--num_updates -3', 'at least 1']),
    ('--max_trajectories -1', ['--max_trajectories -1', 'at least 0']),
    ('--lr 0', ['--lr 0.0', 'above 0']),
    ('--lr nan', ['--lr nan']),
    ('--lr inf', ['--lr inf']),
    ('--grad_clip -1', ['--grad_clip -1.0', 'above 0']),
    ('--discount 1', ['--discount 1.0', 'below 1']),
    ('--expectile 1.5', ['--expectile 1.5', 'below 1']),
    ('--target_rate 2', ['--target_rate 2.0', 'at most 1']),
    ('--random_goals -0.1', ['--random_goals -0.1', 'at least 0']),
    ('--current_goals 0.6 --random_goals 0.6', ['--current_goals 0.6', '--random_goals 0.6', 'together']),
    ('--infonce_weight -1', ['--infonce_weight -1.0', 'at least 0']),
    ('--seed -1', ['--seed -1', 'at least 0']),
    ('--device tpu', ['--device tpu', '--device cpu']),
]
ONLINE = [
    ('--dataset antmaze-tiny-navigate-v0', ['antmaze-tiny-navigate-v0', 'nearest: antmaze-']),
    ('--epsilon_end 0.5', ['--epsilon_end 0.5', '--epsilon_start 0.3']),
    ('--action_noise_end 0.3', ['--action_noise_end 0.3', '--action_noise_start 0.2']),
    ('--epsilon_start 1.5', ['--epsilon_start 1.5', 'at most 1']),
    ('--num_envs 0', ['--num_envs 0', 'at least 1']),
    ('--max_steps 5', ['--max_steps 5', '--num_envs 8']),
    ('--random_steps -8', ['--random_steps -8', 'at least 0']),
    ('--update_ratio -1', ['--update_ratio -1.0', 'at least 0']),
    ('--corrective_fraction 0.5 --true_actions', ['--corrective_fraction', '--true_actions']),
    ('--corrective_fraction 0.5 --actions_path a.npz', ['--corrective_fraction', '--actions_path']),
    ('--actions_path a.npz --true_actions', ['--actions_path', '--true_actions']),
    ('--corrective_fraction 2', ['--corrective_fraction 2.0', 'at most 1']),
    ('--eval_episodes -1', ['--eval_episodes -1', 'at least 0']),
    ('--eval_interval -1', ['--eval_interval -1', 'at least 0']),
]
LABEL = [
    ('--dataset antmaze-tiny-navigate-v0', ['antmaze-tiny-navigate-v0', 'nearest: antmaze-']),
    ('--stages 0', ['--stages 0', 'at least 1']),
    ('--max_steps -1', ['--max_steps -1', 'at least 0']),
]
EVALUATE = [
    ('--checkpoint x.pth --episodes_per_task 0', ['--episodes_per_task 0', 'at least 1']),
    ('--checkpoint x.pth --num_envs -2', ['--num_envs -2', 'at least 1']),
    ('--checkpoint x.pth --action_scale 0', ['--action_scale 0', 'above 0']),
    ('--checkpoint x.pth --stuck_noise -1', ['--stuck_noise -1', 'at least 0']),
]
SCRIPTS = {offline_trainer: OFFLINE, online_trainer: ONLINE, label_with_simulator: LABEL, evaluate: EVALUATE}
CASES = [(script, *case) for script, cases in SCRIPTS.items() for case in cases]


@pytest.mark.parametrize('script, flags, words', CASES, ids=[flags for _, flags, _ in CASES])
def test_bad_flags_fail_before_anything_is_loaded(script, flags, words, tmp_path, monkeypatch, capsys):
    for name in ('load_dataset', 'load_checkpoint', 'open_envs', 'open_run'):
        def fail(*_, name=name, **__):
            pytest.fail(f'{name} was called')

        monkeypatch.setattr(script, name, fail, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run_main(lambda: script.main(flags.split()))
    stderr = capsys.readouterr().err
    assert end.value.code == 2 and stderr.startswith('error: ') and stderr.count('\n') == 1
    for word in words:
        assert word in stderr
    assert list(tmp_path.iterdir()) == []
