"""Conceptual Captions against a server that answers as the web does: whole, moved, gone, slow, torn, shut."""

from __future__ import annotations

import io
import socket
import threading
import warnings
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from heatproof import Refused, shelf

MODULE = shelf.load(shelf.house() / "datasets" / "conceptual.py")
Conceptual = MODULE.Conceptual


def picture(seed: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


class Web(BaseHTTPRequestHandler):
    """/ok/N a picture; the other roads are named by what goes wrong on them."""

    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        _, road, *rest = self.path.split("/")
        number = int(rest[0]) if rest and rest[0].isdigit() else 0
        if road == "ok":
            self._send(picture(number))
        elif road == "moved":
            self._redirect(f"/ok/{number}")
        elif road == "loop":
            self._redirect(self.path)
        elif road == "file":
            self._redirect("file:///etc/hostname")
        elif road == "torn":  # says how much is to come, and stops
            self._send(picture(number)[:100], told=len(picture(number)))
        elif road == "cut":  # a file that was cut before it was put there
            self._send(picture(number, "JPEG")[:-150])
        elif road == "page":
            self._send(b"<html>Hotlinking is not allowed</html>", kind="text/html")
        elif road == "slow":
            threading.Event().wait(2)
        elif road == "drip":
            self.send_response(200)
            self.end_headers()
            for byte in picture(number)[:30]:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                threading.Event().wait(0.05)
        elif road == "shut":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif road == "busy" and self.asked[self.path] < 3:
            self.send_error(503)
        elif road == "busy":
            self._send(picture(number))
        else:
            self.send_error(410 if road == "gone" else 404)

    def _send(self, body: bytes, told: int | None = None, kind: str = "image/png") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if told is None else told))
        self.end_headers()
        self.wfile.write(body)

    def _redirect(self, to: str) -> None:
        self.send_response(302)
        self.send_header("Location", to)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass  # who hung up on whom is what the tests are about


