"""The configuration: what is read, and what is said of what cannot be used."""

from __future__ import annotations

import grp
import os
import re
import subprocess
from pathlib import Path

import pytest

from diskyard import errors
from diskyard.daemon.config import (
    Config,
    LimitsConfig,
    RepositoriesConfig,
    SocketConfig,
    TasksConfig,
    TcpConfig,
    TransferConfig,
    load,
    refused,
    socket_path,
    state_folder,
)
from diskyard.daemon.config_check import check
from diskyard.daemon.policy import Policy

DOCUMENTED = Path(__file__).resolve().parents[2] / "packaging" / "diskyard.toml"


def written(folder: Path, text: str) -> str:
    path = folder / "diskyard.toml"
    path.write_text(text)
    return str(path)


def test_the_documented_defaults_are_the_defaults(tmp_path: Path) -> None:
    shown = re.sub(r"(?m)^#(?=[a-z\[])", "", DOCUMENTED.read_text())
    assert "#" in shown  # the text for people is still a comment
    assert load(written(tmp_path, shown)) == Config(tcp=TcpConfig(), caretaker=(Policy(repository="*"),))
    assert load(str(DOCUMENTED)) == Config()


def test_the_documented_file_has_every_key() -> None:
    shown = set(re.findall(r"(?m)^#([a-z_]+) =", DOCUMENTED.read_text()))
    sections = [
        Config,
        SocketConfig,
        TcpConfig,
        LimitsConfig,
        TransferConfig,
        RepositoriesConfig,
        TasksConfig,
        Policy,
    ]
    assert {name for section in sections for name in section.__struct_fields__} - {
        "socket", "tcp", "limits", "transfer", "repositories", "tasks", "log", "caretaker",
    } <= shown  # fmt: skip


def test_without_a_file_all_is_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diskyard.daemon.config.DEFAULT_PATH", str(tmp_path / "absent.toml"))
    assert load() == Config()
    with pytest.raises(errors.InvalidParameter, match="There is no configuration file"):
        load(str(tmp_path / "absent.toml"))


def test_what_is_given_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        [socket]
        mode = "0600"
        [tcp]
        listen = "[::]:7443"
        [tasks]
        order = ["clean", "merge", "optimize", "mend"]
        resume = true
        [[caretaker]]
        repository = "fast"
        hours = "22:00-06:00"
        [[caretaker]]
        repository = "*"
        fixes = ["mend"]
        """,
    )
    config = load(path)
    assert config.socket.mode_bits == 0o600
    assert config.tcp is not None
    assert config.tcp.address() == ("::", 7443)
    assert config.tasks.resume
    assert config.caretaker == (
        Policy(repository="fast", hours="22:00-06:00"),
        Policy(repository="*", fixes=("mend",)),
    )
    assert config.limits == LimitsConfig()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1", "colour is not a key; the keys are state_dir, socket"),
        ("[socket]\ncolour = 1", "socket.colour is not a key; the keys are path, mode, group"),
        ("socket = 1", "socket must be a table"),
        ("[socket]\nmode = 660", "socket.mode must be octal, such as 0660, with none for others, not 660"),
        ('[socket]\nmode = "0666"', "socket.mode must be octal"),
        ("[limits]\nrequest_bytes = 1", "limits.request_bytes must be bytes, from 4,096 to"),
        ("[limits]\nrequest_bytes = true", "limits.request_bytes must be bytes"),
        (f"[limits]\nrequest_bytes = {1 << 80}", "limits.request_bytes must be bytes"),
        ("[tasks]\nat_once = 0", "tasks.at_once must be a number from 1 to 64, not 0"),
        ('[tasks]\norder = ["burn"]', "tasks.order must be a list with mend, merge"),
        ('[tasks]\nresume = "yes"', "tasks.resume must be true or false, not 'yes'"),
        ('[log]\nlevel = "loud"', "log.level must be debug, info, warning or error, not 'loud'"),
        ("[log]\nlevel = 1979-05-27", "log.level must be debug, info"),
        ('transfer = {folders = "/x"}', "transfer.folders must be a list of absolute paths"),
        ("[[caretaker]]\nevery_s = 0", "caretaker[1].every_s must be seconds, at least 1, not 0"),
        ("[[caretaker]]\nevery_s = 1", "caretaker[1].repository is missing; it must be the repoId"),
        ("caretaker = [1]", "caretaker[1] must be a table"),
        ("[caretaker]\nevery_s = 9", "caretaker must be written as [[caretaker]]"),
        ("socket = ", "is not TOML"),
        ("a = " + "[" * 100_000, "is not TOML"),
        ("a = 'x" + "y" * (1 << 20) + "'", "is longer than"),
    ],
)
def test_what_is_not_of_its_form_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(errors.InvalidParameter, match=re.escape(said)) as raised:
        load(path)
    assert path in raised.value.message


def test_what_is_no_text_or_no_file(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for name in ("bytes.toml", "."):
        with pytest.raises(errors.InvalidParameter, match=re.escape(str(tmp_path))):
            load(str(tmp_path / name))


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "x = 1\n[log]\nlevel = 2\n[tasks]\nat_once = 0\n[[caretaker]]\n")
    with pytest.raises(errors.InvalidParameter) as raised:
        load(path)
    _, *lines = raised.value.message.splitlines()
    assert [line.partition(" ")[0] for line in lines] == [
        "x", "log.level", "tasks.at_once", "caretaker[1].repository",
    ]  # fmt: skip


# -- what the form alone does not say ----------------------------------------------------------


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of certificate and key, ``a`` and ``b``, and ``locked``, whose key has a passphrase."""
    folder = tmp_path_factory.mktemp("pems")
    for name, more in (("a", ["-nodes"]), ("b", ["-nodes"]), ("locked", ["-passout", "pass:secret"])):
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        paths = ["-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.pem", "-subj", "/CN=x"]
        subprocess.run([*new, *paths, *more], check=True, capture_output=True)
    (folder / "garbage.pem").write_text("garbage")
    return folder


