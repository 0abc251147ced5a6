"""A service is ill where its models fail, and not where requests do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fusioner_rt.errors import MemoryShort, SessionClosed


def test_a_session_that_fails_is_told_and_one_that_failed_once_is_not(start: Any, png: bytes) -> None:
    running = start()
    service = running.app.state.service
    session = service.models["tiny"].session
    calls = session.text_encoder_calls
    for path in ("/v1/segment?words=cat&threshold={'dog': 1}", "/v1/segment?words=cat,cat"):
        assert running.post(path.replace(" ", "%20"), png).status == 400
    asyncio.run(service.check_health())
    assert session.text_encoder_calls == calls  # nothing failed, and nothing was tried
    service._failed = MemoryShort("the memory was short")
    asyncio.run(service.check_health())
    assert session.text_encoder_calls == calls + 1
    session.close()
    asyncio.run(service.check_health())
    assert running.post("/v1/segment?words=cat", png).status == 503
    for _ in range(3):
        with pytest.raises(SessionClosed):
            asyncio.run(service.check_health())