@pytest.fixture(scope="module")
def server():
    server = Quiet(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def web(server) -> str:
    Web.asked.clear()
    return f"http://127.0.0.1:{server.server_port}"


def table(folder: Path, *rows: str) -> Path:
    path = folder / "pairs.tsv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def data(folder: Path, *rows: str, **settings):
    quick = {"tries": 3, "timeout": 0.5, "pause": 0.01, "workers": 4, **settings}
    return Conceptual(str(table(folder, *rows)), str(folder / "images"), **quick)


def dead(folder: Path) -> dict[str, str]:
    lines = (folder / "images" / "dead_links.tsv").read_text(encoding="utf-8").splitlines()
    return {
        where.rpartition("/")[0].rpartition("/")[2]: why for _, where, why in (x.split("\t") for x in lines)
    }


ROADS = ("ok", "moved", "gone", "none", "torn", "cut", "page", "slow", "drip", "shut", "busy", "loop", "file")


def test_the_living_are_read_and_the_dead_are_on_record(tmp_path, web):
    rows = [f'a "{road}" caption\t{web}/{road}/{k}' for k, road in enumerate(ROADS)]
    samples = data(tmp_path, *rows).samples()
    assert [s.captions[0] for s in samples] == ['a "ok" caption', 'a "moved" caption', 'a "busy" caption']
    for sample, number in zip(samples, (0, 1, ROADS.index("busy")), strict=True):
        assert (sample.read() == np.asarray(Image.open(io.BytesIO(picture(number))))).all()
        assert sample.digest() == sample.digest()
    why = dead(tmp_path)
    assert set(why) == set(ROADS) - {"ok", "moved", "busy"}
    assert (why["gone"], why["none"]) == ("HTTP 410", "HTTP 404")
    assert why["torn"].startswith("truncated: 100 of")
    assert all(why[road].startswith("no whole image") for road in ("cut", "page"))
    assert all("no answer" in why[road] for road in ("slow",))
    assert why["drip"] == "not whole after 0.5 s"
    assert all("\t" not in reason and reason for reason in why.values())


def test_what_may_pass_is_asked_again_and_what_is_gone_is_not(tmp_path, web):
    rows = [f"x\t{web}/{road}/0" for road in ("ok", "gone", "page", "torn", "busy")]
    data(tmp_path, *rows).samples()
    assert Web.asked == {"/ok/0": 1, "/gone/0": 1, "/page/0": 1, "/torn/0": 3, "/busy/0": 3}


def test_a_second_time_nothing_is_asked(tmp_path, web):
    rows = [f"x\t{web}/{road}/{k}" for k, road in enumerate(("ok", "gone", "moved", "page"))]
    once = data(tmp_path, *rows).samples()
    Web.asked.clear()
    again = data(tmp_path, *rows).samples()
    assert not Web.asked
    assert [s.digest() for s in once] == [s.digest() for s in again]


def test_a_torn_file_of_ours_is_had_anew(tmp_path, web):
    made = data(tmp_path, f"x\t{web}/ok/1")
    (sample,) = made.samples()
    file = tmp_path / "images" / sample.id
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(Refused, match="no whole image any more"):
        sample.read()
    (sample,) = made.samples()
    assert sample.read().shape == (12, 16, 3)


def test_so_many_are_drawn_and_the_next_stands_in_for_a_dead_one(tmp_path, web):
    rows = [f"x\t{web}/{'gone' if k % 3 == 0 else 'ok'}/{k}" for k in range(40)]
    drawn = [data(tmp_path / str(w), *rows, sample=9, seed=5, workers=w) for w in (1, 4, 7)
             if not (tmp_path / str(w)).mkdir()]  # fmt: skip
    found = [[s.id for s in made.samples()] for made in drawn]
    assert found[0] == found[1] == found[2] == sorted(found[0])
    assert len(found[0]) == 9
    assert sum(Web.asked.values()) < 3 * 40
    other = data(tmp_path / "1", *rows, sample=9, seed=6).samples()
    assert [s.id for s in other] != found[0]
    with pytest.warns(UserWarning, match="26 of the 30 pairs asked for are alive"):
        assert len(data(tmp_path / "1", *rows, sample=30).samples()) == 26


def test_no_network_is_no_death(tmp_path, web):
    with socket.socket() as taken:  # a port that is bound and answers nobody
        taken.bind(("127.0.0.1", 0))
        shut = f"http://127.0.0.1:{taken.getsockname()[1]}"
        rows = [f"x\t{shut}/{k}" for k in range(60)]
        with pytest.raises(Refused, match="is there a network"):
            data(tmp_path, *rows, tries=1).samples()
        assert not (tmp_path / "images" / "dead_links.tsv").exists()
        # the same links are dead where one of the others answers
        made = data(tmp_path, *rows[:8], f"y\t{web}/ok/1", tries=1)
        assert len(made.samples()) == 1
        assert len((tmp_path / "images" / "dead_links.tsv").read_text().splitlines()) == 8


def test_a_network_that_goes_silent_halfway_buries_nobody(tmp_path, web, monkeypatch):
    rows = [f"x\t{web}/ok/{k}" for k in range(60)]
    real, calls = MODULE.download, []

    def failing(url, timeout):
        calls.append(url)
        return real(url, timeout) if len(calls) <= 10 else (None, MODULE.Failure("no answer", True, True))

    monkeypatch.setattr(MODULE, "download", failing)
    with pytest.raises(Refused, match=r"\d\d links in a row do not answer"):
        data(tmp_path, *rows, tries=1).samples()
    assert not (tmp_path / "images" / "dead_links.tsv").exists()
    monkeypatch.undo()
    assert len(data(tmp_path, *rows).samples()) == 60
    assert set(Web.asked.values()) == {1}


def test_paths_beside_the_table(tmp_path):
    (tmp_path / "one.png").write_bytes(picture(1))
    (tmp_path / "bad.png").write_bytes(picture(2)[:50])
    rows = [
        "caption\turl",
        "mine\tone.png",
        "",
        "torn\tbad.png",
        "lost\tnone.png",
        "nowhere",
        "odd\tftp://x/y",
    ]
    samples = data(tmp_path, *rows).samples()
    assert [(s.captions, s.id[:8]) for s in samples] == [(("mine",), "00000002")]
    assert (samples[0].read() == np.asarray(Image.open(tmp_path / "one.png"))).all()
    lines = (tmp_path / "images" / "dead_links.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["4", "5", "6", "7"]
    assert "neither http nor https" in lines[3]


def test_odd_addresses_crash_nothing(tmp_path, web):
    odd = [
        "http://",
        "http://[::1",
        "http://exa mple.invalid/ü.jpg",
        "https://",
        f"{web}/ok/3 ?q=ä ö",
        "http://\x00",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = data(tmp_path, *[f"x\t{where}" for where in odd], f"y\t{web}/ok/1", tries=1).samples()
    assert samples[-1].captions == ("y",)


def test_what_cannot_be_is_refused(tmp_path, web):
    with pytest.raises(Refused, match="there is no table"):
        Conceptual(str(tmp_path / "no.tsv"), str(tmp_path)).samples()
    with pytest.raises(Refused, match="no pairs; accepted is one a line"):
        data(tmp_path, "").samples()
    with pytest.raises(Refused, match="none of 1 images can be had; see"):
        data(tmp_path, f"x\t{web}/gone/1").samples()
    with pytest.raises(Refused, match="tries: found 0, accepted is 1 or more"):
        data(tmp_path, "x\ty", tries=0)
