"""Speech to text: sound in windows of 30 seconds, read by a model with an encoder of frames
(Whisper).

Read `transcribe` (files and their windows), then `decode` (a window to ids), `segments` (ids to
texts with times), `windows` (sound piece by piece) and `vocabulary` (the ids with a meaning).
"""

from gptjax.hear.segments import Segment, Transcript
from gptjax.hear.transcribe import Hearing, transcribe_sounds

__all__ = ["Hearing", "Segment", "Transcript", "transcribe_sounds"]
