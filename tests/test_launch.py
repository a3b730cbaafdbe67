"""torchx components."""

from launch import components


def test_train_runs_torchrun_with_the_command_of_a_person() -> None:
    """Every argument arrives, on as many nodes and ranks as asked for."""
    app = components.train("train.seed=7", config="a.toml", run_dir="runs/a", j="2x4", num_threads=3)
    (role,) = app.roles
    assert role.num_replicas == 2
    assert role.env["OMP_NUM_THREADS"] == "3"
    command = " ".join(role.args)
    assert "--nproc_per_node 4" in command
    assert "-m infnet_rec.cli train a.toml --run-dir=runs/a --set=train.seed=7" in command
