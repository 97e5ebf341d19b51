"""Speech detection in live streams with voice frameworks; benchmarks/run.py voice runs it in their environments.

voice.py WAY [--seconds 3] [--core 1]     prints the most streams, the CPU per chunk and the segments of speech
"""

import argparse
import asyncio
import json
import os
from contextlib import asynccontextmanager
from functools import partial

import numpy as np
from _lib.live_audio import CHUNK_S, find_capacity, load_pcm, serve_streams

RATE = 16_000
DRIVEN = 300


@asynccontextmanager
async def pipecat(make_analyzer):
    """Play streams as Pipecat's transport does, which awaits `analyze_audio` for each frame of its one speaker."""
    from loguru import logger

    logger.disable("pipecat")

    async def play(source, answered):
        analyzer = make_analyzer()
        analyzer.set_sample_rate(RATE)
        states = []
        try:
            async for captured_ns, chunk in source:
                states.append((await analyzer.analyze_audio(chunk.tobytes())).name)
                answered(captured_ns)
        finally:
            await analyzer.cleanup()
        return changes(states)

    yield play


@asynccontextmanager
async def livekit(vad):
    """Play streams as LiveKit's speech recognition does, which pushes frames into a stream and reads its events."""
    from livekit import rtc

    async def play(source, answered):
        stream = vad.stream()
        sent, events = [], []

        async def read():
            async for event in stream:
                if event.type.value == "inference_done":
                    answered(sent[event.samples_index // 512 - 1])
                else:
                    events.append((event.type.value, event.samples_index, round(event.speech_duration, 3)))

        reading = asyncio.create_task(read())
        try:
            async for captured_ns, chunk in source:
                sent.append(captured_ns)
                stream.push_frame(rtc.AudioFrame(chunk.tobytes(), RATE, 1, len(chunk)))
            stream.end_input()
            await reading
        finally:
            reading.cancel()
            await stream.aclose()
        return events

    yield play


@asynccontextmanager
async def session(max_batch_size=32):
    """Play streams through our session over the shared detector, without a framework."""
    from shared_detector import make_detector

    from streaminfer.streams import Frame, StreamSession

    async with make_detector(max_batch_size=max_batch_size, max_streams=4096) as detector:
        streams = StreamSession(detector)

        async def play(source, answered):
            async def frames():
                async for captured_ns, chunk in source:
                    yield Frame(chunk.astype(np.float32) / np.float32(32768), captured_ns)

            probabilities = []
            async with streams(frames()) as results:
                async for result in results:
                    answered(result.captured_ns)
                    probabilities.append(result.outputs.item())
            return segments_of(probabilities)

        yield play


@asynccontextmanager
async def driver():
    """Play streams as `session` does, but without the session: each chunk becomes a frame, its result is a constant."""
    from streaminfer.streams import Frame

    silence = np.zeros(1, np.float32)

    async def play(source, answered):
        async def frames():
            async for captured_ns, chunk in source:
                yield Frame(chunk.astype(np.float32) / np.float32(32768), captured_ns)

        probabilities = []
        async for frame in frames():
            answered(frame.captured_ns)
            probabilities.append(silence.item())
        return segments_of(probabilities)

    yield play


@asynccontextmanager
async def own_pipecat():
    from pipecat.audio.vad.silero import SileroVADAnalyzer

    async with pipecat(SileroVADAnalyzer) as play:
        yield play


@asynccontextmanager
async def our_pipecat():
    from pipecat_vad import BatchedVADAnalyzer, make_detector

    async with make_detector(max_streams=4096) as detector, pipecat(lambda: BatchedVADAnalyzer(detector)) as play:
        yield play


@asynccontextmanager
async def own_livekit():
    from livekit.agents.inference import VAD

    async with livekit(VAD()) as play:
        yield play


@asynccontextmanager
async def silero_livekit():
    from livekit.plugins.silero import VAD

    async with livekit(VAD.load(min_silence_duration=0.25)) as play:
        yield play


@asynccontextmanager
async def our_livekit():
    from livekit_vad import BatchedVAD, make_detector

    async with make_detector(max_streams=4096) as detector, livekit(BatchedVAD(detector)) as play:
        yield play


WAYS = {
    "session": session,
    "unbatched": partial(session, 1),
    "driver": driver,
    "pipecat": own_pipecat,
    "pipecat-ours": our_pipecat,
    "livekit": own_livekit,
    "livekit-silero": silero_livekit,
    "livekit-ours": our_livekit,
}


def segments_of(probabilities):
    from streaminfer.streams import Segments

    found = Segments(frame_s=CHUNK_S).find(probabilities)
    return [(round(segment.start_s, 3), round(segment.end_s, 3)) for segment in found]


def changes(states):
    """Return the changes of value in a list, as pairs of index and new value."""
    return [
        (n, state) for n, (before, state) in enumerate(zip([None, *states], states, strict=False)) if before != state
    ]


async def replay(play):
    """Play the whole recording and two seconds of silence as fast as possible; return the segments of speech."""

    async def source():
        pcm = load_pcm()
        for number, chunk in enumerate([*pcm, *[0 * pcm[0]] * round(2 / CHUNK_S)]):
            yield number, chunk

    return await play(source(), lambda _: None)


async def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("way", choices=WAYS)
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="for how long each number of streams is served; 0: none is"
    )
    parser.add_argument("--core", type=int, help="the one that the process may use")
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    found = {}
    async with WAYS[options.way]() as play:
        found["segments"] = await replay(play)
        if options.seconds:
            if options.way == "driver":  # at a number of streams that another way serves
                streams, load = DRIVEN, await serve_streams(play, DRIVEN, options.seconds)
            else:
                streams, load = await find_capacity(play, options.seconds)
            found |= {"streams": streams, "cpu_us": 1e6 * load.cpu_s, "p999_ms": 1e3 * load.p999_s}
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
