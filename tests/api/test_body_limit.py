"""The limit on bodies: counted as they come, nothing read beyond."""

import asyncio

import pytest
from starlette.responses import PlainTextResponse

from api.body_limit import BodyLimit
from api.json_limits import JsonLimits


async def echo(scope, receive, send):
    """Answers with what it read, and with the message after."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    after = await receive()
    await PlainTextResponse(body + b"|" + after["type"].encode())(scope, receive, send)


def answer(chunks, max_bytes):
    """(status, body, chunks that were read) of a request whose body comes in these chunks."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages[-1]["more_body"] = False
    unread = [*messages, {"type": "http.disconnect"}]
    sent = []

    async def receive():
        return unread.pop(0)

    async def send(message):
        sent.append(message)

    limited = BodyLimit(echo, max_bytes, JsonLimits(64, 1000), lambda error: PlainTextResponse(str(error), 413))
    asyncio.run(limited({"type": "http", "method": "POST", "headers": []}, receive, send))
    return sent[0]["status"], sent[1]["body"], len(messages) + 1 - len(unread)


@pytest.mark.parametrize("chunks", [[b""], [b"abc"], [b"a", b"", b"bc"], [b"0123456789"]])
def test_a_body_within_the_limit_passes_unchanged(chunks):
    assert answer(chunks, 10)[:2] == (200, b"".join(chunks) + b"|http.disconnect")


def test_reading_ends_with_the_chunk_that_is_too_much():
    status, body, num_read = answer([b"0123456789"] * 100, 25)
    assert (status, num_read) == (413, 3)
    assert b"25 bytes" in body
