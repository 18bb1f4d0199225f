"""`asap compare`: reports side by side."""

import json

import pytest

from asap_adapters.cli import main


def record(law: str, outcome: str) -> dict[str, object]:
    return {
        "id": law, "outcome": outcome, "severity": "must", "clause": "docs/wire.md", "title": "A law.", "expected": "x",
        "remark": "", "seconds": 0.1, "exchanges": [{"sent": "GET / HTTP/1.1", "received": "HTTP/1.1 200 OK"}],
    }  # fmt: skip


@pytest.fixture
def files(tmp_path) -> list[str]:
    ours = [record("http.host", "passed"), record("replay.nonce", "passed")]
    theirs = [record("http.host", "passed"), record("replay.nonce", "failed"), record("time.skew", "skipped")]
    for name, found in (("ours", ours), ("theirs", theirs)):
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    return [str(tmp_path / "ours.json"), str(tmp_path / "theirs.json")]


def test_laws_that_differ_are_listed_with_counts(files, capsys) -> None:
    assert main(["compare", *files]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "              ours     theirs",
        "replay.nonce  passed   failed",
        "time.skew              skipped",
        "passed        2        1",
        "failed        0        1",
        "skipped       0        1",
        "1 laws come out the same in all reports; --all lists them.",
    ]


def test_all_laws_can_be_listed(files, capsys) -> None:
    main(["compare", *files, "--all"])
    assert "http.host     passed   passed\n" in capsys.readouterr().out


def test_the_page_shows_each_run(files, tmp_path) -> None:
    assert main(["compare", *files, "--html", str(tmp_path / "page.html")]) == 0
    assert "theirs: failed" in (tmp_path / "page.html").read_text()


def test_another_file_is_an_error_that_names_it(files, tmp_path, capsys) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert main(["compare", files[0], str(other)]) == 1
    assert capsys.readouterr().err == f"asap: {other}: expected a report of asap conform --json\n"


def test_files_need_names_of_their_own(files, capsys) -> None:
    assert main(["compare", files[0], files[0]]) == 2
    assert "different names" in capsys.readouterr().err
