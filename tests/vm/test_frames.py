"""The conversation with the guest agent, as bytes."""

from __future__ import annotations

import pytest

from bpfseal.runtime.vm.guest.frames import HEADER, MAX_PAYLOAD, Frame, FrameError, Parser, pack, pack_json


def test_frames_arrive_whole_however_the_stream_is_cut() -> None:
    stream = pack(Frame.OUT, b"one") + pack(Frame.ERR) + pack_json(Frame.EXIT, status=3)
    parser = Parser()
    got = [frame for i in range(len(stream)) for frame in parser.feed(stream[i : i + 1])]
    assert got == [(Frame.OUT, b"one"), (Frame.ERR, b""), (Frame.EXIT, b'{"status": 3}')]
    assert list(Parser().feed(stream)) == got


def test_long_payload_becomes_several_frames() -> None:
    payload = bytes(range(256)) * (MAX_PAYLOAD // 256 * 2) + b"rest"
    got = list(Parser().feed(pack(Frame.STDIN, payload)))
    assert [len(data) for _, data in got] == [MAX_PAYLOAD, MAX_PAYLOAD, 4]
    assert b"".join(data for _, data in got) == payload


@pytest.mark.parametrize("header", [HEADER.pack(0, 0), HEADER.pack(99, 1), HEADER.pack(Frame.OUT, MAX_PAYLOAD + 1)])
def test_nonsense_is_an_error_not_a_wait(header: bytes) -> None:
    with pytest.raises(FrameError):
        list(Parser().feed(header))


def test_request_must_fit_one_frame() -> None:
    with pytest.raises(FrameError):
        pack_json(Frame.RUN, command=["x" * MAX_PAYLOAD])
