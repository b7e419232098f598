from testbed.campaigns.journal import Journal, read_journal
from testbed.hosts.steps import Command


def test_what_was_written_is_read_back_in_order(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", session=1)
    step = Command("bs", "echo 'ä'")
    journal.write(0, "stage", "begin", step)
    journal.write(0, "stage", "failed", step, "connection lost")
    journal.close()
    entries = read_journal(tmp_path / "journal.jsonl")
    assert [(e.number, e.state, e.line, e.detail) for e in entries] == [
        (0, "begin", "bs: echo 'ä'", ""),
        (0, "failed", "bs: echo 'ä'", "connection lost"),
    ]


def test_a_line_that_a_crash_cut_off_is_passed_over(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, session=1)
    journal.write(0, "stage", "begin", Command("bs", "true"))
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert len(read_journal(path)) == 1


def test_a_later_start_appends(tmp_path):
    path = tmp_path / "journal.jsonl"
    for session in (1, 2):
        journal = Journal(path, session)
        journal.write(0, "stage", "begin", Command("bs", "true"))
        journal.close()
    assert [entry.session for entry in read_journal(path)] == [1, 2]
