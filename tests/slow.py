"""Slow tests: those over 0.3 s, which the quick run leaves out unless they are essential.

    pytest -n 2 --durations=0 --durations-min=0.3 | tee log.txt && python -m tests.slow log.txt

rewrites `tests/slow.txt` from the durations of a full run on an idle machine. Tests that train for
long are marked `slow` in their files.
"""

import pathlib
import re
import sys

LIST = pathlib.Path(__file__).with_name("slow.txt")
LIMIT = 0.3
# Tests that stay in the quick run: a run from start to end, resumed, killed, and its errors; the
# soundness of the tracing, and the oracle of every rule.
ESSENTIAL = (
    "README.md",
    "tests/test_cli.py::test_train_prints",
    "tests/test_cli.py::test_evaluate_prints",
    "tests/test_cli.py::test_importing_tensorflow",
    "tests/test_cli.py::test_a_broken_run",
    "tests/test_cli.py::test_a_folder_with_a_run",
    "tests/trainers/test_runs.py::test_a_run_stopped_by_a_signal_resumes",
    "tests/trainers/test_runs.py::test_a_run_killed_and_stopped_at_random_steps",
    "tests/trainers/test_runs.py::test_the_last_good_checkpoint_survives_a_nan",
    "tests/trainers/test_runs.py::test_every_trainer_learns_digits_and_leaves_a_complete_run",
    "tests/trainers/test_runs.py::test_resuming_a_finished_run",
    "tests/trainers/test_configs.py::test_one_config_of_each_kind_runs_one_step",
    "tests/trainers/test_pipelines.py::test_a_pipeline_is_a_folder_of_runs",
    "tests/trainers/test_pipelines.py::test_a_constant_reward_is_reported",
    "tests/checkpoints/test_faults.py::test_kill_while_saving",
    "tests/reports/test_report.py::test_run_becomes_a_self_contained_page",
    "tests/grlu/test_soundness.py",
    "tests/grlu/test_node_perturbation.py::test_credit_equals_brute_force",
    "tests/grlu/test_node_perturbation.py::test_one_step_equals_the_published_algorithm",
    "tests/grlu/test_evolution_strategy.py::test_estimate_equals_the_materialised_twin",
    "tests/grlu/test_learned_feedback.py::test_wrong_feedback_leaves_the_mean",
    "tests/grlu/test_neighbours.py::test_feedback_alignment_equals_its_oracle",
    "tests/grlu/test_neighbours.py::test_rules_approach_the_gradient",
)


def slow_tests() -> frozenset[str]:
    """Return the node ids of the listed tests."""
    return frozenset(LIST.read_text().splitlines())


def main(log: str) -> None:
    """Rewrite the list from the output of pytest."""
    found = re.findall(r"^ *(\d+\.\d+)s call +(\S.*)$", pathlib.Path(log).read_text(), re.M)
    slow = {name.strip() for seconds, name in found if float(seconds) > LIMIT}
    LIST.write_text("".join(f"{n}\n" for n in sorted(slow) if not n.startswith(ESSENTIAL)))


if __name__ == "__main__":
    main(sys.argv[1])
