"""What every result says of its machine."""

from recserve.benchmarks.environment import environment, machine_line


def test_every_result_names_its_machine() -> None:
    found = environment(("numpy", "no-such-package"))
    assert {"cpu", "cores", "python", "numpy"} <= set(found)
    assert "no-such-package" not in found
    assert "cores" in machine_line(found)
