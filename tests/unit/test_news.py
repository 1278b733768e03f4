"""What the daemon tells of changes where this host's index of a log cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskyard import errors
from diskyard.daemon import news
from diskyard.model import requests as ask
from tests.unit.queries.bench import Bench


def test_who_listens_is_told_to_look_again_where_it_is_not_known_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    news.News(bench.service)
    place = {"path": str(tmp_path / "other")}
    bench.run(ask.CreateStorageRepository(repo_format="localfs-1.0", connection_parameters=place))
    bench.run(
        ask.ConnectStorageRepository(repo_id="o", repo_format="localfs-1.0", connection_parameters=place)
    )

    def unreadable(*_: object) -> None:
        raise errors.RepositoryUnavailable("This host's index of the repository cannot be read.")

    monkeypatch.setattr(news, "image_events", unreadable)
    begin = bench.service.events.newest()
    bench.run(ask.CreateVirtualDisk(target_repo_id="o", size=65536))
    told, _, _ = bench.service.events.after(begin)
    assert {event.kind for event in told if event.kind != "task"} == {"reset"}
