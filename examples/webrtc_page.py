"""A page with the browser's microphone and camera: ``python examples/webrtc_page.py``, then http://127.0.0.1:8000.

Two real models detect speech and faces, and the page shows their results. Sound and pictures come over WebRTC, or, at
http://127.0.0.1:8000/?socket, over WebSockets. It needs aiohttp and the extras ``webrtc`` and ``onnx``.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import attrs
import numpy as np
from aiohttp import WSMsgType, web
from aiortc import MediaStreamTrack, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from demo.audio import CHUNK
from demo.faces import FULL, find_faces
from demo.services import batched, face_service, voice_service

from streaminfer.streams import (
    Frame,
    LatestOnly,
    Source,
    StreamSession,
    audio_from_messages,
    from_track,
    video_from_messages,
)

PAGE = """<!doctype html><title>streaminfer</title><video id="video" autoplay muted playsinline></video>
<pre id="results"></pre>
<script type="module">
const results = {}
const show = ({data}) => {
  Object.assign(results, JSON.parse(data))
  document.getElementById("results").textContent = JSON.stringify(results, null, 2)
}
const stream = await navigator.mediaDevices.getUserMedia({audio: true, video: {width: 320, height: 240}})
document.getElementById("video").srcObject = stream

async function connect() {
  const peer = new RTCPeerConnection()
  peer.createDataChannel("results").onmessage = show
  for (const track of stream.getTracks()) peer.addTrack(track, stream)
  await peer.setLocalDescription()
  while (peer.iceGatheringState !== "complete") await new Promise(then => peer.onicegatheringstatechange = then)
  const answer = await fetch("/offer", {method: "POST", body: JSON.stringify(peer.localDescription)})
  await peer.setRemoteDescription(await answer.json())
}

async function open(kind) {
  const socket = new WebSocket(`ws://${location.host}/${kind}`)
  socket.onmessage = show
  await new Promise(then => socket.onopen = then)
  return socket
}

async function sendMessages() {
  const microphone = await open("microphone"), camera = await open("camera")
  const audio = new AudioContext({sampleRate: 16000})
  const node = audio.createScriptProcessor(512, 1, 1)
  node.onaudioprocess = event => microphone.send(event.inputBuffer.getChannelData(0).slice())
  audio.createMediaStreamSource(stream).connect(node).connect(audio.destination)
  const canvas = new OffscreenCanvas(320, 240)
  setInterval(async () => {
    canvas.getContext("2d").drawImage(document.getElementById("video"), 0, 0)
    camera.send(await canvas.convertToBlob({type: "image/jpeg"}))
  }, 100)
}

await (location.search === "?socket" ? sendMessages() : connect())
</script>"""

HEAR: dict[str, Any] = {"chunk": CHUNK}
SEE: dict[str, Any] = {"size": (FULL.size, FULL.size), "rate": 10}
Say = Callable[[dict[str, Any]], Awaitable[None]]


class Page:
    """Application with its two models.

    Attributes:
        results: number of results of each kind of source.
    """

    def __init__(self) -> None:
        self.results = {"speech": 0, "faces": 0}
        self.app = web.Application()
        self.app.add_routes([
            web.get("/", self.index),
            web.post("/offer", self.offer),
            web.get("/microphone", self.microphone),
            web.get("/camera", self.camera),
        ])  # fmt: skip
        self.app.cleanup_ctx.append(self._run)
        self._voice = voice_service(batched())
        self._faces = face_service()
        self._anchors = FULL.anchors()
        self._peers: set[RTCPeerConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def _run(self, _app: web.Application) -> AsyncIterator[None]:
        async with self._voice, self._faces:
            yield
            for peer in list(self._peers):
                await peer.close()
            await asyncio.gather(*self._tasks)

    async def hear(self, source: Source, say: Say) -> None:
        """Send the probability of speech in each chunk."""
        async for result in StreamSession(self._voice)(source):
            if result.error is None:
                self.results["speech"] += 1
                await say({"speech": round(float(result.outputs[0]), 3)})

    async def see(self, source: Source, say: Say) -> None:
        """Send the positions of faces in the newest picture."""
        async for result in StreamSession(self._faces, policy=LatestOnly())(_scaled(source)):
            if result.error is None:
                self.results["faces"] += 1
                found = find_faces(result.outputs["boxes"], result.outputs["scores"], self._anchors)
                await say({"faces": [[round(side) for side in face[:4]] for face in found]})

    async def index(self, _request: web.Request) -> web.Response:
        """Return the page."""
        return web.Response(text=PAGE, content_type="text/html")

    async def offer(self, request: web.Request) -> web.Response:
        """Connect a browser over WebRTC; results go back through its data channel."""
        peer = RTCPeerConnection()
        self._peers.add(peer)
        channels: list[RTCDataChannel] = []

        async def say(result: dict[str, Any]) -> None:
            for channel in channels:
                if channel.readyState == "open":
                    channel.send(json.dumps(result))

        @peer.on("track")
        def on_track(track: MediaStreamTrack) -> None:
            listen, wanted = (self.hear, HEAR) if track.kind == "audio" else (self.see, SEE)
            task = asyncio.create_task(listen(from_track(track, connection=peer, **wanted), say))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        @peer.on("connectionstatechange")
        async def on_change() -> None:
            if peer.connectionState in {"failed", "closed"}:
                self._peers.discard(peer)
                await peer.close()

        peer.add_listener("datachannel", channels.append)
        await peer.setRemoteDescription(RTCSessionDescription(**await request.json()))
        await peer.setLocalDescription(await peer.createAnswer())
        return web.json_response({"sdp": peer.localDescription.sdp, "type": peer.localDescription.type})

    async def microphone(self, request: web.Request) -> web.WebSocketResponse:
        """Receive messages of raw samples."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        source = audio_from_messages(_binary(socket), sent_rate=16_000, sent_dtype="float32", **HEAR)
        with contextlib.suppress(ConnectionResetError):  # the browser left before its last results
            await self.hear(source, socket.send_json)
        return socket

    async def camera(self, request: web.Request) -> web.WebSocketResponse:
        """Receive messages of JPEG pictures."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        with contextlib.suppress(ConnectionResetError):
            await self.see(video_from_messages(_binary(socket), **SEE), socket.send_json)
        return socket


async def _scaled(source: Source) -> AsyncIterator[Frame]:
    """Yield pictures in the format of the face detector, in -1…1."""
    async with source:
        async for frame in source:
            yield attrs.evolve(frame, inputs=frame.inputs.astype(np.float32) / 127.5 - 1)


async def _binary(socket: web.WebSocketResponse) -> AsyncIterator[bytes]:
    async for message in socket:
        if message.type is WSMsgType.BINARY:
            yield message.data


if __name__ == "__main__":
    web.run_app(Page().app, host="127.0.0.1", port=8000)
