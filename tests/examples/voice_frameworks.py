"""Script for test_voice_frameworks.py, in the environment of a voice framework: its detector and ours hear the same.

voice_frameworks.py pipecat|livekit      prints, as JSON, the results of both detectors for each recording
voice_frameworks.py pipecat-fails        prints the results of Pipecat without and with a window that fails
"""

import asyncio
import json
import sys
import wave

import numpy as np
from shared_detector import RATE, RECORDING, make_detector

STREAMS = 3


def recordings():
    """Return speech, speech between music and noise, which make Pipecat reset its model, and silence."""
    with wave.open(str(RECORDING)) as file:
        speech = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    rng = np.random.default_rng(16)
    seconds = np.arange(3 * RATE) / RATE
    music = 4000 * sum(np.sin(2 * np.pi * hertz * seconds) for hertz in (220, 277, 330)) / 3
    noise = rng.normal(0, 300, 3 * RATE)
    silence = np.zeros(2 * RATE)
    mixed = np.concatenate([music, speech, noise, music, silence, speech[: 4 * RATE], silence])
    return {"speech": np.concatenate([speech, silence]), "mixed": mixed, "silence": silence}


def frames_of(samples, size):
    """Return the frames of a recording, ``size`` samples each, as bytes."""
    pcm = samples.astype(np.int16).tobytes()
    return [pcm[start : start + 2 * size] for start in range(0, len(pcm) - 2 * size + 1, 2 * size)]


async def pipecat():
    from loguru import logger
    from pipecat.audio.vad.silero import SileroVADAnalyzer
    from pipecat_vad import BatchedVADAnalyzer

    logger.disable("pipecat")

    async def states_of(analyzer, frames):
        analyzer.set_sample_rate(RATE)
        states = [(await analyzer.analyze_audio(frame)).name for frame in frames]
        await analyzer.cleanup()
        return [(number, state) for number, state in enumerate(states) if number == 0 or states[number - 1] != state]

    async with make_detector(max_streams=STREAMS) as detector:
        found = {}
        for name, samples in recordings().items():
            for size in (320, 777):
                frames = frames_of(samples, size)
                own = await states_of(SileroVADAnalyzer(), frames)
                # all cases together have more conversations than there are places, so each must free its place
                ours = await asyncio.gather(*(states_of(BatchedVADAnalyzer(detector), frames) for _ in range(STREAMS)))
                found[f"{name}, {size}"] = [own, *ours]
        return found


async def pipecat_fails():
    from loguru import logger
    from pipecat.audio.vad.vad_analyzer import VADParams
    from pipecat_vad import BatchedVADAnalyzer

    logger.disable("pipecat")
    loud, quiet = np.full(512, 16_000, np.int16), np.zeros(512, np.int16)
    broken = np.concatenate([loud, np.full(512, -1, np.int16)])  # the second window fails

    class Detector:
        """Detector that hears speech in loud samples."""

        stream_states = None

        def capabilities(self):
            return self

        async def __call__(self, samples, *, stream_id):
            if samples[0] < 0:
                raise OSError(stream_id)
            return np.array([samples[0] > 0.1])

    async def states_of(frames):
        analyzer = BatchedVADAnalyzer(Detector(), params=VADParams(min_volume=0.0))
        try:
            analyzer.set_sample_rate(8_000)  # of a telephone
        except ValueError as error:
            errors.add(str(error))
        analyzer.set_sample_rate(RATE)
        states = []
        for frame in frames:
            try:
                states.append((await analyzer.analyze_audio(frame.tobytes())).name)
            except OSError:
                states.append("failed")
        return states

    errors = set()
    sound = [quiet] * 3 + [loud] * 20 + [quiet] * 20
    return [await states_of(sound), await states_of([*sound[:2], broken, *sound[2:]]), *errors]


async def livekit():
    from livekit import rtc
    from livekit.agents import inference
    from livekit_vad import BatchedVAD

    async def events_of(vad, frames, rate):
        stream = vad.stream()
        for number, frame in enumerate(frames):
            stream.push_frame(rtc.AudioFrame(frame, rate, 1, len(frame) // 2))
            if number == len(frames) // 2:
                stream.flush()
        stream.end_input()
        events = [
            (event.type.value, event.samples_index, event.speech_duration, len(event.frames[0].data))
            async for event in stream
            if event.type.value != "inference_done"
        ]
        await stream.aclose()
        return events

    async with make_detector(max_streams=STREAMS) as detector:
        own_vad, our_vad = inference.VAD(), BatchedVAD(detector)
        found = {}
        for name, samples in recordings().items():
            for rate in (RATE, 48_000):  # LiveKit resamples the second
                frames = frames_of(np.repeat(samples, rate // RATE), rate // 50)
                own = await events_of(own_vad, frames, rate)
                ours = await asyncio.gather(*(events_of(our_vad, frames, rate) for _ in range(STREAMS)))
                found[f"{name}, {rate}"] = [own, *ours]
        return found


MODES = {"pipecat": pipecat, "pipecat-fails": pipecat_fails, "livekit": livekit}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(MODES[sys.argv[1]]())))
