import pytest

from testbed.campaigns.finish import finish
from testbed.records import RecordWriter, load_run, write_manifest

STARTED = 1000.0
OFFSET = 990.0  # the device's clock shows 10 s when the run starts


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run"
    write_manifest(folder, {"run": "r-0001", "started_unix": STARTED, "state": "running"})
    clock = {"t_s": 1.0, "device": "left", "offset_s": OFFSET, "rtt_ms": 0.1}
    RecordWriter(folder).write("clocks", "t001", [clock])
    return folder


def log(folder, seconds):
    path = folder / "boards" / "left" / "power.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{int((10 + s) * 1e9)},VDD_IN,{1000 + s}" for s in seconds]
    path.write_text("\n".join(["mono_ns,rail,mw", *lines]) + "\n")


def test_a_log_becomes_a_table_on_the_clock_of_the_run(folder, inventory):
    log(folder, [1, 2, 3])
    report = finish(folder, inventory, "completed")
    assert report.is_file()
    run = load_run(folder)
    assert run.power["t_s"].tolist() == pytest.approx([1, 2, 3])
    assert run.manifest["state"] == "completed"


def test_a_board_that_was_set_up_anew_does_not_cost_what_was_known(folder, inventory):
    log(folder, [1, 2, 3])
    finish(folder, inventory, "interrupted")
    log(folder, [50, 51])
    finish(folder, inventory, "completed")
    assert load_run(folder).power["t_s"].tolist() == pytest.approx([1, 2, 3, 50, 51])


def test_a_log_that_went_on_is_not_counted_twice(folder, inventory):
    log(folder, [1, 2, 3])
    finish(folder, inventory, "interrupted")
    log(folder, [1, 2, 3, 4])
    finish(folder, inventory, "completed")
    assert load_run(folder).power["t_s"].tolist() == pytest.approx([1, 2, 3, 4])


def test_what_another_run_of_the_same_name_left_on_the_board_is_not_taken(folder, inventory):
    log(folder, [-8, -7, 1, 2])
    finish(folder, inventory, "completed")
    assert load_run(folder).power["t_s"].tolist() == pytest.approx([1, 2])


def test_a_damaged_log_is_told_of_and_the_report_is_there(folder, inventory, capsys):
    log(folder, [1])
    (folder / "boards/left/power.csv").write_text("what is this\n")
    assert finish(folder, inventory, "completed").is_file()
    assert "power.csv" in capsys.readouterr().err
