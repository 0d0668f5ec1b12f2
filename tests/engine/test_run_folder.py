"""Log folders: what is found out before anything is moved."""

import os
from pathlib import Path

import pytest

from torchreid_autoreid.engine.run_folder import check_run_folder, claim_run_folder, keep_earlier_run
from torchreid_autoreid.errors import UserError


def a_run(folder, text="first"):
    folder.mkdir()
    (folder / "history.jsonl").write_text(text)
    return folder


def test_a_link_is_followed_and_stays_a_link(tmp_path, capsys):
    place = a_run(tmp_path / "disk")
    link = tmp_path / "log"
    link.symlink_to(place)
    check_run_folder(link)
    keep_earlier_run(link)
    assert link.is_symlink()
    assert (tmp_path / "disk-1" / "history.jsonl").read_text() == "first"
    assert not (place / "history.jsonl").exists()
    assert str(tmp_path / "disk-1") in capsys.readouterr().out


def test_a_link_to_a_folder_that_is_not_there_makes_it(tmp_path):
    (tmp_path / "log").symlink_to(tmp_path / "disk" / "log")
    check_run_folder(tmp_path / "log")
    keep_earlier_run(tmp_path / "log")
    assert (tmp_path / "disk" / "log").is_dir()


@pytest.mark.parametrize("name", [".", "..", "below/.."])
def test_the_current_folder_is_not_moved_from_under_the_run(tmp_path, monkeypatch, name):
    here = a_run(tmp_path / "here")
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below" if name == ".." else here)
    with pytest.raises(UserError, match=f"the current folder .*here.* lies in data.save_dir {name}, whose earlier run"):
        check_run_folder(Path(name))
    check_run_folder(Path(name), resume=here / "checkpoint.pth")  # it stays
    (here / "history.jsonl").unlink()
    check_run_folder(Path(name))
    keep_earlier_run(Path(name))
    assert os.listdir(tmp_path) == ["here"]


@pytest.mark.parametrize("inside", ["g.json", "deep/er/g.json"])
def test_what_the_run_reads_is_not_moved_away(tmp_path, inside):
    folder = a_run(tmp_path / "log")
    with pytest.raises(UserError, match=r"--genotype .*g\.json lies in data.save_dir"):
        check_run_folder(folder, None, {"data.root": "", "--genotype": str(folder / inside)})
    check_run_folder(folder, folder / "checkpoint.pth", {"--genotype": str(folder / inside)})
    check_run_folder(folder, None, {"--genotype": str(tmp_path / "g.json")})


def test_a_folder_that_cannot_be_written_is_told_before(tmp_path, monkeypatch):
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    with pytest.raises(UserError, match=f"data.save_dir {tmp_path}/log: {tmp_path} cannot be written"):
        check_run_folder(tmp_path / "log")
    folder = a_run(tmp_path / "log")
    with pytest.raises(UserError, match="cannot be written"):  # it would be moved
        check_run_folder(folder)
    check_run_folder(folder, folder / "checkpoint.pth")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "log"):
        with pytest.raises(UserError, match="file is no folder"):
            check_run_folder(path)


def test_a_name_that_tensorboard_cannot_write_is_told(tmp_path):
    with pytest.raises(UserError, match=r"log.udcd5 has bytes that are no UTF-8"):
        check_run_folder(tmp_path / os.fsdecode(b"log\xd5"))


def test_a_claim_makes_nothing(tmp_path):
    claim_run_folder(tmp_path / "log")
    assert not list(tmp_path.iterdir())