def tcp(folder: Path, certificate: str, key: str, listen: str = "127.0.0.1:0") -> Config:
    return Config(tcp=TcpConfig(listen=listen, certificate=str(folder / certificate), key=str(folder / key)))


def test_a_configuration_that_can_be_used(pems: Path, tmp_path: Path) -> None:
    assert check(Config()) == []
    assert check(tcp(pems, "a.pem", "a.key")) == []
    group = grp.getgrgid(os.getgid()).gr_name
    assert check(Config(socket=SocketConfig(path="/tmp/x.sock", group=group))) == []
    assert check(Config(transfer=TransferConfig(folders=(str(tmp_path),)))) == []


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        ("a.pem", "b.key", "key values mismatch"),
        ("a.key", "a.pem", "must be a certificate in PEM and its key"),
        ("garbage.pem", "a.key", "must be a certificate in PEM and its key"),
        ("locked.pem", "locked.key", "without a passphrase"),
        ("absent.pem", "a.key", "tcp.certificate '"),
        ("a.pem", "absent.key", "tcp.key '"),
        ("", "a.key", "tcp.certificate '"),
    ],
)
def test_certificate_and_key_belong_together(pems: Path, certificate: str, key: str, said: str) -> None:
    (found,) = check(tcp(pems, certificate, key))
    assert said in found


@pytest.mark.parametrize("listen", ["7443", ":7443", "host:", "host:x", "host:65536", "::1:7443", "a b:1"])
def test_addresses_that_are_none(pems: Path, listen: str) -> None:
    (found,) = check(tcp(pems, "a.pem", "a.key", listen))
    assert found.startswith(f"tcp.listen {listen!r}")


def test_all_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    found = check(
        Config(
            state_dir="here",
            socket=SocketConfig(path="/" + "x" * 107, group="no such group"),
            tcp=TcpConfig(listen="", certificate="x.pem"),
            transfer=TransferConfig(folders=("x", str(tmp_path / "absent"))),
            repositories=RepositoriesConfig(folders=("x", str(tmp_path / "absent"))),
            tasks=TasksConfig(order=("mend", "mend", "merge", "clean")),
            caretaker=(
                Policy(repository="a", hours="22:00-6:00"),
                Policy(repository="a", hours="22:00-22:00", fixes=("mend", "mend")),
            ),
        )
    )
    assert [line.partition(" ")[0].rstrip(":") for line in found] == [
        "state_dir", "transfer.folders", "transfer.folders", "repositories.folders", "repositories.folders",
        "socket.path", "socket.group", "tcp.listen", "tcp.certificate", "tcp.key", "tasks.order",
        "caretaker[1].hours", "caretaker[2].fixes", "caretaker[2].hours",
    ]  # fmt: skip
    assert refused("x.toml", found).message.count("\n") == len(found)


def test_a_deep_state_folder_has_no_room_for_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diskyard.daemon.config.os.access", lambda *_: False)
    config = Config(state_dir="/" + "x" * 100)
    assert state_folder(config) == config.state_dir
    assert socket_path(config) == f"{config.state_dir}/diskyard.sock"
    (found,) = check(config)
    assert "the limit is 97" in found
